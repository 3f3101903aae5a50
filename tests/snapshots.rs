//! Snapshots of volumes of real VMs, restores and forks: taken while programs write, read beside
//! them, and what is left when a server is killed meanwhile.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use caddis_testkit::{DEADLINE, Host, Machine, process, run};
use serde_json::{Value, json};

use crate::stand::{APP, Stand};

/// Waits for whoever looks into it.
const IDLE: &str = "echo ready; exec sleep 1000000";
/// Appends a number to a file, writes it through, and notes it as acknowledged, again and again.
const WRITER: &str = "i=0; echo ready; while :; do i=$((i+1)); echo $i >>/data/numbers; \
                      sync /data/numbers; echo $i >/acknowledged; done";

fn volumes() -> String {
    format!("/v1/apps/{APP}/volumes")
}

fn snapshots(volume: &str) -> String {
    format!("{}/{volume}/snapshots", volumes())
}

fn id(of: &Value) -> Result<String> {
    Ok(of["id"].as_str().with_context(|| format!("no id in {of}"))?.to_owned())
}

/// What is at a path of the API, once it is as wanted.
async fn until(stand: &Stand<'_>, path: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let found = stand.server.api().get(path).await?.ok()?;
        if is(&found) {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{path}: {found}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn until_volume(stand: &Stand<'_>, volume: &str, state: &str) -> Result<Value> {
    until(stand, &format!("{}/{volume}", volumes()), |volume| volume["state"] == state).await
}

/// Makes a volume, and gives its id at once.
async fn begin(stand: &Stand<'_>, body: Value) -> Result<String> {
    id(&stand.server.api().post(&volumes(), body).await?.ok()?)
}

/// A volume in the clear, so that its file can be looked at.
async fn plain(stand: &Stand<'_>) -> Result<String> {
    let volume = begin(
        stand,
        json!({ "name": "data", "size_gb": 1, "encrypted": false, "auto_backup_enabled": false }),
    );
    let volume = volume.await?;
    until_volume(stand, &volume, "created").await?;
    Ok(volume)
}

async fn machine(stand: &Stand<'_>, script: &str, volume: &str) -> Result<Machine> {
    let mounts = json!([{ "volume": volume, "path": "/data" }]);
    let machine = stand.script(script, json!({ "mounts": mounts })).await?;
    machine.wait("started").await?;
    Ok(machine)
}

/// Takes a snapshot, and gives it once it is there.
async fn snapshot(stand: &Stand<'_>, volume: &str) -> Result<Value> {
    let asked = stand.server.api().post(&snapshots(volume), json!({})).await?.ok()?;
    created(stand, volume, &id(&asked)?).await
}

async fn created(stand: &Stand<'_>, volume: &str, snapshot: &str) -> Result<Value> {
    let path = format!("{}/{snapshot}", snapshots(volume));
    let is_over =
        |snapshot: &Value| matches!(snapshot["status"].as_str(), Some("created" | "failed"));
    let snapshot = until(stand, &path, is_over).await?;
    ensure!(snapshot["status"] == "created", "{snapshot}");
    Ok(snapshot)
}

/// How far the writer was told that its numbers are on the disk.
async fn acknowledged(machine: &Machine) -> Result<u64> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let text = machine.shell("cat /acknowledged 2>/dev/null || echo 0").await?;
        // It may be just being written.
        if let Ok(number) = text.trim().parse()
            && number > 0
        {
            return Ok(number);
        }
        ensure!(Instant::now() < deadline, "nothing is written: {text}");
    }
}

/// The numbers that are in a file, which must be all up to the last.
async fn numbers(machine: &Machine) -> Result<u64> {
    let text = machine.shell("cat /data/numbers").await?;
    let mut last = 0;
    for (expected, line) in (1_u64..).zip(text.lines()) {
        ensure!(line.parse() == Ok(expected), "'{line}' in place of {expected}");
        last = expected;
    }
    Ok(last)
}

fn disk(stand: &Stand<'_>, volume: &str) -> PathBuf {
    stand.server.data_directory().join("volumes/volumes").join(volume).join("disk.qcow2")
}

/// Whether the file system of a volume that nobody uses is clean as it is, nothing of its journal
/// being replayed.
fn check_file_system(stand: &Stand<'_>, host: &Host, volume: &str) -> Result<()> {
    let raw = host.path(&format!("{volume}.raw"));
    let words = |path: &Path| path.display().to_string();
    let disk = words(&disk(stand, volume));
    run(["qemu-img", "convert", "-O", "raw", disk.as_str(), words(&raw).as_str()])?;
    let told = run(["e2fsck", "-fn", words(&raw).as_str()])?;
    ensure!(!told.contains("recovering journal"), "{told}");
    let features = run(["dumpe2fs", "-h", words(&raw).as_str()])?;
    ensure!(!features.contains("needs_recovery"), "{features}");
    Ok(std::fs::remove_file(raw)?)
}

/// Nothing has the files of volumes open but VMs: no program of the server is left.
async fn until_only_vms(stand: &Stand<'_>) -> Result<()> {
    let directory = stand.server.data_directory().join("volumes");
    let is_program = |pid: &i32| {
        let name = process::name(*pid).unwrap_or_default();
        name.contains("qemu-img") || name.contains("qemu-storage")
    };
    let deadline = Instant::now() + DEADLINE;
    while process::holders(&directory).iter().any(is_program) {
        ensure!(Instant::now() < deadline, "programs are left");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_snapshot_that_is_taken_while_a_program_writes_is_clean_and_has_all_that_was_synced()
-> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let volume = plain(&stand).await?;
    let writer = machine(&stand, WRITER, &volume).await?;
    // Something that the second one need not read again.
    writer.shell("dd if=/dev/urandom of=/data/random bs=1M count=48 2>/dev/null; sync").await?;
    let sum = writer.shell("md5sum </data/random").await?;
    let before = acknowledged(&writer).await?;
    let first = snapshot(&stand, &volume).await?;
    ensure!(first["size"].as_u64() >= Some(48 << 20), "{first}");
    let between = acknowledged(&writer).await?;
    ensure!(between > before, "the program goes on");

    let second = snapshot(&stand, &volume).await?;
    let log = stand.server.log();
    let read: Vec<u64> = log
        .lines()
        .filter(|line| line.contains("took a snapshot"))
        .filter_map(|line| line.split("read=").nth(1)?.split(' ').next()?.trim().parse().ok())
        .collect();
    ensure!(read.len() == 2 && read[1] < read[0] / 2, "{read:?} bytes were read:\n{log}");

    // Beside it, at once.
    let third = acknowledged(&writer).await?;
    for (snapshot, least) in [(&first, before), (&second, between)] {
        let body = json!({
            "name": "copy", "snapshot_id": id(snapshot)?, "size_gb": 1, "encrypted": false,
            "auto_backup_enabled": false,
        });
        let copy = begin(&stand, body).await?;
        let reader = machine(&stand, IDLE, &copy).await?;
        let last = numbers(&reader).await?;
        ensure!((least..=third).contains(&last), "{last}, {least} were acknowledged");
        assert_eq!(reader.shell("md5sum </data/random").await?, sum);
        reader.shell("echo other >/data/other; sync").await?;
        until_volume(&stand, &copy, "created").await?;
        // It needs the snapshot no more.
        reader.stop().await?;
        reader.wait("stopped").await?;
        reader.start().await?;
        reader.wait("started").await?;
        assert_eq!(
            reader.shell("cat /data/other; md5sum </data/random").await?,
            format!("other\n{sum}")
        );
        reader.destroy().await?;
    }
    // As it was taken, without a machine that mounts it first.
    let body = json!({ "name": "clean", "snapshot_id": id(&second)?, "encrypted": false });
    let clean = begin(&stand, body).await?;
    until_volume(&stand, &clean, "created").await?;
    check_file_system(&stand, &host, &clean)?;
    until_only_vms(&stand).await?;
    assert_eq!(writer.shell("ls /data/other 2>/dev/null || echo none").await?, "none\n");
    writer.destroy().await
}

#[tokio::test]
async fn snapshots_and_restores_go_on_when_the_server_is_killed_and_machines_do_not_notice()
-> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let volume = begin(&stand, json!({ "name": "data", "size_gb": 1 })).await?;
    let writer = machine(&stand, WRITER, &volume).await?;
    writer.shell("dd if=/dev/urandom of=/data/random bs=1M count=96 2>/dev/null; sync").await?;
    let sum = writer.shell("md5sum </data/random").await?;
    let before = acknowledged(&writer).await?;
    let path = snapshots(&volume);
    let asked = id(&stand.server.api().post(&path, json!({})).await?.ok()?)?;
    let path = format!("{path}/{asked}");
    until(&stand, &path, |snapshot| snapshot["status"] != "waiting").await?;
    stand.server.kill().await?;
    stand.server.launch().await?;
    created(&stand, &volume, &asked).await?;
    ensure!(acknowledged(&writer).await? > before, "the program goes on");

    let body = json!({ "name": "copy", "snapshot_id": asked, "size_gb": 1 });
    let copy = begin(&stand, body).await?;
    let reader = machine(&stand, IDLE, &copy).await?;
    stand.server.kill().await?;
    stand.server.launch().await?;
    reader.wait("started").await?;
    assert_eq!(reader.shell("md5sum </data/random").await?, sum);
    ensure!(numbers(&reader).await? >= before);
    until_volume(&stand, &copy, "created").await?;
    reader.stop().await?;
    reader.wait("stopped").await?;
    reader.start().await?;
    reader.wait("started").await?;
    assert_eq!(reader.shell("md5sum </data/random").await?, sum);
    // What is on it is unreadable on the host, and in the store.
    writer.shell("echo secret-words >/data/secret; sync").await?;
    snapshot(&stand, &volume).await?;
    let data = stand.server.data_directory().display().to_string();
    let found =
        run(["sh", "-c", "grep -rl secret-words \"$0\"/volumes \"$0\"/snapshots || true", &data])?;
    assert_eq!(found, "");
    until_only_vms(&stand).await?;
    reader.destroy().await?;
    writer.destroy().await
}

#[tokio::test]
async fn a_volume_that_is_in_use_is_forked_and_the_fork_is_independent() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let volume = begin(&stand, json!({ "name": "data", "size_gb": 1 })).await?;
    let writer = machine(&stand, WRITER, &volume).await?;
    let before = acknowledged(&writer).await?;
    let fork = begin(&stand, json!({ "name": "fork", "source_volume_id": volume })).await?;
    let reader = machine(&stand, IDLE, &fork).await?;
    let last = numbers(&reader).await?;
    ensure!(last >= before, "{last}, {before} were acknowledged");
    until_volume(&stand, &fork, "created").await?;
    reader.shell("echo other >/data/other; sync").await?;
    assert_eq!(writer.shell("ls /data/other 2>/dev/null || echo none").await?, "none\n");
    let listed = stand.server.api().get(&snapshots(&volume)).await?.ok()?;
    assert_eq!(listed, json!([]), "nobody sees what it was made from");
    ensure!(acknowledged(&writer).await? > last, "the program goes on");
    reader.destroy().await?;
    writer.destroy().await
}

#[tokio::test]
async fn a_start_does_not_wait_for_a_snapshot_of_its_volume() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let volume = plain(&stand).await?;
    let owner = machine(&stand, IDLE, &volume).await?;
    owner.shell("dd if=/dev/urandom of=/data/random bs=1M count=200 2>/dev/null; sync").await?;
    owner.stop().await?;
    owner.wait("stopped").await?;
    let asked = stand.server.api().post(&snapshots(&volume), json!({})).await?.ok()?;
    let asked = id(&asked)?;
    let path = format!("{}/{asked}", snapshots(&volume));
    let is_read = |snapshot: &Value| {
        snapshot["operation"]["bytes_done"].as_u64() > Some(0) || snapshot["status"] == "created"
    };
    until(&stand, &path, is_read).await?;
    owner.start().await?;
    owner.wait("started").await?;
    created(&stand, &volume, &asked).await?;
    assert_eq!(owner.shell("ls /data/random").await?, "/data/random\n");
    until_only_vms(&stand).await?;
    owner.destroy().await
}
