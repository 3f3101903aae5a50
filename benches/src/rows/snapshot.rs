//! Snapshots of an encrypted volume whose machine runs: how long its file system stands still while
//! a program writes and syncs; how long a snapshot takes after 1 % has changed, beside one in the
//! same round before which everything has; a fork of the volume in use until it can be mounted; a
//! restore until a program has read from it, beside the time until it has read everything.
//!
//! The volume is where the server keeps its data. What depends on the host's file system is
//! measured on one with reflinks, too: on an XFS in a file, with a larger volume.

use std::{
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use caddis_testkit::run;
use hyper::Method;
use serde_json::{Value, json};

use crate::{
    bench::Bench,
    cpu::milliseconds,
    http::Http,
    machine::{self, APP, Machine, PROGRAM, config},
    progress, registry,
    report::{Promise, Report},
    server::{IMAGE, Pool, Server},
};

/// Random bytes on the volume, MiB, and those that change.
const DATA_MIB: u64 = 512;
const CHANGED_MIB: u64 = 5;
/// Size of the volumes, GiB: without reflinks, and with them.
const SIZE_GB: u64 = 2;
const REFLINK_SIZE_GB: u64 = 40;
/// Snapshots of each round while a program writes.
const WHILE_WRITING: usize = 3;
/// How often a state is asked for.
const LOOK: Duration = Duration::from_millis(2);
/// For a first snapshot, on an emulated processor and a busy host.
const DEADLINE: Duration = Duration::from_secs(180);

/// Overwrites one block and syncs it, again and again, until it is told to end.
const WRITER: &str = "touch /tmp/write; (while [ -e /tmp/write ]; do \
     dd if=/dev/urandom of=/data/block bs=4k count=1 conv=notrunc,fsync; done) \
     >/dev/null 2>&1 &";

/// What is promised.
const MOST_STILL_MS: f64 = 50.0;
const MOST_STILL_REFLINK_MS: f64 = 20.0;
const MOST_ADDED: f64 = 1.2;
const MOST_OF_FULL: f64 = 0.25;
const MOST_FORK_MS: f64 = 100.0;
const MOST_OF_WHOLE: f64 = 0.5;

/// Measures the row.
///
/// # Errors
/// When a snapshot, a fork or a restore fails.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let server = bench.server(Pool::On).await?;
    let is_reflink = has_reflinks(bench.work());
    let mut here = Side::new(server, bench.work(), is_reflink, SIZE_GB).await?;
    // Where the host's own has them, that is the one to know.
    let mut xfs = match is_reflink {
        true => None,
        false => Some(Side::xfs(bench.work()).await),
    };
    let runs = bench.repeat(3, 1);
    let mut full = Vec::new();
    let (mut times, mut added, mut first, mut whole) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for run in 0..runs {
        progress::run("snapshot", run, runs);
        let all = here.changed(0, DATA_MIB).await?;
        full.push(all.ms);
        let part =
            here.changed(37 * (run as u64 + 1) % (DATA_MIB - CHANGED_MIB), CHANGED_MIB).await?;
        times.push(part.ms);
        added.push(part.added / (CHANGED_MIB << 20) as f64);
        here.while_writing().await?;
        here.fork().await?;
        if let Some(Ok(side)) = &mut xfs
            && let Err(error) = side.both().await
        {
            xfs = Some(Err(error));
        }
        let restored = here.restore(&all.id).await?;
        first.push(restored.0);
        whole.push(restored.1);
    }
    let report = &mut bench.report;
    here.add_lines(report);
    match &xfs {
        Some(Ok(side)) => side.add_lines(report),
        Some(Err(error)) => report.failed(
            "snapshot-still-reflink",
            "snapshots and forks on XFS in a file",
            &format!("{error:#}"),
        ),
        None => {}
    }
    let none = Promise::None;
    let text = format!("snapshot of {DATA_MIB} MiB, all changed, encrypted, until `created`");
    report.samples("snapshot-full", &text, "ms", none, &full);
    let text = format!("the same with {CHANGED_MIB} MiB of them changed");
    report.samples("snapshot", &text, "ms", none, &times);
    let text = "snapshot of what has changed against one of everything";
    report.ratio("snapshot/full", text, Promise::AtMost(MOST_OF_FULL), &times, &full);
    let text = "bytes that it adds to the store, against those that were changed";
    report.samples("snapshot-added", text, "×", Promise::AtMost(MOST_ADDED), &added);
    let text = "restore, request to a new machine's first read from it";
    report.samples("restore", text, "ms", none, &first);
    let text = "beside it: until the machine has read everything";
    report.samples("restore-whole", text, "ms", none, &whole);
    let text = "restore to the first read against reading everything";
    report.ratio("restore/whole", text, Promise::AtMost(MOST_OF_WHOLE), &first, &whole);
    Ok(())
}

/// A volume in use.
struct Side {
    server: Rc<Server>,
    volume: String,
    machine: Machine,
    /// The host's file system.
    filesystem: String,
    is_reflink: bool,
    size_gb: u64,
    still: Vec<f64>,
    forks: Vec<f64>,
}

/// A snapshot that is there.
struct Taken {
    id: String,
    ms: f64,
    /// Bytes that are new in the store.
    added: f64,
    still: Option<f64>,
}

impl Side {
    async fn new(server: Rc<Server>, place: &Path, is_reflink: bool, size_gb: u64) -> Result<Self> {
        let filesystem = run(["stat", "-f", "-c", "%T", &place.to_string_lossy()])?;
        Self::on(server, filesystem.trim(), is_reflink, size_gb).await
    }

    async fn xfs(work: &Path) -> Result<Self> {
        progress::progress("starting a server with volumes on XFS");
        let server = Rc::new(Server::with_reflinks(work, registry::ADDRESS).await?);
        Self::on(server, "xfs in a file", true, REFLINK_SIZE_GB).await
    }

    async fn on(
        server: Rc<Server>,
        filesystem: &str,
        is_reflink: bool,
        size_gb: u64,
    ) -> Result<Self> {
        let http = server.http();
        let body = json!({
            "name": "bench", "size_gb": size_gb, "encrypted": true, "auto_backup_enabled": false,
        });
        let volume = make(http, body).await?;
        let mut mounted = config(IMAGE, PROGRAM);
        mounted["mounts"] = json!([{ "volume": volume, "path": "/data" }]);
        let machine = Machine::create(http, &mounted).await?;
        machine.first_output(String::new()).await?;
        let (still, forks) = (Vec::new(), Vec::new());
        let filesystem = filesystem.to_owned();
        let mut side =
            Self { server, volume, machine, filesystem, is_reflink, size_gb, still, forks };
        progress::progress("filling a volume");
        // The first one of all; later ones follow it.
        side.changed(0, DATA_MIB).await?;
        Ok(side)
    }

    /// A snapshot after so many MiB were overwritten, from that one on.
    async fn changed(&mut self, at: u64, mib: u64) -> Result<Taken> {
        let line = format!(
            "dd if=/dev/urandom of=/data/bytes bs=1M count={mib} seek={at} conv=notrunc,fsync \
             2>/dev/null"
        );
        self.machine.shell(&line).await?;
        self.snapshot().await
    }

    async fn snapshot(&self) -> Result<Taken> {
        let http = self.server.http();
        let snapshots = format!("{}/snapshots", path(&self.volume));
        let began = Instant::now();
        let asked = machine::json(&http.send(Method::POST, &snapshots, "").await?)?;
        let id = asked["id"].as_str().context("a snapshot without an id")?.to_owned();
        let taken = until(http, &format!("{snapshots}/{id}"), |snapshot| match snapshot["status"]
            .as_str()
            .unwrap_or_default()
        {
            "created" => Ok(true),
            "failed" => bail!("{snapshot}"),
            _ => Ok(false),
        })
        .await?;
        let added = taken["added_size"].as_f64().context("a snapshot without added_size")?;
        Ok(Taken { id, ms: milliseconds(began), added, still: taken["frozen_ms"].as_f64() })
    }

    /// Snapshots while a program writes.
    async fn while_writing(&mut self) -> Result<()> {
        self.machine.shell(WRITER).await?;
        for _ in 0..WHILE_WRITING {
            let taken = self.snapshot().await?;
            self.still.push(taken.still.context("a snapshot without frozen_ms")?);
        }
        self.machine.shell("rm /tmp/write").await.map(drop)
    }

    /// A copy until it can be mounted.
    async fn fork(&mut self) -> Result<()> {
        let http = self.server.http();
        let began = Instant::now();
        let body = json!({ "name": "fork", "source_volume_id": self.volume });
        let fork = path(&make(http, body).await?);
        until(http, &fork, |volume| match volume["state"].as_str().unwrap_or_default() {
            "created" | "hydrating" => Ok(true),
            "failed" => bail!("{volume}"),
            _ => Ok(false),
        })
        .await?;
        self.forks.push(milliseconds(began));
        http.send(Method::DELETE, &fork, "").await.map(drop)
    }

    async fn both(&mut self) -> Result<()> {
        self.while_writing().await?;
        self.fork().await
    }

    /// Milliseconds until a machine has read from a volume that is made from a snapshot, and until
    /// it has read all of it.
    async fn restore(&self, snapshot: &str) -> Result<(f64, f64)> {
        let http = self.server.http();
        self.server.pool_full().await?;
        self.server.before_start();
        let began = Instant::now();
        let volume = make(http, json!({ "name": "restored", "snapshot_id": snapshot })).await?;
        let mut reads = config(IMAGE, &format!("{READ} && {PROGRAM}"));
        reads["mounts"] = json!([{ "volume": volume, "path": "/data" }]);
        let machine = Machine::create(http, &reads).await?;
        machine.first_output(String::new()).await?;
        let first = milliseconds(began);
        machine.shell("cat /data/bytes >/dev/null").await?;
        let whole = milliseconds(began);
        machine.destroy().await?;
        http.send(Method::DELETE, &path(&volume), "").await?;
        Ok((first, whole))
    }

    fn add_lines(&self, report: &mut Report) {
        let (suffix, most, fork) = match self.is_reflink {
            true => ("-reflink", MOST_STILL_REFLINK_MS, Promise::AtMost(MOST_FORK_MS)),
            false => ("", MOST_STILL_MS, Promise::None),
        };
        let on = format!("volume of {} GiB on {}", self.size_gb, self.filesystem);
        let text = format!("snapshot while a program writes, {on}: file system frozen");
        let key = format!("snapshot-still{suffix}");
        report.samples(&key, &text, "ms", Promise::AtMost(most), &self.still);
        let text = format!("fork of the {on} in use, request to mountable");
        report.samples(&format!("fork{suffix}"), &text, "ms", fork, &self.forks);
    }
}

/// Reads a block that nothing has read before.
const READ: &str = "[ $(dd if=/data/bytes bs=4k count=1 skip=100000 2>/dev/null | wc -c) = 4096 ]";

/// Whether files in a directory can share what they hold.
fn has_reflinks(directory: &Path) -> bool {
    let (file, copy) = (directory.join("reflink"), directory.join("reflink-copy"));
    let [from, to] = [&file, &copy].map(|path| path.to_string_lossy().into_owned());
    let copied = std::fs::write(&file, "text")
        .map_err(anyhow::Error::from)
        .and_then(|()| run(["cp", "--reflink=always", &from, &to]));
    for path in [file, copy] {
        // There may be none.
        let _ = std::fs::remove_file(path);
    }
    copied.is_ok()
}

fn path(volume: &str) -> String {
    format!("/v1/apps/{APP}/volumes/{volume}")
}

async fn make(http: &Http, body: Value) -> Result<String> {
    let volumes = format!("/v1/apps/{APP}/volumes");
    let made = machine::json(&http.send(Method::POST, &volumes, &body.to_string()).await?)?;
    Ok(made["id"].as_str().context("a volume without an id")?.to_owned())
}

/// Asks for something until it is as wanted.
async fn until(http: &Http, path: &str, is: impl Fn(&Value) -> Result<bool>) -> Result<Value> {
    let began = Instant::now();
    loop {
        let found = machine::json(&http.send(Method::GET, path, "").await?)?;
        if is(&found)? {
            return Ok(found);
        }
        if began.elapsed() > DEADLINE {
            bail!("{path}: {found}");
        }
        tokio::time::sleep(LOOK).await;
    }
}
