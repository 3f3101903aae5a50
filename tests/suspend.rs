//! Suspend and resume of real VMs.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use caddis_testkit::{Host, Machine, Options};
use serde_json::{Value, json};

use crate::stand::{Stand, rounds};

/// Writes a number and the time of day, over and over; the number lives in its memory alone.
const COUNTER: &str = "n=0; [ -e /on-disk ] || echo kept >/on-disk; httpd -p 80 -h /; while :; do \
                       n=$((n+1)); \
                       echo $n $(adjtimex | awk '/time.tv_sec/ { s = $NF } /time.tv_usec/ { \
                       printf \"%d.%06d\", s, $NF }'); \
                       usleep 50000; done";

async fn started(machine: &Machine) -> Result<Value> {
    let events = machine.events().await?;
    let event =
        events.into_iter().find(|event| event["type"] == "start" && event["status"] == "started");
    event.map(|mut event| event["details"].take()).context("no start that succeeded")
}

async fn suspend(machine: &Machine) -> Result<()> {
    machine.post("/suspend", Value::Null).await?.ok()?;
    machine.wait("suspended").await
}

async fn resume(machine: &Machine) -> Result<Value> {
    machine.start().await?;
    machine.wait("started").await?;
    started(machine).await
}

/// Numbers and times that were logged.
async fn counted(machine: &Machine) -> Result<Vec<(u64, f64)>> {
    let lines = machine.logs().await?;
    let parse = |line: &String| {
        let (number, time) = line.split_once(' ')?;
        Some((number.parse().ok()?, time.parse().ok()?))
    };
    Ok(lines.iter().filter_map(parse).collect())
}

async fn until_counted(machine: &Machine, beyond: u64) -> Result<()> {
    let deadline = std::time::Instant::now() + caddis_testkit::DEADLINE;
    while counted(machine).await?.last().is_none_or(|(number, _)| *number <= beyond) {
        ensure!(
            std::time::Instant::now() < deadline,
            "it does not go on: {:?}",
            machine.logs().await?
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[tokio::test]
async fn a_resumed_machine_goes_on_where_it_was_and_knows_the_time() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let machine = stand.script(COUNTER, json!({})).await?;
    machine.wait("started").await?;
    until_counted(&machine, 3).await?;
    let boot = machine.shell("cat /proc/sys/kernel/random/boot_id").await?;
    // So that it knows its gateway when it is saved.
    assert_eq!(machine.http_get(80, "/on-disk").await?, "kept\n");
    for round in 0..rounds(3, 20) {
        suspend(&machine).await?;
        stand.server.until_no_vm().await?;
        if round == 1 {
            assert!(stand.server.terminate().await?.success());
            stand.server.launch().await?;
        }
        let before = counted(&machine).await?.last().map_or(0, |(number, _)| *number);
        // Long enough for the time to be wrong if nobody told it.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let begun = now();
        let start = resume(&machine).await?;
        assert_eq!(start["start_kind"], "resume", "{start}");
        assert_eq!(machine.get().await?["start_kind"], "resume");
        until_counted(&machine, before + 3).await?;
        let lines = counted(&machine).await?;
        // What it had begun to write when it was held still may be of before; the next line is of
        // after.
        let (_, first) = lines
            .iter()
            .find(|(number, _)| *number == before + 2)
            .context("a line after the resume")?;
        assert!(
            *first > begun - 0.1 && *first < now() + 0.1,
            "round {round}: its clock said {first} at {begun}"
        );
        let numbers: Vec<_> = lines.iter().map(|(number, _)| *number).collect();
        let expected: Vec<_> = (numbers[0]..).take(numbers.len()).collect();
        assert_eq!(numbers, expected, "no line is lost, none comes twice");
    }
    assert_eq!(
        machine.shell("cat /proc/sys/kernel/random/boot_id").await?,
        boot,
        "it is the same boot"
    );
    assert_eq!(machine.shell("cat /.caddis/start_kind").await?.trim(), "resume");
    // What it knows of its gateway is true behind another tap; else it would find out only after
    // half a minute.
    let known = machine.shell("ip -6 neigh show | awk '$1 == \"fe80::1\" { print $5 }'").await?;
    let taps = stand.server.run_in_namespace(&["ip", "-oneline", "link"])?;
    let taps: Vec<_> = taps.lines().filter(|line| line.contains(": caddis")).collect();
    assert!(!taps.is_empty() && known.trim().len() == 17, "{known} {taps:#?}");
    assert!(taps.iter().all(|tap| tap.contains(known.trim())), "{known} {taps:#?}");
    assert_eq!(machine.http_get(80, "/on-disk").await?, "kept\n", "its network goes on");
    machine.stop().await?;
    machine.wait("stopped").await
}

#[tokio::test]
async fn a_damaged_or_foreign_snapshot_is_never_run() -> Result<()> {
    let host = Host::new().await?;
    // A QEMU that can be made another one.
    let (qemu, version) = (host.path("qemu"), host.path("version"));
    fs::write(&version, "")?;
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && [ -s {0} ] && exec cat {0}\nexec \
         qemu-system-x86_64 \"$@\"\n",
        version.display()
    );
    fs::write(&qemu, script)?;
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755))?;
    let arguments = vec!["--qemu".to_owned(), qemu.display().to_string()];
    let mut stand = Stand::with(&host, Options { arguments, ..Options::default() }).await?;
    let machine = stand.script(COUNTER, json!({})).await?;
    machine.wait("started").await?;
    let snapshot = stand
        .server
        .data_directory()
        .join("worker/machines")
        .join(machine.id())
        .join("memory.snapshot");

    let flip = |at: fn(usize) -> usize| -> Result<()> {
        let mut bytes = fs::read(&snapshot)?;
        let at = at(bytes.len());
        bytes[at] ^= 1;
        Ok(fs::write(&snapshot, bytes)?)
    };
    let damages = [
        ("middle", "chunk"),
        ("devices", "device state"),
        ("end", "damaged"),
        ("cut", "damaged"),
        ("lost", "is lost"),
    ];
    for (name, words) in damages {
        until_counted(&machine, 0).await?;
        suspend(&machine).await?;
        assert_eq!(fs::metadata(&snapshot)?.permissions().mode() & 0o777, 0o600);
        match name {
            "middle" => flip(|length| length / 2)?,
            // Behind 256 MiB of memory.
            "devices" => flip(|_| (256 << 20) + 3)?,
            "end" => flip(|length| length - 1)?,
            "cut" => fs::File::options()
                .write(true)
                .open(&snapshot)?
                .set_len(fs::metadata(&snapshot)?.len() / 2)?,
            _ => fs::remove_file(&snapshot)?,
        }
        let start = resume(&machine).await?;
        let reason = start["start_reason"].as_str().unwrap_or_default();
        assert_ne!(start["start_kind"], "resume", "{name}");
        assert!(
            reason.contains("could not be resumed") && reason.contains(words),
            "{name}: {reason}"
        );
        assert_eq!(
            machine.shell("cat /on-disk").await?.trim(),
            "kept",
            "{name}: its disk is the one it had"
        );
        assert!(!snapshot.exists(), "{name}");
    }

    until_counted(&machine, 0).await?;
    suspend(&machine).await?;
    stand.server.terminate().await?;
    fs::write(&version, "QEMU emulator version 7.2.0 (another)\n")?;
    stand.server.launch().await?;
    let start = resume(&machine).await?;
    assert_ne!(start["start_kind"], "resume");
    assert!(start["start_reason"].as_str().unwrap_or_default().contains("another QEMU"), "{start}");
    Ok(())
}

#[tokio::test]
async fn a_start_while_it_suspends_keeps_the_vm() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let machine = stand.script(COUNTER, json!({})).await?;
    machine.wait("started").await?;
    until_counted(&machine, 1).await?;
    let (mut called_off, mut resumed) = (0, false);
    for round in 0..rounds(4, 40) {
        let before = counted(&machine).await?.last().map_or(0, |(number, _)| *number);
        let event = machine.newest_event().await?;
        machine.post("/suspend", Value::Null).await?.ok()?;
        // From the very beginning to when it is nearly done.
        tokio::time::sleep(Duration::from_millis(u64::from(round % 4) * 30)).await;
        machine.start().await?;
        machine.wait_after(&event, "started").await?;
        until_counted(&machine, before + 2).await?;
        let start = started(&machine).await?;
        called_off += u32::from(start["start_kind"] == "none");
        assert!(
            ["none", "resume"].contains(&start["start_kind"].as_str().unwrap_or_default()),
            "{start}"
        );
        resumed |= start["start_kind"] == "resume";
        let told = machine.shell("cat /.caddis/start_kind 2>/dev/null || true").await?;
        assert_eq!(told.trim(), if resumed { "resume" } else { "" }, "round {round}");
    }
    assert!(called_off > 0, "none was early enough");
    let numbers: Vec<_> = counted(&machine).await?.iter().map(|(number, _)| *number).collect();
    let expected: Vec<_> = (numbers[0]..).take(numbers.len()).collect();
    assert_eq!(numbers, expected, "its program never noticed");
    Ok(())
}

#[tokio::test]
async fn a_server_killed_while_it_suspends_or_resumes_loses_nothing() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let machine = stand.script(COUNTER, json!({})).await?;
    machine.wait("started").await?;
    until_counted(&machine, 1).await?;
    for round in 0..rounds(6, 60) {
        // From at once to when it is done, one request after the other.
        let moment = Duration::from_millis(u64::from(round % 6) * 40);
        let before = counted(&machine).await?.last().map_or(0, |(number, _)| *number);
        machine.post("/suspend", Value::Null).await?.ok()?;
        tokio::time::sleep(moment).await;
        stand.server.kill().await?;
        stand.server.launch().await?;
        machine.wait("suspended").await?;
        stand.server.until_no_vm().await?;
        machine.start().await?;
        tokio::time::sleep(moment).await;
        stand.server.kill().await?;
        stand.server.launch().await?;
        machine.wait("started").await?;
        assert_eq!(stand.server.vms().len(), 1, "round {round}");
        let start = started(&machine).await?;
        // Killed between the end of a snapshot and the word of it, a machine starts anew, and its
        // event says so.
        if start["start_kind"] == "resume" {
            until_counted(&machine, before + 2).await?;
        }
        assert!(
            machine.events().await?.iter().all(|event| event["type"] != "exit"),
            "round {round}: {start}"
        );
    }
    machine.destroy().await
}

#[tokio::test]
async fn machines_that_may_not_be_suspended_are_told_why() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let guest = json!({ "guest": { "cpu_kind": "shared", "cpus": 2, "memory_mb": 4096 } });
    let machine = stand.script("exec sleep 1000", guest).await?;
    machine.wait("started").await?;
    let refused = machine.post("/suspend", Value::Null).await?;
    assert_eq!(refused.status, 412);
    assert!(
        refused.error().contains("unable to suspend machine: it has 4096 MiB"),
        "{}",
        refused.error()
    );
    let shown =
        stand.server.cli(&["machine", "suspend", machine.id(), "-a", crate::stand::APP]).await?;
    assert_eq!(shown.code, Some(1));
    assert!(shown.stderr.contains("4096 MiB"), "{}", shown.stderr);
    let small = stand.script("exec sleep 1000", json!({})).await?;
    small.wait("started").await?;
    let arguments =
        ["machine", "suspend", small.id(), "-a", crate::stand::APP, "--wait-timeout", "60s"];
    let shown = stand.server.cli(&arguments).await?;
    assert!(
        shown.stdout.contains(&format!("{} has been suspended", small.id())),
        "{}",
        shown.stdout
    );
    Ok(())
}
