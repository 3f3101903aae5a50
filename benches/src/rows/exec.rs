//! A program beside the machine's own, from the request to its answer.

use std::time::Instant;

use anyhow::Result;

use crate::{
    bench::Bench,
    cpu::milliseconds,
    machine::{Machine, PROGRAM, config},
    progress,
    report::Promise,
    server::{IMAGE, Pool},
};

/// Measures the row.
///
/// # Errors
/// When it can't be run.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let server = bench.server(Pool::On).await?;
    server.before_start();
    let machine = Machine::create(server.http(), &config(IMAGE, PROGRAM)).await?;
    machine.first_output(String::new()).await?;
    machine.wait("started").await?;
    server.pool_full().await?;
    let command = r#"{"command":["/bin/true"]}"#;
    // The first one has its program read from the disk.
    machine.post("exec", command).await?;
    let (runs, mut times) = (bench.repeat(20, 5), Vec::new());
    for run in 0..runs {
        progress::run("exec", run, runs);
        let began = Instant::now();
        machine.post("exec", command).await?;
        times.push(milliseconds(began));
    }
    bench.report.samples(
        "exec",
        "exec of `/bin/true`, request to answer",
        "ms",
        Promise::None,
        &times,
    );
    Ok(())
}
