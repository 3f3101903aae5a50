//! Memory of a client connection that was answered once and is idle: the growth of the proxy's
//! proportional share (PSS), over 10 000 of them; beside it that of nginx. nginx has a part of what
//! it needs for each of its `worker_connections` from the start, which is not in its figure. What
//! the kernel keeps for sockets counts for neither.

use std::process::Stdio;

use anyhow::{Result, ensure};

use super::{
    memory::{children, share},
    proxy::side::Sides,
};
use crate::{
    bench::Bench,
    load::{nginx, process::Ourselves},
    place::Place,
    progress,
    report::Promise,
};

const CONNECTIONS: usize = 10_000;
const ROUNDS: usize = 3;

/// Measures the row.
///
/// # Errors
/// When a connection can't be made, or nothing starts.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let rounds = bench.repeat(ROUNDS, 1);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        progress::run("idle", round, rounds);
        // Anew: what a process has given back to its allocator would not be seen as growth.
        let sides = Sides::start(bench.work(), &format!("idle-{round}"), 1).await?;
        let (proxy, port) = sides.proxy();
        ours.push(growth(sides.place(), port, &[proxy.pid()?]).await?);
        let master = sides.nginx().pid();
        let mut processes = children(master);
        processes.push(master);
        theirs.push(growth(sides.place(), nginx::HTTP, &processes).await?);
    }
    let report = &mut bench.report;
    let text = format!("memory of an idle client connection of the proxy, of {CONNECTIONS}, PSS");
    report.samples("idle", &text, "KiB", Promise::None, &ours);
    report.samples("nginx-idle", "beside it: of nginx", "KiB", Promise::None, &theirs);
    let text = "memory of an idle client connection against nginx";
    report.ratio("idle/nginx", text, Promise::None, &ours, &theirs);
    Ok(())
}

/// KiB per connection.
async fn growth(place: &Place, port: u16, processes: &[i32]) -> Result<f64> {
    let before = memory(processes)?;
    let (port, count) = (port.to_string(), CONNECTIONS.to_string());
    let words = ["idle", "--port", &port, "--connections", &count];
    let mut clients = Ourselves::start(place, &words, Stdio::inherit())?;
    let held: usize = clients.announced().await?;
    ensure!(held == CONNECTIONS, "{held} of {CONNECTIONS} connections are there");
    let after = memory(processes)?;
    clients.end().await?;
    Ok((after as f64 - before as f64) / CONNECTIONS as f64 / 1024.0)
}

fn memory(processes: &[i32]) -> Result<u64> {
    processes.iter().map(|pid| share(*pid)).sum()
}
