//! Suspend and resume of a machine of 256 MB whose program holds 100 MB of random bytes: each from
//! the request until a waiting client sees the state. Beside them what the host takes to write as
//! many bytes to a file and through to the disk, and to read them again, and podman's start of a
//! container.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    bench::Bench,
    cpu::milliseconds,
    machine::{Machine, config},
    progress,
    report::Promise,
    rows::start,
    server::{IMAGE, Pool},
};

/// Time between a suspend and the resume after it.
const REST: Duration = Duration::from_millis(500);

/// What is promised of them.
const MOST_WRITES: f64 = 2.0;
const MOST_PODMAN_STARTS: f64 = 1.25;

/// The kernel can't drop what is in a tmpfs, as it could with files on a disk.
const PROGRAM: &str = "mkdir -p /held && mount -t tmpfs held /held && \
     dd if=/dev/urandom of=/held/bytes bs=1M count=100 2>/dev/null && echo ready; \
     trap \"exit 0\" INT; while :; do sleep 1000 & wait; done";

/// Measures the row.
///
/// # Errors
/// When a machine can't be suspended or resumed, or a start was no resume.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let server = bench.server(Pool::On).await?;
    let machine = Machine::create(server.http(), &config(IMAGE, PROGRAM)).await?;
    machine.first_output(String::new()).await?;
    machine.wait("started").await?;
    let mut podman = start::podman(bench).await;
    let mut podman_starts = Vec::new();
    let runs = bench.repeat(20, 3);
    let (mut suspends, mut resumes, mut writes, mut reads) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let beside = bench.work().join("written");
    let snapshot = server.data().join("worker/machines").join(machine.id()).join("memory.snapshot");
    for run in 0..runs {
        progress::run("suspend", run, runs);
        let began = Instant::now();
        machine.post("suspend", "").await?;
        machine.wait("suspended").await?;
        suspends.push(milliseconds(began));

        let (write, read) = copy(&snapshot, &beside)?;
        writes.push(write);
        reads.push(read);

        // A machine that is stopped, not one whose process the kernel is still removing.
        tokio::time::sleep(REST).await;
        let began = Instant::now();
        machine.post("start", "").await?;
        machine.wait("started").await?;
        resumes.push(milliseconds(began));
        let event = machine.start_event().await?;
        ensure!(event["start_kind"] == "resume", "a start that was no resume: {event}");

        if let Ok(side) = &podman {
            match start::sample(side).await {
                Ok(cost) => podman_starts.push(cost.ms),
                Err(error) => podman = Err(error),
            }
        }
    }
    let report = &mut bench.report;
    let promise = Promise::None;
    report.samples(
        "suspend",
        "suspend (256 MB, 100 MB of them random), request to `suspended`",
        "ms",
        promise,
        &suspends,
    );
    report.samples("resume", "resume of it, request to `started`", "ms", promise, &resumes);
    report.samples(
        "write",
        "beside it: as many bytes written to a file, with fdatasync",
        "ms",
        promise,
        &writes,
    );
    report.samples("read", "beside it: read again", "ms", promise, &reads);
    let text = "beside it: `podman start --attach` of a container";
    match &podman {
        Ok(_) => report.samples("podman-start-beside", text, "ms", promise, &podman_starts),
        Err(error) => report.failed("podman-start-beside", text, &format!("{error:#}")),
    }
    let text = "suspend against writing as many bytes";
    report.ratio("suspend/write", text, Promise::AtMost(MOST_WRITES), &suspends, &writes);
    report.ratio(
        "resume/podman",
        "resume against `podman start`",
        Promise::AtMost(MOST_PODMAN_STARTS),
        &resumes,
        if podman.is_ok() { &podman_starts } else { &[] },
    );
    Ok(())
}

/// How long it takes to write what is in a file to another and through to the disk, and to read it
/// again; milliseconds.
fn copy(from: &Path, to: &Path) -> Result<(f64, f64)> {
    let mut bytes = std::fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    let began = Instant::now();
    let mut file = File::create(to)?;
    file.write_all(&bytes)?;
    file.sync_data()?;
    let write = milliseconds(began);
    let began = Instant::now();
    File::open(to)?.read_exact(&mut bytes)?;
    let read = milliseconds(began);
    std::fs::remove_file(to)?;
    Ok((write, read))
}
