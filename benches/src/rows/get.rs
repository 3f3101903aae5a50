//! Reads of a machine by the real gateway, over a worker that only lists machines: 10 of them, and
//! 100 000. Beside it a bare axum handler that returns the same bytes. The same generator asks all
//! of them, in turn.

use std::{fs::File, sync::Arc, time::Instant};

use anyhow::Result;

use crate::{
    bench::Bench,
    http::Http,
    load::{
        Listening,
        process::{Ourselves, TIMEOUT, generate},
    },
    place::Place,
    progress::{self, progress},
    report::Promise,
};

const CONNECTIONS: &str = "16";
const ROUNDS: usize = 5;

/// One server and what was measured of it.
struct Side {
    key: &'static str,
    text: &'static str,
    _server: Ourselves,
    listening: Listening,
    per_second: Vec<f64>,
    p99: Vec<f64>,
    /// Of the generator.
    busy: Vec<f64>,
}

/// Measures the row.
///
/// # Errors
/// When a server does not start or answers with errors.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let place = Arc::new(Place::network()?);
    progress("get: filling gateways with machines");
    let log = |name: &str| File::create(bench.work().join(name));
    let (few, many) = (log("get-10.log")?, log("get-100k.log")?);
    let few = Side::gateway(&place, "get-10", "GET of a machine, 10 machines", "10", few).await?;
    let many =
        Side::gateway(&place, "get-100k", "GET of a machine, 100 000 machines", "100000", many)
            .await?;
    many.body(&place).await?;
    let bare = Side::bare(&place, &few.body(&place).await?).await?;
    let mut sides = [bare, few, many];
    // 10 s for each side in all.
    let milliseconds = if bench.quick() { "300" } else { "2000" };
    for round in 0..ROUNDS {
        progress::run("get", round, ROUNDS);
        for side in &mut sides {
            side.sample(&place, milliseconds).await?;
        }
    }
    let report = &mut bench.report;
    for side in &sides {
        let (key, text) = (side.key, side.text);
        report.samples(
            key,
            &format!("{text}, {CONNECTIONS} connections"),
            "/s",
            Promise::None,
            &side.per_second,
        );
        report.samples(
            &format!("{key}-p99"),
            &format!("{text}, p99"),
            "ms",
            Promise::None,
            &side.p99,
        );
    }
    let [bare, few, many] = &sides;
    let text =
        "load of the generator's own processor beside bare: near 100 % bare is faster than shown";
    report.samples("generator", text, "%", Promise::None, &bare.busy);
    for side in [few, many] {
        let (key, text, promise) = (side.key, side.text, Promise::AtMost(1.6));
        report.ratio(
            &format!("bare/{key}"),
            &format!("bare answers per {text}"),
            promise,
            &bare.per_second,
            &side.per_second,
        );
        let late = format!("p99 of {text} against bare");
        report.ratio(
            &format!("{key}-p99/bare"),
            &late,
            Promise::AtMost(1.75),
            &side.p99,
            &bare.p99,
        );
    }
    Ok(())
}

impl Side {
    /// What it logs goes to a file, as that of a service does.
    async fn gateway(
        place: &Place,
        key: &'static str,
        text: &'static str,
        machines: &str,
        log: File,
    ) -> Result<Self> {
        let mut server = Ourselves::start(place, &["gateway", "--machines", machines], log.into())?;
        let listening = server.announced().await?;
        Ok(Self::new(key, text, server, listening))
    }

    async fn bare(place: &Place, body: &[u8]) -> Result<Self> {
        let (server, listening) = Ourselves::bare(place, body, false).await?;
        let text = "beside it: a bare axum handler that returns the same bytes";
        Ok(Self::new("bare", text, server, listening))
    }

    fn new(key: &'static str, text: &'static str, server: Ourselves, listening: Listening) -> Self {
        let (per_second, p99, busy) = (Vec::new(), Vec::new(), Vec::new());
        Self { key, text, _server: server, listening, per_second, p99, busy }
    }

    /// The answer, for the one that is to return the same; it has no line end in it. A gateway that
    /// has not heard of all machines keeps its clients waiting for a while, and then refuses.
    async fn body(&self, place: &Arc<Place>) -> Result<bytes::Bytes> {
        let address = ([127, 0, 0, 1], self.listening.port).into();
        let http = Http::new(place.clone(), address, &self.listening.token);
        let began = Instant::now();
        loop {
            match http.send(hyper::Method::GET, &self.listening.path, "").await {
                Err(_) if began.elapsed() < TIMEOUT => {}
                outcome => return outcome,
            }
        }
    }

    async fn sample(&mut self, place: &Place, milliseconds: &str) -> Result<()> {
        let Listening { port, path, token } = &self.listening;
        let port = port.to_string();
        let words = ["--port", &port, "--path", path, "--token", token];
        let how = ["--connections", CONNECTIONS, "--milliseconds", milliseconds];
        let measured = generate(place, self.key, &[&words[..], &how].concat()).await?;
        self.per_second.push(measured.per_second);
        self.p99.push(measured.p99_ms);
        self.busy.push(measured.busy * 100.0);
        Ok(())
    }
}
