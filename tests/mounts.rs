//! Volumes of machines, as users of the API have them: made, mounted, grown, kept, deleted.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use caddis_testkit::{Host, Machine};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::stand::{APP, Stand};

/// Waits for whoever looks into it.
const IDLE: &str = "echo ready; exec sleep 1000000";

fn volumes() -> String {
    format!("/v1/apps/{APP}/volumes")
}

/// Makes a volume and waits until it is there.
async fn create(stand: &Stand<'_>, body: Value) -> Result<Value> {
    let api = stand.server.api();
    let volume = api.post(&volumes(), body).await?.ok()?;
    until(stand, id(&volume)?, |volume| volume["state"] == "created").await
}

fn id(volume: &Value) -> Result<&str> {
    volume["id"].as_str().with_context(|| format!("no id in {volume}"))
}

async fn get(stand: &Stand<'_>, id: &str) -> Result<Value> {
    stand.server.api().get(&format!("{}/{id}", volumes())).await?.ok()
}

/// A volume once it is as wanted.
async fn until(stand: &Stand<'_>, id: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    let deadline = Instant::now() + caddis_testkit::DEADLINE;
    loop {
        let volume = get(stand, id).await?;
        if is(&volume) {
            return Ok(volume);
        }
        ensure!(Instant::now() < deadline, "{volume}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A machine that waits, with volumes at paths.
async fn machine(stand: &Stand<'_>, mounts: &[(&str, &str)]) -> Result<Machine> {
    let mounts: Vec<_> =
        mounts.iter().map(|(volume, path)| json!({ "volume": volume, "path": path })).collect();
    let machine = stand.script(IDLE, json!({ "mounts": mounts })).await?;
    machine.wait("started").await?;
    Ok(machine)
}

/// The details of the newest start.
async fn start_of(machine: &Machine) -> Result<Value> {
    let events = machine.events().await?;
    let started =
        events.into_iter().find(|event| event["type"] == "start" && event["status"] == "started");
    started.map(|mut event| event["details"].take()).context("no start that succeeded")
}

async fn restart(machine: &Machine) -> Result<()> {
    machine.stop().await?;
    machine.wait("stopped").await?;
    machine.start().await?;
    machine.wait("started").await
}

fn disk(stand: &Stand<'_>, id: &str) -> PathBuf {
    stand.server.data_directory().join("volumes/volumes").join(id).join("disk.qcow2")
}

#[tokio::test]
async fn what_is_on_a_volume_outlives_its_machine_its_vm_and_the_server() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    stand.server.templates().await?;
    let volume = create(&stand, json!({ "name": "data", "size_gb": 1 })).await?;
    let volume = id(&volume)?.to_owned();
    assert_eq!(get(&stand, &volume).await?["encrypted"], true);
    let first = machine(&stand, &[("data", "/data")]).await?;
    until(&stand, &volume, |volume| volume["attached_machine_id"] == first.id()).await?;
    let mounts = first.get().await?["config"]["mounts"].take();
    assert_eq!(
        mounts,
        json!([{
            "volume": volume, "path": "/data", "name": "data", "size_gb": 1, "encrypted": true
        }])
    );
    first.shell("echo secret-words >/data/a; sync /data/a; echo lost >/root/b").await?;
    assert_eq!(first.shell("mount | grep -c ' on /data type ext4'").await?, "1\n");

    restart(&first).await?;
    assert_eq!(first.shell("cat /data/a; ls /root").await?, "secret-words\n");
    assert_eq!(start_of(&first).await?["start_kind"], "template");

    // Its process is killed: what was synced is there.
    first.shell("echo again >>/data/a; sync /data/a").await?;
    let begun = first.newest_event().await?;
    kill(Pid::from_raw(stand.server.vm(&first)?), Signal::SIGKILL)?;
    first.wait_after(&begun, "stopped").await?;
    first.start().await?;
    first.wait("started").await?;
    assert_eq!(first.shell("cat /data/a").await?, "secret-words\nagain\n");

    // The server is killed: the machine has gone on with its volume, and nobody else gets that.
    stand.server.kill().await?;
    stand.server.launch().await?;
    first.wait("started").await?;
    until(&stand, &volume, |volume| volume["attached_machine_id"] == first.id()).await?;
    first.shell("echo after >>/data/a").await?;
    let api = stand.server.api();
    let config = json!({
        "image": stand.busybox()?, "mounts": [{ "volume": volume, "path": "/data" }],
    });
    let refused =
        api.post(&format!("/v1/apps/{APP}/machines"), json!({ "config": config })).await?;
    assert_eq!(refused.status, 412, "{}", refused.text);
    assert!(refused.error().contains(first.id()), "{}", refused.text);
    let refused = api.delete(&format!("{}/{volume}", volumes())).await?;
    assert_eq!(refused.status, 412, "{}", refused.text);

    // An update keeps it, also at another path; another machine has it when this one is gone.
    let config = json!({
        "image": stand.busybox()?,
        "init": { "cmd": ["/bin/sh", "-c", IDLE] },
        "mounts": [{ "volume": volume, "path": "/elsewhere" }],
    });
    let begun = first.newest_event().await?;
    first.post("", json!({ "config": config })).await?.ok()?;
    first.wait_after(&begun, "started").await?;
    assert_eq!(
        first.shell("cat /elsewhere/a; ls -d /data || true").await?,
        "secret-words\nagain\nafter\n"
    );
    first.destroy().await?;
    until(&stand, &volume, |volume| volume["attached_machine_id"].is_null()).await?;
    let second = machine(&stand, &[(&volume, "/data")]).await?;
    assert_eq!(second.shell("cat /data/a").await?, "secret-words\nagain\nafter\n");

    // On the host it is unreadable.
    let bytes = std::fs::read(disk(&stand, &volume))?;
    assert!(!bytes.windows(12).any(|window| window == b"secret-words"));
    second.destroy().await
}

#[tokio::test]
async fn a_volume_grows_under_its_machine_and_tells_its_use() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let volume =
        create(&stand, json!({ "name": "data", "size_gb": 1, "encrypted": false })).await?;
    let volume = id(&volume)?.to_owned();
    let machine = machine(&stand, &[(&volume, "/data")]).await?;
    let total = "df -k /data | awk 'END { print $2 }'";
    let before: u64 = machine.shell(total).await?.trim().parse()?;
    ensure!((900 << 10..1 << 20).contains(&before), "{before} KiB");
    machine.shell("dd if=/dev/zero of=/data/zeroes bs=1M count=64 2>/dev/null; sync").await?;
    // A guest that is slow to answer is not waited for: the answer has older figures then.
    let used =
        until(&stand, &volume, |volume| volume["bytes_used"].as_u64() >= Some(64 << 20)).await?;
    assert_eq!(used["bytes_total"].as_u64().map(|bytes| bytes >> 10), Some(before), "{used}");

    let path = format!("{}/{volume}/extend", volumes());
    let extended = stand.server.api().put(&path, json!({ "size_gb": 3 })).await?.ok()?;
    assert_eq!(extended["needs_restart"], false, "{extended}");
    // The answer does not wait for a guest that takes its time.
    let extended = until(&stand, &volume, |volume| volume["state"] == "created").await?;
    assert_eq!(extended["size_gb"], 3);
    assert!(extended["operation"].is_null(), "the guest has grown it: {extended}");
    let after: u64 = machine.shell(total).await?.trim().parse()?;
    ensure!((2_800 << 10..3 << 20).contains(&after), "{after} KiB");
    let refused = stand.server.api().put(&path, json!({ "size_gb": 2 })).await?;
    assert!((400..500).contains(&refused.status), "{}", refused.text);

    // Growing while it stands still is another start's business.
    machine.stop().await?;
    machine.wait("stopped").await?;
    stand.server.api().put(&path, json!({ "size_gb": 4 })).await?.ok()?;
    until(&stand, &volume, |volume| volume["state"] == "created").await?;
    machine.start().await?;
    machine.wait("started").await?;
    let last: u64 = machine.shell(total).await?.trim().parse()?;
    ensure!(last > after, "{last} KiB");
    assert_eq!(machine.shell("wc -c </data/zeroes").await?.trim(), (64 << 20).to_string());
    Ok(())
}

#[tokio::test]
async fn memory_is_resumed_with_the_volumes_it_was_saved_with_and_no_others() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let volume = create(&stand, json!({ "name": "data", "size_gb": 1 })).await?;
    let volume = id(&volume)?.to_owned();
    let machine = machine(&stand, &[(&volume, "/data")]).await?;
    let boot = "cat /proc/sys/kernel/random/boot_id";
    let first = machine.shell(boot).await?;
    // In the page cache alone when it is saved.
    machine.shell("echo kept >/data/a").await?;
    for _ in 0..2 {
        machine.post("/suspend", Value::Null).await?.ok()?;
        machine.wait("suspended").await?;
        machine.start().await?;
        machine.wait("started").await?;
        assert_eq!(start_of(&machine).await?["start_kind"], "resume");
        assert_eq!(machine.shell(boot).await?, first);
        assert_eq!(machine.shell("cat /data/a").await?, "kept\n");
    }
    machine.shell("sync").await?;
    machine.post("/suspend", Value::Null).await?.ok()?;
    machine.wait("suspended").await?;
    let path = format!("{}/{volume}/extend", volumes());
    stand.server.api().put(&path, json!({ "size_gb": 2 })).await?.ok()?;
    until(&stand, &volume, |volume| volume["state"] == "created").await?;
    machine.start().await?;
    machine.wait("started").await?;
    let start = start_of(&machine).await?;
    assert_ne!(start["start_kind"], "resume", "{start}");
    assert!(start.to_string().contains(&volume), "the reason names the volume: {start}");
    assert_ne!(machine.shell(boot).await?, first);
    assert_eq!(machine.shell("cat /data/a").await?, "kept\n");
    Ok(())
}

#[tokio::test]
async fn volumes_of_one_name_are_given_out_once_each() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let body = json!({
        "name": "data", "size_gb": 1, "encrypted": false, "require_unique_zone": false,
    });
    let (one, two) = (create(&stand, body.clone()).await?, create(&stand, body).await?);
    let config = json!({
        "image": stand.busybox()?,
        "init": { "cmd": ["/bin/sh", "-c", IDLE] },
        "mounts": [{ "volume": "data", "path": "/data" }],
    });
    let path = format!("/v1/apps/{APP}/machines");
    let create = || async { stand.server.api().post(&path, json!({ "config": config })).await };
    let (first, second, third) = tokio::try_join!(create(), create(), create())?;
    let mut given = Vec::new();
    let mut refused = Vec::new();
    for reply in [first, second, third] {
        match reply.status {
            200 => given.push(reply.body["config"]["mounts"][0]["volume"].clone()),
            _ => refused.push(reply),
        }
    }
    given.sort_by_key(ToString::to_string);
    let mut all = vec![one["id"].clone(), two["id"].clone()];
    all.sort_by_key(ToString::to_string);
    assert_eq!(given, all, "each has gone to one machine");
    assert_eq!(refused.len(), 1);
    assert!((400..500).contains(&refused[0].status), "{}", refused[0].text);
    Ok(())
}

#[tokio::test]
async fn a_deleted_volume_can_be_had_back_and_two_fit_a_machine() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let one = create(&stand, json!({ "name": "one", "size_gb": 1, "encrypted": false })).await?;
    let raw = json!({ "name": "two", "size_gb": 1, "encrypted": false, "fstype": "raw" });
    let two = create(&stand, raw).await?;
    let (one, two) = (id(&one)?, id(&two)?);
    let first = machine(&stand, &[(one, "/data"), (two, "/disk")]).await?;
    first
        .shell("echo kept >/data/a; echo bytes | dd of=/disk conv=notrunc 2>/dev/null; sync")
        .await?;
    first.destroy().await?;
    until(&stand, one, |volume| volume["attached_machine_id"].is_null()).await?;

    let api = stand.server.api();
    let path = format!("{}/{one}", volumes());
    api.delete(&path).await?.ok()?;
    let deleted = until(&stand, one, |volume| volume["state"] == "pending_destroy").await?;
    assert!(deleted["deleted_until"].is_string(), "{deleted}");
    let config = json!({
        "image": stand.busybox()?, "mounts": [{ "volume": one, "path": "/data" }],
    });
    let refused =
        api.post(&format!("/v1/apps/{APP}/machines"), json!({ "config": config })).await?;
    assert!((400..500).contains(&refused.status), "{}", refused.text);
    api.post(&format!("{path}/undelete"), Value::Null).await?.ok()?;
    until(&stand, one, |volume| volume["state"] == "created").await?;
    let second = machine(&stand, &[(one, "/data"), (two, "/disk")]).await?;
    assert_eq!(
        second.shell("cat /data/a; dd if=/disk bs=6 count=1 2>/dev/null").await?,
        "kept\nbytes\n"
    );
    Ok(())
}

#[tokio::test]
async fn a_forced_destroy_keeps_what_was_written_and_never_synced() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let volume =
        create(&stand, json!({ "name": "data", "size_gb": 1, "encrypted": false })).await?;
    let first = machine(&stand, &[("data", "/data")]).await?;
    first.shell("echo row >/data/table").await?;
    first.destroy().await?;
    until(&stand, id(&volume)?, |volume| volume["attached_machine_id"].is_null()).await?;
    let second = machine(&stand, &[("data", "/data")]).await?;
    assert_eq!(second.shell("cat /data/table").await?, "row\n");
    Ok(())
}
