//! A disk that somebody else has filled: nothing of a machine is lost, what frees room works, and
//! so does the server's start.

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use caddis_testkit::{DEADLINE, Host, Machine, Options, run};
use serde_json::{Value, json};

use crate::stand::Stand;

/// A file system of its own for a server's data, which can be filled.
struct Disk {
    mount_point: String,
    filler: PathBuf,
}

impl Disk {
    /// The image store keeps 512 MiB of it for others.
    fn mount(host: &Host, mib: u32) -> Result<Self> {
        let data = host.path("data");
        let mount_point = data.to_string_lossy().into_owned();
        fs::create_dir(&data)?;
        run([
            "mount",
            "-t",
            "tmpfs",
            "-o",
            &format!("size={mib}m,mode=755"),
            "tmpfs",
            &mount_point,
        ])?;
        Ok(Self { mount_point, filler: data.join("filler") })
    }

    fn fill(&self) -> Result<()> {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&self.filler)?;
        for piece in [1 << 20, 4096] {
            let piece = vec![1; piece];
            while file.write_all(&piece).is_ok() {}
        }
        Ok(())
    }

    fn free(&self) -> Result<()> {
        fs::remove_file(&self.filler).context("removing what fills the disk")
    }

    fn unmount(&self) -> Result<()> {
        run(["umount", &self.mount_point]).map(drop)
    }
}

async fn stand<'a>(host: &'a Host) -> Result<Stand<'a>> {
    let arguments = ["--reserved-disk-mb", "0", "--disk-overcommit", "1000", "--pool", "0"]
        .map(str::to_owned)
        .to_vec();
    let stand = Stand::with(host, Options { arguments, ..Options::default() }).await?;
    // One that is just written, and can't be, would make room when it is removed.
    stand.server.templates().await?;
    Ok(stand)
}

async fn until(machine: &Machine, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let shown = machine.get().await?;
        if holds(&shown) {
            return Ok(shown);
        }
        ensure!(Instant::now() < deadline, "not reached: {shown:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn until_held(machine: &Machine) -> Result<Value> {
    until(machine, |shown| {
        shown["host_status"] == "unknown" && shown["host_status_reason"] == "disk_full"
    })
    .await
}

async fn host_status_events(machine: &Machine) -> Result<Vec<Value>> {
    let events = machine.events().await?.into_iter().filter(|event| event["type"] == "host_status");
    Ok(events.map(|mut event| event["details"].take()).collect())
}

/// Copies what is in memory to the disk as soon as it is told to, and says whether it arrived.
const WRITER: &str = "dd if=/dev/urandom of=/dev/shm/a bs=1M count=60 2>/dev/null; echo ready; \
                      while [ ! -e /dev/shm/go ]; do usleep 50000; done; \
                      cp /dev/shm/a /big && sync && echo 3 >/proc/sys/vm/drop_caches && cmp \
                      /dev/shm/a /big && echo same; \
                      exec sleep 1000";

#[tokio::test]
async fn on_a_full_disk_machines_stand_still_until_there_is_room_and_what_frees_room_works()
-> Result<()> {
    let host = Host::new().await?;
    let disk = Disk::mount(&host, 1200)?;
    let mut stand = stand(&host).await?;
    let trap = "trap 'exit 0' INT; echo ready; while :; do sleep 1; done";
    let writer = stand.script(WRITER, json!({})).await?;
    let (idle, other) =
        (stand.script(trap, json!({})).await?, stand.script(trap, json!({})).await?);
    for machine in [&writer, &idle, &other] {
        machine.logged("ready").await?;
    }
    let vm = stand.server.vm(&writer)?;

    disk.fill()?;
    // Its guest may have stood still before it could answer.
    drop(writer.exec(&["touch", "/dev/shm/go"]).await);
    let shown = until_held(&writer).await?;
    assert_eq!(shown["state"], "started", "{shown}");
    assert_eq!(shown["config"]["guest"]["memory_mb"], 256, "{shown}");
    let events = host_status_events(&writer).await?;
    let message = events[0]["message"].as_str().unwrap_or_default();
    assert!(events.len() == 1 && message.contains("disk of the host is full"), "{events:?}");

    // What needs the guest is refused with the cause, at once.
    let exec = writer.post("/exec", json!({ "command": ["true"] })).await?;
    assert!(exec.status == 412 && exec.text.contains("disk of the host is full"), "{}", exec.text);
    let suspend = writer.post("/suspend", Value::Null).await?;
    assert!(
        suspend.status == 412 && suspend.text.contains("disk of the host is full"),
        "{}",
        suspend.text
    );

    // What takes room is refused. The databases have a little left of what they took before.
    let api = stand.server.api();
    let mut refused = None;
    for number in 0..2000 {
        let body = json!({ "app_name": format!("app-{number}"), "org_slug": "personal" });
        let answer = api.post("/v1/apps", body).await?;
        if answer.status >= 300 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.context("an app needs room")?;
    ensure!(
        refused.status == 507 && refused.text.contains("\"disk_full\""),
        "{}: {}",
        refused.status,
        refused.text
    );
    let sick = api.get("/healthz").await?;
    ensure!(sick.status == 503 && sick.text.contains("disk"), "{}", sick.text);

    // What frees room is not, nor is the start of a server, which finds the machine as it stands.
    idle.stop().await?;
    idle.wait("stopped").await?;
    idle.destroy().await?;
    disk.fill()?;
    stand.server.kill().await?;
    stand.server.launch().await?;
    until_held(&writer).await?;
    assert_eq!(stand.server.vm(&writer)?, vm);
    disk.fill()?;
    other.destroy().await?;
    stand.server.terminate().await?;
    stand.server.launch().await?;

    disk.free()?;
    until(&writer, |shown| shown["host_status"] == "ok").await?;
    writer.logged("same").await?;
    let events = host_status_events(&writer).await?;
    assert_eq!(events[0]["host_status"], "ok", "{events:?}");
    assert_eq!(stand.server.vm(&writer)?, vm);
    let whole = || fs::metadata(host.path("data/reserve")).is_ok_and(|file| file.len() == 16 << 20);
    let deadline = Instant::now() + DEADLINE;
    while !whole() {
        ensure!(Instant::now() < deadline, "the reserve is not made whole again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // One that stands still does not heed its signal: it is ended after its time.
    disk.fill()?;
    let write = "dd if=/dev/urandom of=/more bs=1M count=120 conv=fsync >/dev/null 2>&1 &";
    drop(writer.exec(&["/bin/sh", "-c", write]).await);
    until_held(&writer).await?;
    writer.post("/stop", json!({ "timeout": "1s" })).await?.ok()?;
    writer.wait("stopped").await?;
    let exit = writer.exit_event().await?;
    assert_eq!(
        (&exit["requested_stop"], &exit["cause"]),
        (&json!(true), &json!("killed")),
        "{exit}"
    );
    assert_eq!(writer.get().await?["host_status"], "ok", "nothing of it stands still any more");
    writer.destroy().await?;
    stand.server.until_no_vm().await?;
    drop(stand);
    disk.unmount()
}

#[tokio::test]
async fn a_resumed_machine_whose_memory_lies_on_a_full_disk_is_told_as_that() -> Result<()> {
    let host = Host::new().await?;
    let disk = Disk::mount(&host, 1200)?;
    let stand = stand(&host).await?;
    let machine = stand.script("echo ready; exec sleep 1000", json!({})).await?;
    machine.logged("ready").await?;
    machine.post("/suspend", Value::Null).await?.ok()?;
    machine.wait("suspended").await?;
    machine.start().await?;
    machine.wait("started").await?;
    assert_eq!(machine.get().await?["start_kind"], "resume");

    disk.fill()?;
    // Takes pages that were empty when it was saved. It may not live to answer.
    let touch = ["dd", "if=/dev/zero", "of=/dev/shm/a", "bs=1M", "count=100"];
    drop(machine.exec(&touch).await);
    machine.wait("stopped").await?;
    let exit = machine.exit_event().await?;
    let message = exit["message"].as_str().unwrap_or_default();
    assert!(exit["cause"] == "disk_full" && message.contains("disk of the host is full"), "{exit}");
    disk.free()?;
    machine.start().await?;
    machine.wait("started").await?;
    if machine.get().await?["start_kind"] == "resume" {
        bail!("what was saved is used once");
    }
    drop(stand);
    disk.unmount()
}
