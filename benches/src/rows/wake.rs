//! A request through the proxy to a machine that is suspended, or stopped, until the first byte of
//! the answer; in the same rounds the plain resume until `started`, and the plain start until the
//! program listens and says so. Right after these a request goes straight to the machine: what of
//! the difference is the machine's own first answer, and not the proxy's. In another turn of the
//! round nothing waits for `started`: the machine is asked straight from the request for its start
//! on, as fast as can be, which is the least that a request through any proxy could take.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, stream::FuturesUnordered};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use crate::{
    bench::Bench,
    cpu::{self, milliseconds},
    http::connect_in,
    machine::{APP, Machine, config},
    progress,
    report::{Promise, Report},
    server::{IMAGE, Pool, Server},
    statistics::{differences, percentile},
};

/// The proxy's listener for HTTP, where `caddis serve` has it by default.
const PROXY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// Time between a suspend and what resumes after it.
const REST: Duration = Duration::from_millis(500);
/// A further attempt to connect to the machine itself begins after so long.
const ATTEMPT: Duration = Duration::from_millis(20);
/// For the proxy to hear of a new machine.
const TIMEOUT: Duration = Duration::from_secs(20);

/// httpd returns once it listens.
const PROGRAM: &str = "mkdir -p /www && echo hello >/www/index.html && httpd -p 80 -h /www && \
     echo ready; trap \"exit 0\" INT; while :; do sleep 1000 & wait; done";

/// How a machine sleeps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sleep {
    Suspended,
    Stopped,
}

/// Times of one way to sleep, milliseconds.
#[derive(Default)]
struct Times {
    woken: Vec<f64>,
    plain: Vec<f64>,
    /// The plain one and a request after it.
    answered: Vec<f64>,
    /// A plain one that is not waited for, and a request beside it.
    direct: Vec<f64>,
}

/// Measures the row.
///
/// # Errors
/// When a machine does not sleep, does not wake or answers with an error.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let server = bench.server(Pool::On).await?;
    let mut config = config(IMAGE, PROGRAM);
    config["services"] = json!([{
        "protocol": "tcp",
        "internal_port": 80,
        "autostart": true,
        "autostop": "off",
        "ports": [{ "port": 80, "handlers": ["http"] }],
    }]);
    server.before_start();
    let machine = Machine::create(server.http(), &config).await?;
    machine.first_output(String::new()).await?;
    machine.wait("started").await?;
    let address = private_address(&machine.get().await?)?;
    let began = Instant::now();
    while let Err(error) = first_byte(&server, PROXY).await {
        ensure!(began.elapsed() < TIMEOUT, "the proxy does not know the machine: {error:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let runs = bench.repeat(12, 3);
    let (mut suspended, mut stopped, mut warm) = (Times::default(), Times::default(), Vec::new());
    for run in 0..runs {
        progress::run("wake", run, runs);
        for (sleep, times) in [(Sleep::Suspended, &mut suspended), (Sleep::Stopped, &mut stopped)] {
            sleep.begin(&server, &machine).await?;
            sleep.plain(&server, &machine, address, times).await?;
            sleep.begin(&server, &machine).await?;
            sleep.before(&server);
            times.direct.push(directly(&server, &machine, address).await?);
            sleep.check(&machine).await?;
            sleep.begin(&server, &machine).await?;
            sleep.before(&server);
            let began = Instant::now();
            first_byte(&server, PROXY).await?;
            times.woken.push(milliseconds(began));
            sleep.check(&machine).await?;
            let began = Instant::now();
            first_byte(&server, PROXY).await?;
            warm.push(milliseconds(began));
        }
    }
    let report = &mut bench.report;
    add_lines(report, "suspended", "plain resume, request to `started`", &suspended);
    add_lines(report, "stopped", "plain start, request to first output", &stopped);
    let text = "beside it: request to the machine while it runs, to first byte";
    report.samples("wake-not", text, "ms", Promise::None, &warm);
    Ok(())
}

fn add_lines(report: &mut Report, state: &str, plain: &str, times: &Times) {
    let none = Promise::None;
    let text = format!("request to a {state} machine, to first byte of the answer");
    report.samples(&format!("wake-{state}"), &text, "ms", none, &times.woken);
    let text = format!("beside it: {plain}");
    report.samples(&format!("wake-{state}-plain"), &text, "ms", none, &times.plain);
    let text = "beside it: the same, and then a request straight to the machine";
    report.samples(&format!("wake-{state}-direct"), text, "ms", none, &times.answered);
    let text = "beside it: request for its start, to first byte of what the machine says when it \
                is asked straight and at once";
    report.samples(&format!("wake-{state}-least"), text, "ms", none, &times.direct);
    let text = format!("what a request to a {state} machine takes longer than that");
    let longer = differences(&times.woken, &times.direct);
    report.samples(&format!("wake-{state}-adds-least"), &text, "ms", none, &longer);
    let text = format!(
        "what a request to a {state} machine takes longer than one straight to it after \
                 its plain start"
    );
    let longer = differences(&times.woken, &times.answered);
    let most = Promise::AtMost(10.0);
    report.samples(&format!("wake-{state}-adds-direct"), &text, "ms", most, &longer);
    let text = format!("what a request to a {state} machine takes longer than the {plain}, p50");
    let longer = differences(&times.woken, &times.plain);
    report.samples(&format!("wake-{state}-adds"), &text, "ms", none, &longer);
    // Of so few samples it is the slowest.
    let p99 = |samples| percentile(samples, 99.0);
    let longer: Vec<f64> = p99(&times.woken)
        .zip(p99(&times.plain))
        .map(|(woken, plain)| woken - plain)
        .into_iter()
        .collect();
    let key = format!("wake-{state}-adds-p99");
    report.samples(&key, "the same, p99", "ms", none, &longer);
}

impl Sleep {
    /// Puts a machine to sleep and waits for a host at rest.
    async fn begin(self, server: &Server, machine: &Machine) -> Result<()> {
        match self {
            Self::Suspended => {
                machine.post("suspend", "").await?;
                machine.wait("suspended").await?;
            }
            Self::Stopped => {
                machine.stop().await?;
                server.pool_full().await?;
            }
        }
        // A machine that is asleep, not one whose process the kernel is still removing.
        tokio::time::sleep(REST).await;
        cpu::rest().await.map(drop)
    }

    /// A start takes a VM out of the pool, a resume none.
    fn before(self, server: &Server) {
        if self == Self::Stopped {
            server.before_start();
        }
    }

    /// Starts or resumes it by the API.
    async fn plain(
        self,
        server: &Server,
        machine: &Machine,
        address: SocketAddr,
        times: &mut Times,
    ) -> Result<()> {
        let mark = machine.log_end().await?;
        self.before(server);
        let began = Instant::now();
        machine.post("start", "").await?;
        match self {
            Self::Suspended => machine.wait("started").await?,
            Self::Stopped => machine.first_output(mark).await?,
        }
        times.plain.push(milliseconds(began));
        first_byte(server, address).await?;
        times.answered.push(milliseconds(began));
        self.check(machine).await
    }

    /// Whether the latest start was what is to be measured.
    async fn check(self, machine: &Machine) -> Result<()> {
        let event = machine.start_event().await?;
        let kind = if self == Self::Suspended { "resume" } else { "template" };
        ensure!(event["start_kind"] == kind, "a start that was no {kind}: {event}");
        Ok(())
    }
}

/// Milliseconds from the request for a start to the first byte that the machine itself answers.
async fn directly(server: &Server, machine: &Machine, address: SocketAddr) -> Result<f64> {
    let began = Instant::now();
    let asking = async {
        until_it_answers(server, address).await?;
        anyhow::Ok(milliseconds(began))
    };
    let ((), took) = tokio::try_join!(machine.post("start", ""), asking)?;
    machine.wait("started").await?;
    Ok(took)
}

/// Asks until there is an answer. What is dropped before the machine's network is up is sent again
/// after a second only, so there are several attempts at once.
async fn until_it_answers(server: &Server, address: SocketAddr) -> Result<()> {
    let began = Instant::now();
    let mut attempts = FuturesUnordered::new();
    while began.elapsed() < TIMEOUT {
        // A socket stays in the network that it was made in.
        let socket = server.place().run(TcpSocket::new_v4)??;
        attempts.push(socket.connect(address));
        match tokio::time::timeout(ATTEMPT, attempts.next()).await {
            Ok(Some(Ok(stream))) => return answer(stream, address).await,
            Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(_) => {}
        }
    }
    anyhow::bail!("{address} does not answer")
}

fn private_address(machine: &Value) -> Result<SocketAddr> {
    let address = machine["private_ipv4"].as_str().context("a machine without private_ipv4")?;
    Ok((address.parse::<Ipv4Addr>()?, 80).into())
}

/// Asks over a new connection and returns with the first byte of a good answer.
async fn first_byte(server: &Server, address: SocketAddr) -> Result<()> {
    answer(connect_in(server.place(), address)?, address).await
}

async fn answer(mut stream: TcpStream, address: SocketAddr) -> Result<()> {
    let request =
        format!("GET / HTTP/1.1\r\nhost: {APP}.localhost:8080\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut answer))
        .await
        .with_context(|| format!("no answer from {address}"))??;
    let answer = String::from_utf8_lossy(answer.get(..read).unwrap_or_default());
    let status = answer.split(' ').nth(1);
    ensure!(status == Some("200"), "{address} answers: {answer}");
    Ok(())
}
