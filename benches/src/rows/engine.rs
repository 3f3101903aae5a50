//! Starts and stops through the durable engine, over VMs that cost nothing; beside it the
//! transactions that they come to, without an engine, into a database on the same disk.

use anyhow::Result;

use crate::{
    bench::Bench,
    engine::{Operations, ourselves},
    progress::progress,
    report::Promise,
};

/// Measures the row.
///
/// # Errors
/// When the engine fails.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    progress("engine: starts and stops");
    let rounds = if bench.quick() { "2" } else { "7" };
    let directory = bench.work().join("engine");
    let found: Operations = ourselves(&directory, &["operations", "--rounds", rounds]).await?;
    let report = &mut bench.report;
    let none = Promise::None;
    report.samples(
        "engine",
        "starts and stops through the engine, 16 at once, no VMs",
        "/s",
        none,
        &found.engine,
    );
    let text = "beside it: as many, if they were nothing but their transactions";
    report.samples("sqlite", text, "/s", none, &found.bare);
    let text = "bare transactions per those through the engine";
    report.ratio("sqlite/engine", text, Promise::AtMost(2.0), &found.bare, &found.engine);
    report.samples(
        "synced",
        "transactions per operation written through to the disk",
        "",
        none,
        &found.synced,
    );
    report.samples("unsynced", "transactions per operation besides", "", none, &found.unsynced);
    report.samples("transaction", "a transaction", "bytes", none, &found.bytes);
    Ok(())
}
