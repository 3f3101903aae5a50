//! Suspend and resume of a machine of 256 MB whose program holds 100 MB of random bytes: each from the request until a
//! waiting client sees the state.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::{
    bench::Bench,
    cpu::milliseconds,
    machine::{Machine, config},
    progress,
    report::Promise,
    server::{IMAGE, Pool},
};

/// Time between a suspend and the resume after it.
const REST: Duration = Duration::from_millis(500);

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
    let runs = bench.repeat(20, 3);
    let (mut suspends, mut resumes) = (Vec::new(), Vec::new());
    for run in 0..runs {
        progress::run("suspend", run, runs);
        let began = Instant::now();
        machine.post("suspend", "").await?;
        machine.wait("suspended").await?;
        suspends.push(milliseconds(began));

        // A machine that rests, not one whose process the kernel is still removing.
        tokio::time::sleep(REST).await;
        let began = Instant::now();
        machine.post("start", "").await?;
        machine.wait("started").await?;
        resumes.push(milliseconds(began));
        let event = machine.start_event().await?;
        ensure!(event["start_kind"] == "resume", "a start that was no resume: {event}");
    }
    let report = &mut bench.report;
    let promise = Promise::AtMost(150.0);
    report.samples(
        "suspend",
        "suspend (256 MB, 100 MB of them random), request to `suspended`",
        "ms",
        promise,
        &suspends,
    );
    report.samples("resume", "resume of it, request to `started`", "ms", promise, &resumes);
    Ok(())
}
