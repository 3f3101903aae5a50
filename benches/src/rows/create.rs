//! Create from an image on the host, from the request to the program's first output; beside it
//! `podman run`.

use std::time::Instant;

use anyhow::{Result, ensure};

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
/// When something can't be started.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let (server, rival) = (bench.server(Pool::On).await?, bench.rival().await?);
    let (config, runs) = (config(IMAGE, PROGRAM), bench.repeat(20, 3));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..runs {
        progress::run("create", run, runs);
        server.pool_full().await?;
        server.before_start();
        let began = Instant::now();
        let machine = Machine::create(server.http(), &config).await?;
        machine.first_output(String::new()).await?;
        ours.push(milliseconds(began));
        let event = machine.start_event().await?;
        ensure!(event["start_kind"] == "template", "a start without template: {event}");
        machine.destroy().await?;

        let name = format!("run{run}");
        let began = Instant::now();
        let attached = rival.podman().first_output(&rival.run_words(&name)).await?;
        theirs.push(milliseconds(began));
        rival.end(&name, attached).await?;
    }
    let report = &mut bench.report;
    report.samples(
        "create",
        "create from an image on the host, request to first output",
        "ms",
        Promise::None,
        &ours,
    );
    report.samples(
        "podman-run",
        "beside it: `podman run`, same image and program",
        "ms",
        Promise::None,
        &theirs,
    );
    report.ratio(
        "create/podman",
        "create against `podman run`",
        Promise::AtMost(1.0),
        &ours,
        &theirs,
    );
    Ok(())
}
