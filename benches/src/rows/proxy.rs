//! The proxy beside nginx, each before the same server: requests per second as fast as answers
//! come, and at a slow rate what they add to the time that the server takes by itself. Proxies have
//! a worker for each processor but the last, which is for the server behind them and for what asks.

use anyhow::Result;

use crate::{
    bench::Bench,
    load::generator::Measured,
    progress,
    report::{Promise, Report},
};
use side::{Load, Side, Sides};

pub(super) mod side;

const ROUNDS: usize = 5;
/// Rounds of loads under which time counts, and how long one takes, milliseconds. Many short ones:
/// where the host itself stands still for some milliseconds, all connections wait for it, and one
/// such wait would be the 99th percentile of a long round.
const TIMED_ROUNDS: usize = 15;
const TIMED_MS: u32 = 300;
/// Requests per second at which nobody has to wait for another.
const SLOW: u32 = 2_000;

/// Loads under which requests per second count.
const FAST: [(&str, &str, Load); 3] = [
    ("http-16", "HTTP, 16 connections", Load::new(16, false)),
    ("http-256", "HTTP, 256 connections", Load::new(256, false)),
    ("tls-16", "TLS, 16 connections", Load::new(16, true)),
];
/// Loads under which time counts.
const TIMED: [(&str, &str, Load); 2] = [
    ("http", "HTTP", Load::new(16, false).per_second(SLOW)),
    ("tls", "TLS", Load::new(16, true).per_second(SLOW)),
];

/// What one round gave of each load.
type Round = Vec<Measured>;

/// Measures the row.
///
/// # Errors
/// When something does not start or answers with errors.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let sides = Sides::start(bench.work(), "proxy", 10).await?;
    let milliseconds = if bench.quick() { 300 } else { 900 };
    let rounds = bench.repeat(ROUNDS, 2);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        progress::run("proxy", round, rounds);
        let (of_proxy, of_nginx) = in_turn(&sides, &FAST, milliseconds).await?;
        ours.push(of_proxy);
        theirs.push(of_nginx);
    }
    let direct_load = Load::new(16, false).per_second(SLOW);
    let (mut timed, mut timed_theirs, mut direct) = (Vec::new(), Vec::new(), Vec::new());
    let rounds = bench.repeat(TIMED_ROUNDS, 3);
    for round in 0..rounds {
        progress::run("proxy, times", round, rounds);
        let (of_proxy, of_nginx) = in_turn(&sides, &TIMED, TIMED_MS).await?;
        timed.push(of_proxy);
        timed_theirs.push(of_nginx);
        direct.push(sides.ask(Side::Server, &direct_load, TIMED_MS).await?);
    }
    let report = &mut bench.report;
    for (number, (key, text, _)) in FAST.iter().enumerate() {
        let rates = |rounds: &[Round]| column(rounds, number, |measured| measured.per_second);
        add_rates(report, key, text, &rates(&ours), &rates(&theirs));
    }
    let busy = column(&theirs, 0, |measured| measured.busy * 100.0);
    let text = "load of the processor by the generator, beside nginx, HTTP, 16 connections";
    report.samples("proxy-generator", text, "%", Promise::None, &busy);
    let p50 = |measured: &Measured| measured.p50_ms;
    let p99 = |measured: &Measured| measured.p99_ms;
    let alone: Vec<f64> = direct.iter().map(|measured| p50(measured) * 1e3).collect();
    let text = format!("beside it: the server without a proxy, {SLOW} requests per second, p50");
    report.samples("server-p50", &text, "µs", Promise::None, &alone);
    for (number, (key, text, _)) in TIMED.iter().enumerate() {
        for (percentile, of) in [("p50", p50 as fn(&Measured) -> f64), ("p99", p99)] {
            let added = |rounds: &[Round]| -> Vec<f64> {
                let times = column(rounds, number, of);
                times.iter().zip(&direct).map(|(time, alone)| (time - of(alone)) * 1e3).collect()
            };
            let (key, text) = (format!("{key}-{percentile}"), format!("{text}, {percentile}"));
            add_times(report, &key, &text, &added(&timed), &added(&timed_theirs));
        }
    }
    Ok(())
}

/// One round of loads, of the proxy and of nginx.
async fn in_turn(
    sides: &Sides,
    loads: &[(&str, &str, Load)],
    milliseconds: u32,
) -> Result<(Round, Round)> {
    let (mut of_proxy, mut of_nginx) = (Round::new(), Round::new());
    for (_, _, load) in loads {
        of_proxy.push(sides.ask(Side::Proxy, load, milliseconds).await?);
        of_nginx.push(sides.ask(Side::Nginx, load, milliseconds).await?);
    }
    Ok((of_proxy, of_nginx))
}

fn column(rounds: &[Round], load: usize, of: impl Fn(&Measured) -> f64) -> Vec<f64> {
    rounds.iter().filter_map(|round| round.get(load)).map(of).collect()
}

fn add_rates(report: &mut Report, key: &str, text: &str, ours: &[f64], theirs: &[f64]) {
    let line = format!("requests per second through the proxy, {text}");
    report.samples(&format!("proxy-{key}"), &line, "/s", Promise::None, ours);
    let line = format!("beside it: through nginx, {text}");
    report.samples(&format!("nginx-{key}"), &line, "/s", Promise::None, theirs);
    let line = format!("requests per second through the proxy against nginx, {text}");
    let promise = Promise::AtLeast(0.8);
    report.ratio(&format!("proxy-{key}/nginx"), &line, promise, ours, theirs);
}

fn add_times(report: &mut Report, key: &str, text: &str, ours: &[f64], theirs: &[f64]) {
    let line = format!("time that the proxy adds, {SLOW} requests per second, {text}");
    report.samples(&format!("proxy-adds-{key}"), &line, "µs", Promise::None, ours);
    let line = format!("beside it: that nginx adds, {text}");
    report.samples(&format!("nginx-adds-{key}"), &line, "µs", Promise::None, theirs);
    let line = format!("time that the proxy adds against nginx, {text}");
    let promise = Promise::AtMost(2.0);
    report.ratio(&format!("proxy-adds-{key}/nginx"), &line, promise, ours, theirs);
}
