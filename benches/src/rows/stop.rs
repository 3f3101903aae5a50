//! Stop of a running machine, from the request until a waiting client sees `stopped`: its VM was
//! killed.

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
/// When a machine does not start or stop.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let server = bench.server(Pool::On).await?;
    let machine = Machine::prepare(server.http(), &config(IMAGE, PROGRAM)).await?;
    let (runs, mut times) = (bench.repeat(20, 3), Vec::new());
    for run in 0..runs {
        progress::run("stop", run, runs);
        let mark = machine.log_end().await?;
        server.before_start();
        machine.post("start", "").await?;
        machine.first_output(mark).await?;
        machine.wait("started").await?;
        // What refills the pool is not part of a stop.
        server.pool_full().await?;
        let began = Instant::now();
        machine.stop().await?;
        times.push(milliseconds(began));
    }
    bench.report.samples(
        "stop",
        "stop, request until a waiting client sees `stopped`",
        "ms",
        Promise::None,
        &times,
    );
    Ok(())
}
