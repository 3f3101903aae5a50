//! The proxy with 100 000 apps beside itself with 10: requests per second, each connection asking
//! an app of its own, and how long it takes until a change of one app is in effect.

use std::fs::File;

use anyhow::Result;

use super::proxy::side::{Load, Target, ask, proxy};
use crate::{
    bench::Bench,
    load::{process::Ourselves, proxy::ProxyListening},
    place::Place,
    progress::{self, progress},
    report::Promise,
};

const ROUNDS: usize = 5;
const LOAD: Load = Load::new(16, false);
/// Changes per round.
const CHANGES: usize = 200;

struct Side {
    key: &'static str,
    text: &'static str,
    apps: usize,
    proxy: Ourselves,
    listening: ProxyListening,
    per_second: Vec<f64>,
    changes: Vec<f64>,
}

/// Measures the row.
///
/// # Errors
/// When a proxy does not start or answers with errors.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    progress("routes: filling proxies with apps");
    let place = Place::network()?;
    let (_server, server) = Ourselves::bare(&place, &[b'.'; 1024], true).await?;
    let mut sides = Vec::new();
    for (key, text, apps) in
        [("routes-10", "10 apps", 10), ("routes-100k", "100 000 apps", 100_000)]
    {
        let log = File::create(bench.work().join(format!("{key}.log")))?;
        let (proxy, listening) = proxy(&place, apps, server.port, log).await?;
        let (per_second, changes) = (Vec::new(), Vec::new());
        sides.push(Side { key, text, apps, proxy, listening, per_second, changes });
    }
    let milliseconds = if bench.quick() { 300 } else { 1_000 };
    let rounds = bench.repeat(ROUNDS, 2);
    for round in 0..rounds {
        progress::run("routes", round, rounds);
        for side in &mut sides {
            let target = Target { port: side.listening.http, path: &server.path, apps: side.apps };
            let measured = ask(&place, side.key, &target, &LOAD, milliseconds).await?;
            side.per_second.push(measured.per_second);
            side.proxy.tell(CHANGES.to_string().as_bytes()).await?;
            side.changes.extend(side.proxy.announced::<Vec<f64>>().await?);
        }
    }
    let report = &mut bench.report;
    for Side { key, text, per_second, changes, .. } in &sides {
        let line = format!("requests per second through the proxy, {text}, 16 connections");
        report.samples(key, &line, "/s", Promise::None, per_second);
        let line = format!("a change of one app until it is in effect, {text}");
        report.samples(&format!("{key}-change"), &line, "µs", Promise::None, changes);
    }
    if let [few, many] = &sides[..] {
        let text = "requests per second of 100 000 apps against 10";
        let promise = Promise::AtLeast(0.9);
        report.ratio("routes-100k/10", text, promise, &many.per_second, &few.per_second);
    }
    Ok(())
}
