//! 50 machines of 256 MB started at once, until each has said its first words; beside it 50
//! containers.

use std::time::Instant;

use anyhow::Result;
use futures::future::try_join_all;

use crate::{
    bench::Bench,
    cpu::{self, milliseconds},
    machine::{Machine, PROGRAM, config},
    progress::progress,
    report::Promise,
    rival::Rival,
    server::{IMAGE, Pool, Server},
    statistics::percentile,
};

const CROWD: usize = 50;

/// Percentiles of one side's runs.
#[derive(Default)]
struct Side {
    p50: Vec<f64>,
    p99: Vec<f64>,
    all: Vec<f64>,
}

impl Side {
    fn add(&mut self, times: &[f64]) {
        for (list, percent) in
            [(&mut self.p50, 50.0), (&mut self.p99, 99.0), (&mut self.all, 100.0)]
        {
            list.extend(percentile(times, percent));
        }
    }
}

/// Measures the row.
///
/// # Errors
/// When not all start.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let (server, rival) = (bench.server(Pool::On).await?, bench.rival().await?);
    progress("crowd: making 50 machines and 50 containers");
    let config = config(IMAGE, PROGRAM);
    let machines =
        try_join_all((0..CROWD).map(|_| Machine::prepare(server.http(), &config))).await?;
    let containers: Vec<_> = (0..CROWD).map(|number| format!("crowd{number}")).collect();
    for container in &containers {
        rival.create(container).await?;
    }
    server.http().connect(CROWD).await?;
    let runs = bench.repeat(3, 1);
    let (mut ours, mut theirs) = (Side::default(), Side::default());
    for run in 0..runs {
        progress(&format!("crowd: {} of {runs}", run + 1));
        ours.add(&start_machines(&server, &machines).await?);
        theirs.add(&start_containers(&rival, &containers).await?);
    }
    let report = &mut bench.report;
    for (key, text, ours, theirs) in [
        ("p50", "p50 until the first output", &ours.p50, &theirs.p50),
        ("p99", "p99", &ours.p99, &theirs.p99),
        ("all", "all", &ours.all, &theirs.all),
    ] {
        report.samples(
            &format!("crowd-{key}"),
            &format!("50 machines at once: {text}"),
            "ms",
            Promise::None,
            ours,
        );
        let beside = format!("beside it: 50 containers at once: {text}");
        report.samples(&format!("podman-crowd-{key}"), &beside, "ms", Promise::None, theirs);
    }
    let text = "50 machines against 50 containers, p50";
    report.ratio("crowd-p50/podman", text, Promise::AtMost(1.0), &ours.p50, &theirs.p50);
    let text = "50 machines against 50 containers, all";
    report.ratio("crowd/podman", text, Promise::AtMost(2.5), &ours.all, &theirs.all);
    Ok(())
}

/// All at once; gives when each said its first words, and stops them.
async fn start_machines(server: &Server, machines: &[Machine]) -> Result<Vec<f64>> {
    let marks = try_join_all(machines.iter().map(Machine::log_end)).await?;
    server.pool_full().await?;
    cpu::rest().await?;
    server.before_start();
    let began = Instant::now();
    let times = try_join_all(machines.iter().zip(marks).map(|(machine, mark)| async move {
        machine.post("start", "").await?;
        machine.first_output(mark).await?;
        anyhow::Ok(milliseconds(began))
    }))
    .await?;
    try_join_all(machines.iter().map(Machine::stop)).await?;
    Ok(times)
}

async fn start_containers(rival: &Rival, containers: &[String]) -> Result<Vec<f64>> {
    cpu::rest().await?;
    let began = Instant::now();
    let started = try_join_all(containers.iter().map(|container| async move {
        let attached = rival.podman().first_output(&["start", "--attach", container]).await?;
        anyhow::Ok((attached, milliseconds(began)))
    }))
    .await?;
    rival.podman().run(&["kill", "--all", "--signal", "INT"]).await?;
    let (attached, times): (Vec<_>, Vec<_>) = started.into_iter().unzip();
    for mut attached in attached {
        attached.wait().await?;
    }
    Ok(times)
}
