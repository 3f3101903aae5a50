//! Start of a stopped machine, from the request to its program's first output: with a restored VM
//! waiting, without and with a volume, with the pool just emptied, without a pool; beside it the
//! same machine as a cold boot, and podman's start of a container that is there. With each what it
//! costs the host's processors.

pub(super) mod side;

use anyhow::{Context as _, Result, bail};

use crate::{
    bench::Bench,
    cpu::Cost,
    progress,
    report::{Promise, Report},
    server::Pool,
    statistics::differences,
};
use side::Side;

/// So often a sample is taken anew that was disturbed.
const ATTEMPTS: usize = 5;
/// What is promised of a start with a volume.
const MOST_LONGER_MS: f64 = 30.0;

/// A side, until something is wrong with it, and what it cost.
struct Measured {
    key: &'static str,
    text: &'static str,
    side: Result<Side>,
    costs: Vec<Cost>,
}

/// Measures the row.
///
/// # Errors
/// When a server does not start. Sides that can't be measured are lines of the report.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let (pooled, off) = (bench.server(Pool::On).await?, bench.server(Pool::Off).await?);
    let podman = podman(bench).await;
    let side = |key, text, side| Measured { key, text, side, costs: Vec::new() };
    let mut sides = [
        side(
            "start-hit",
            "start with a restored VM waiting, request to first output",
            Side::hit(&pooled).await,
        ),
        side(
            "start-volume",
            "the same of a machine with an encrypted volume",
            Side::with_volume(&pooled).await,
        ),
        side("start-empty", "start with the pool empty", Side::empty(&pooled).await),
        side("start-off", "the same without a pool", Side::off(&off).await),
        side("start-cold", "beside it: the same machine as a cold boot", Side::cold(&off).await),
        side("podman-start", "beside it: `podman start --attach`, same image and program", podman),
    ];
    let runs = bench.repeat(20, 3);
    for run in 0..runs {
        progress::run("start", run, runs);
        for measured in &mut sides {
            let Ok(side) = &measured.side else { continue };
            match sample(side).await {
                Ok(cost) => measured.costs.push(cost),
                Err(error) => measured.side = Err(error),
            }
        }
    }
    add_lines(&mut bench.report, &sides);
    Ok(())
}

/// The container, if there can be one.
pub(super) async fn podman(bench: &mut Bench) -> Result<Side> {
    Side::podman(&bench.rival().await?).await
}

/// Takes one sample, again when it was disturbed.
pub(super) async fn sample(side: &Side) -> Result<Cost> {
    let mut reason = None;
    for _ in 0..ATTEMPTS {
        match side.sample().await {
            Ok(cost) => return Ok(cost),
            Err(error) => reason = Some(error),
        }
        side.end().await.context("ending what was started")?;
    }
    match reason {
        Some(error) => Err(error.context(format!("{ATTEMPTS} times in a row"))),
        None => bail!("no attempt was made"),
    }
}

fn add_lines(report: &mut Report, sides: &[Measured; 6]) {
    // Rounds of one side are compared with the same rounds of another: one that fell out has none.
    let costs = |measured: &Measured| {
        if measured.side.is_ok() { measured.costs.clone() } else { Vec::new() }
    };
    let [hit, volume, empty, off, cold, podman] = sides;
    for measured in sides {
        match &measured.side {
            Ok(_) => report.samples(
                measured.key,
                measured.text,
                "ms",
                Promise::None,
                &times(&measured.costs),
            ),
            Err(error) => report.failed(measured.key, measured.text, &format!("{error:#}")),
        }
    }
    let longer = differences(&times(&costs(volume)), &times(&costs(hit)));
    report.samples(
        "start-volume-adds",
        "what a start with an encrypted volume takes longer",
        "ms",
        Promise::AtMost(MOST_LONGER_MS),
        &longer,
    );
    let mut ratio = |key: &str, text: &str, promise, over, under| {
        report.ratio(key, text, promise, &times(&costs(over)), &times(&costs(under)));
    };
    ratio(
        "start-hit/podman",
        "start with a VM waiting against `podman start`",
        Promise::AtMost(1.0),
        hit,
        podman,
    );
    ratio(
        "cold/start-hit",
        "cold boot against start with a VM waiting",
        Promise::AtLeast(4.0),
        cold,
        hit,
    );
    ratio(
        "start-empty/podman",
        "start with the pool empty against `podman start`",
        Promise::AtMost(3.0),
        empty,
        podman,
    );
    // Both are emulation: it depends on the processor alone how podman compares with that.
    ratio(
        "cold/start-empty",
        "cold boot against start with the pool empty",
        Promise::AtLeast(4.0),
        cold,
        empty,
    );
    ratio(
        "start-off/podman",
        "start without a pool against `podman start`",
        Promise::None,
        off,
        podman,
    );
    ratio("cold/start-off", "cold boot against start without a pool", Promise::None, cold, off);
    // While the pool is emptied other starts cost processor time too.
    for measured in [hit, off, cold, podman] {
        add_busy(report, measured.key, &costs(measured));
    }
    report.ratio(
        "start-hit-cpu-all/cold",
        "host CPU of start-hit against that of start-cold, until the host is quiet",
        Promise::AtMost(0.3),
        &until_quiet(&costs(hit)),
        &until_quiet(&costs(cold)),
    );
}

fn until_quiet(costs: &[Cost]) -> Vec<f64> {
    costs.iter().filter_map(|cost| cost.busy).map(|busy| busy.until_quiet_ms).collect()
}

fn add_busy(report: &mut Report, key: &str, costs: &[Cost]) {
    let meanwhile: Vec<_> =
        costs.iter().filter_map(|cost| cost.busy).map(|busy| busy.meanwhile_ms).collect();
    for (suffix, text, samples) in [
        ("cpu", "until the output", meanwhile),
        ("cpu-all", "until the host is quiet", until_quiet(costs)),
    ] {
        let (key, text) = (format!("{key}-{suffix}"), format!("host CPU of {key}, {text}"));
        // A few quiet moments of a busy host are no measurement.
        if samples.len() * 2 > costs.len() {
            report.samples(&key, &text, "ms", Promise::None, &samples);
        } else {
            let reason =
                format!("the host was quiet before {} of {} runs only", samples.len(), costs.len());
            report.failed(&key, &text, &reason);
        }
    }
}

fn times(costs: &[Cost]) -> Vec<f64> {
    costs.iter().map(|cost| cost.ms).collect()
}
