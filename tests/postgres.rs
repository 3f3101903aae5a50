//! PostgreSQL on a volume of which snapshots are taken while it is extended and its machine fails:
//! no transaction that was acknowledged is lost, and each snapshot is a database.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use caddis_testkit::{Host, Machine, Options, images};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, NoTls};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    snapshots::{begin, id, snapshot, until_volume, volumes},
    stand::{Stand, is_short, rounds},
};

/// For a database to recover on an emulated processor, and for what is asked of it.
const TIMEOUT: Duration = Duration::from_secs(180);
/// Between two tries of something of which nothing tells when it is there.
const LOOK: Duration = Duration::from_millis(200);
/// Between a snapshot and the next.
const BETWEEN: Duration = Duration::from_secs(3);

/// Makes a cluster on the volume where there is none, and becomes the server. Trusting everybody is
/// for a test.
const SCRIPT: &str = "set -e\n\
    cd /usr/lib/postgresql/*/bin\n\
    if [ ! -d /data/cluster ]; then\n\
    rm -rf /data/new\n\
    ./initdb -D /data/new -U postgres --auth=trust --data-checksums >/dev/null\n\
    echo 'host all all all trust' >>/data/new/pg_hba.conf\n\
    sync\n\
    mv /data/new /data/cluster\n\
    fi\n\
    exec ./postgres -D /data/cluster -c listen_addresses='*' -c unix_socket_directories=/tmp\n";

/// Fails where an index does not find each row of its table.
const CHECK: &str = "create extension if not exists amcheck; \
    select bt_index_check(index => c.oid, heapallindexed => true) \
    from pg_index i join pg_class c on i.indexrelid = c.oid join pg_am m on c.relam = m.oid \
    where m.amname = 'btree' and c.relpersistence = 'p' and i.indisready and i.indisvalid";

/// What pgbench adds to an account it adds to a teller, to a branch, and to its history.
const SUMS: &str = "select (select sum(abalance) from pgbench_accounts), \
    (select sum(tbalance) from pgbench_tellers), (select sum(bbalance) from pgbench_branches), \
    (select coalesce(sum(delta), 0) from pgbench_history), \
    (select count(*) from pgbench_accounts), (select count(*) from pgbench_history)";

async fn database(stand: &Stand<'_>, image: &str, volume: &str) -> Result<Machine> {
    let script = base64::engine::general_purpose::STANDARD.encode(SCRIPT);
    let machine = stand
        .machine(json!({
            "image": image,
            "guest": { "memory_mb": 512 },
            "restart": { "policy": "no" },
            "processes": [{ "exec": ["/bin/sh", "/srv/postgres"], "user": "postgres" }],
            "files": [{ "guest_path": "/srv/postgres", "raw_value": script }],
            "mounts": [{ "volume": volume, "path": "/data" }],
            "stop_config": { "signal": "SIGINT", "timeout": "60s" },
        }))
        .await?;
    machine.wait("started").await?;
    Ok(machine)
}

/// A connection, which is closed with the client.
async fn try_connect(address: &str) -> Result<Client> {
    let config = format!("host={address} user=postgres dbname=postgres connect_timeout=10");
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// A connection as soon as there is a server.
async fn connect(address: &str) -> Result<Client> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match try_connect(address).await {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => sleep(LOOK).await,
        }
    }
}

/// Inserts one number after the other, for ever, and tells up to which they are acknowledged.
async fn insert(address: String, counts: Arc<Counts>) {
    let acknowledged = &counts.acknowledged;
    loop {
        if let Ok(client) = try_connect(&address).await {
            let mut next = acknowledged.load(Ordering::SeqCst) + 1;
            // One that was committed and not acknowledged is there already.
            let line = "insert into ledger values ($1) on conflict do nothing";
            while let Ok(Ok(_)) = timeout(TIMEOUT, client.execute(line, &[&next])).await {
                acknowledged.store(next, Ordering::SeqCst);
                next += 1;
            }
        }
        sleep(LOOK).await;
    }
}

/// Waits until one more is counted than is now.
async fn goes_on(what: &str, counted: &AtomicI64) -> Result<()> {
    let (before, deadline) = (counted.load(Ordering::SeqCst), Instant::now() + TIMEOUT);
    while counted.load(Ordering::SeqCst) == before {
        ensure!(Instant::now() < deadline, "there are no more {what} than {before}");
        sleep(LOOK).await;
    }
    Ok(())
}

/// A database has all that was acknowledged, and nothing of a transaction without the rest of it.
async fn has_all(client: &Client, acknowledged: i64) -> Result<()> {
    let line = "select count(*) from ledger where number <= $1";
    let count: i64 = client.query_one(line, &[&acknowledged]).await?.get(0);
    ensure!(count == acknowledged, "{count} of {acknowledged} acknowledged rows are there");
    client.batch_execute(CHECK).await.context("an index does not find its rows")?;
    let sums = client.query_one(SUMS, &[]).await?;
    let [accounts, tellers, branches, history, count, transactions]: [i64; 6] =
        std::array::from_fn(|column| sums.get(column));
    eprintln!("{acknowledged} acknowledged rows and {transactions} transactions of pgbench");
    ensure!(
        [accounts, tellers, branches].iter().all(|sum| *sum == history) && count == 100_000,
        "{accounts} in {count} accounts, {tellers} in tellers, {branches} in branches, {history}"
    );
    Ok(())
}

async fn transactions(client: &Client) -> Result<i64> {
    Ok(client.query_one("select count(*) from pgbench_history", &[]).await?.get(0))
}

/// Has pgbench work until its server ends, and leave its history as it is (`-n`).
async fn load(machine: &Machine, address: &str) -> Result<()> {
    let client = connect(address).await?;
    let before = transactions(&client).await?;
    let line = "cd /usr/lib/postgresql/*/bin && \
                setsid ./pgbench -n -h /tmp -U postgres -c 2 -T 100000 postgres \
                </dev/null >/tmp/load 2>&1 & echo begun";
    machine.shell(line).await?;
    let deadline = Instant::now() + TIMEOUT;
    while transactions(&client).await? == before {
        if Instant::now() > deadline {
            anyhow::bail!("pgbench does nothing: {}", machine.shell("cat /tmp/load").await?);
        }
        sleep(LOOK).await;
    }
    Ok(())
}

async fn extend(stand: &Stand<'_>, volume: &str) -> Result<()> {
    let path = format!("{}/{volume}", volumes());
    let size = stand.server.api().get(&path).await?.ok()?["size_gb"].as_u64();
    let size = size.context("a size")? + 1;
    stand
        .server
        .api()
        .put(&format!("{path}/extend"), json!({ "size_gb": size }))
        .await?
        .ok()
        .map(drop)
}

/// How far the test is.
#[derive(Default)]
struct Counts {
    /// Rows that the server has said are there.
    acknowledged: AtomicI64,
    /// Snapshots that were asked for.
    begun: AtomicI64,
    /// Those that are there.
    taken: AtomicI64,
}

/// Extends the volume twice, kills the VM, and stops and starts the machine, all under load, and
/// each while a snapshot is taken.
async fn disturb(
    stand: &Stand<'_>,
    machine: &Machine,
    volume: &str,
    counts: &Counts,
) -> Result<()> {
    let Counts { acknowledged, begun, taken } = counts;
    let address = machine.address().await?;
    for _ in 0..rounds(1, 4) {
        load(machine, &address).await?;
        goes_on("begun snapshots", begun).await?;
        extend(stand, volume).await?;
        goes_on("acknowledged rows", acknowledged).await?;
        goes_on("snapshots", taken).await?;
        goes_on("begun snapshots", begun).await?;
        kill(Pid::from_raw(stand.server.vm(machine)?), Signal::SIGKILL)?;
        machine.wait("stopped").await?;
        machine.start().await?;
        machine.wait("started").await?;
        load(machine, &address).await?;
        goes_on("snapshots", taken).await?;
        goes_on("begun snapshots", begun).await?;
        extend(stand, volume).await?;
        goes_on("snapshots", taken).await?;
        goes_on("begun snapshots", begun).await?;
        machine.stop().await?;
        machine.wait("stopped").await?;
        machine.start().await?;
        machine.wait("started").await?;
        goes_on("acknowledged rows", acknowledged).await?;
        goes_on("snapshots", taken).await?;
    }
    Ok(())
}

/// Takes one snapshot after the other, for ever: their ids, with what was acknowledged before each.
async fn take(
    stand: &Stand<'_>,
    volume: &str,
    counts: &Counts,
    snapshots: &mut Vec<(String, i64)>,
) -> Result<()> {
    loop {
        let before = counts.acknowledged.load(Ordering::SeqCst);
        counts.begun.fetch_add(1, Ordering::SeqCst);
        snapshots.push((id(&snapshot(stand, volume).await?)?, before));
        counts.taken.fetch_add(1, Ordering::SeqCst);
        sleep(BETWEEN).await;
    }
}

#[tokio::test]
async fn no_acknowledged_transaction_is_lost_and_each_snapshot_is_a_database() -> Result<()> {
    let host = Host::new().await?;
    // A volume that is deleted counts for a day.
    let arguments = ["--volume-gb", "2000"].map(str::to_owned).to_vec();
    let stand = Stand::with(&host, Options { arguments, ..Options::default() }).await?;
    let image = stand.registry.push(&images::postgres()?, "postgres:1")?;
    let data = begin(&stand, json!({ "name": "data", "size_gb": 1 })).await?;
    let machine = database(&stand, &image, &data).await?;
    let address = machine.address().await?;
    let client = connect(&address).await?;
    client.batch_execute("create table ledger (number bigint primary key)").await?;
    let fill = "cd /usr/lib/postgresql/*/bin && ./pgbench -h /tmp -U postgres -i -q postgres 2>&1";
    machine.shell(fill).await?;

    let counts = Arc::new(Counts::default());
    let inserting = AbortOnDropHandle::new(tokio::spawn(insert(address.clone(), counts.clone())));
    let mut snapshots = Vec::new();
    tokio::select! {
        disturbed = disturb(&stand, &machine, &data, &counts) => disturbed?,
        taken = take(&stand, &data, &counts, &mut snapshots) => taken?,
    }
    eprintln!("{} snapshots", snapshots.len());

    // To restore one takes ten seconds and more under emulation.
    for (snapshot, before) in snapshots.into_iter().step_by(if is_short() { 3 } else { 1 }) {
        let restored = begin(&stand, json!({ "name": "restored", "snapshot_id": snapshot }));
        let restored = restored.await?;
        let beside = database(&stand, &image, &restored).await?;
        let client = connect(&beside.address().await?).await?;
        has_all(&client, before).await.with_context(|| format!("snapshot {snapshot}"))?;
        until_volume(&stand, &restored, "created").await?;
        beside.destroy().await?;
        stand.server.api().delete(&format!("{}/{restored}", volumes())).await?.ok()?;
    }
    goes_on("acknowledged rows", &counts.acknowledged).await?;
    drop(inserting);
    has_all(&connect(&address).await?, counts.acknowledged.load(Ordering::SeqCst)).await?;
    machine.destroy().await
}
