//! Services of real machines: they answer, sleep when nobody asks, and wake when somebody does.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use caddis_testkit::{DEADLINE, Host, Machine};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::stand::{APP, Stand};

/// Answers with how often its disk was used for a start, and keeps a number in memory.
const SITE: &str = "mkdir -p /www; echo hello >/www/index.html; exec httpd -f -p 80 -h /www";

fn web_service(autostop: &str, more: Value) -> Value {
    let mut service = json!({
        "protocol": "tcp", "internal_port": 80, "autostop": autostop, "autostart": true,
        "ports": [
            { "port": 80, "handlers": ["http"] },
            { "port": 443, "handlers": ["tls", "http"] },
        ],
    });
    if let (Some(service), Value::Object(more)) = (service.as_object_mut(), more) {
        service.extend(more);
    }
    json!({ "services": [service] })
}

fn client() -> Result<reqwest::Client> {
    let shared = |port: u16| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    reqwest::Client::builder()
        .resolve(&format!("{APP}.localhost"), shared(0))
        .danger_accept_invalid_certs(true)
        .pool_max_idle_per_host(0)
        .timeout(DEADLINE)
        .build()
        .context("making a client")
}

async fn get(url: &str) -> Result<(StatusCode, String)> {
    let answer = client()?.get(url).send().await.with_context(|| format!("asking {url}"))?;
    Ok((answer.status(), answer.text().await?))
}

fn http() -> String {
    format!("http://{APP}.localhost:8080/")
}

fn https() -> String {
    format!("https://{APP}.localhost:8443/")
}

/// Events of starts that succeeded, newest first.
async fn starts(machine: &Machine) -> Result<Vec<Value>> {
    let events = machine.events().await?.into_iter();
    Ok(events.filter(|e| e["type"] == "start" && e["status"] == "started").collect())
}

async fn until_answered() -> Result<()> {
    let begun = std::time::Instant::now();
    loop {
        let answer = get(&http()).await?;
        if answer == (StatusCode::OK, "hello\n".to_owned()) {
            return Ok(());
        }
        ensure!(begun.elapsed() < DEADLINE, "it does not answer: {answer:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn sleeps_and_wakes(autostop: &str, asleep: &str) -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let service = web_service(autostop, json!({ "idle_timeout": "1s" }));
    let machine = stand.script(SITE, service).await?;
    machine.wait("started").await?;
    until_answered().await?;
    for url in [http(), https()] {
        machine.wait(asleep).await?;
        let events = machine.events().await?;
        let event = events.iter().find(|event| event["type"] == autostop);
        ensure!(event.is_some_and(|event| event["source"] == "proxy"), "{event:?}");
        let (status, body) = get(&url).await?;
        ensure!((status, body.as_str()) == (StatusCode::OK, "hello\n"), "{url}: {status} {body}");
        let starts = starts(&machine).await?;
        ensure!(starts.first().is_some_and(|start| start["source"] == "proxy"), "{starts:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_idle_machine_is_suspended_and_a_request_resumes_it() -> Result<()> {
    sleeps_and_wakes("suspend", "suspended").await
}

#[tokio::test]
async fn an_idle_machine_is_stopped_and_a_request_starts_it() -> Result<()> {
    sleeps_and_wakes("stop", "stopped").await
}

#[tokio::test]
async fn many_requests_to_a_sleeping_app_are_all_answered_by_one_start() -> Result<()> {
    const REQUESTS: usize = 200;
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    // As many at once as a small server under emulation takes; the others wait.
    let limits = json!({ "concurrency": { "type": "requests", "hard_limit": 8, "soft_limit": 8 } });
    let machine = stand.script(SITE, web_service("stop", limits)).await?;
    machine.wait("started").await?;
    until_answered().await?;
    machine.stop().await?;
    machine.wait("stopped").await?;
    let before = starts(&machine).await?.len();
    let url = http();
    let requests = (0..REQUESTS).map(|_| {
        let url = url.clone();
        tokio::spawn(async move { get(&url).await })
    });
    for request in requests.collect::<Vec<_>>() {
        let (status, body) = request.await??;
        ensure!(status == StatusCode::OK && body == "hello\n", "{status} {body}");
    }
    ensure!(starts(&machine).await?.len() == before + 1, "{:?}", starts(&machine).await?);
    Ok(())
}

#[tokio::test]
async fn a_request_waits_for_a_port_that_opens_late_also_over_a_killed_server() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let late = format!("sleep 3; {SITE}");
    let machine = stand.script(&late, web_service("off", json!({}))).await?;
    machine.wait("started").await?;
    let (status, body) = get(&http()).await?;
    ensure!(status == StatusCode::OK && body == "hello\n", "{status} {body}");
    machine.stop().await?;
    machine.wait("stopped").await?;
    let before = starts(&machine).await?.len();
    let waiting = tokio::spawn(async {
        let url = http();
        get(&url).await
    });
    machine.wait("started").await?;
    stand.server.kill().await?;
    ensure!(waiting.await?.is_err(), "somebody answered for a server that was killed");
    stand.server.launch().await?;
    let (status, body) = get(&http()).await?;
    ensure!(status == StatusCode::OK && body == "hello\n", "{status} {body}");
    ensure!(starts(&machine).await?.len() == before + 1, "{:?}", starts(&machine).await?);
    Ok(())
}

#[tokio::test]
async fn any_port_answers_on_the_address_that_the_command_prints() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let image = stand.busybox()?;
    let run = [
        "machine",
        "run",
        &image,
        "-a",
        APP,
        "-p",
        "5432:7/tcp",
        "--restart",
        "no",
        "--",
        "nc",
        "-ll",
        "-p",
        "7",
        "-e",
        "cat",
    ];
    let output = stand.server.cli(&run).await?;
    let printed = output.stdout;
    ensure!(output.code == Some(0), "{printed}{}", output.stderr);
    let words = printed.split(|c: char| c.is_whitespace() || c == '/');
    let mut addresses = words.filter_map(|word| word.parse::<std::net::SocketAddr>().ok());
    let address = addresses.find(|address| address.port() == 5432);
    let address = address.with_context(|| format!("no address in {printed}"))?;
    ensure!(address.ip().to_string().starts_with("127.64."), "{address}");
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"echo").await?;
    // The other direction stays open after this one's end.
    stream.shutdown().await?;
    let mut answer = Vec::new();
    tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await??;
    ensure!(answer == b"echo", "{answer:?}");
    Ok(())
}
