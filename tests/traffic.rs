//! Services of real machines: they answer, sleep when nobody asks, and wake when somebody does.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use caddis_testkit::{DEADLINE, Host, Machine, Options, images, run};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
};

use crate::{
    leftovers::{ended_and_cleaned, traces},
    stand::{APP, Stand},
};

/// Answers with how often its disk was used for a start, and keeps a number in memory.
const SITE: &str = "mkdir -p /www; echo hello >/www/index.html; exec httpd -f -p 80 -h /www";

/// A service on ports 80 and 443, and `more` of it, in a config.
pub fn web_service(autostop: &str, more: Value) -> Value {
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

/// A client for each of the tests' apps.
pub fn client() -> Result<reqwest::Client> {
    // The port is that of the URL.
    let shared = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    reqwest::Client::builder()
        .resolve(&format!("{APP}.localhost"), shared)
        .resolve("hello.localhost", shared)
        .danger_accept_invalid_certs(true)
        .pool_max_idle_per_host(0)
        .timeout(DEADLINE)
        .build()
        .context("making a client")
}

/// Status and body of the answer.
pub async fn get(url: &str) -> Result<(StatusCode, String)> {
    let answer = client()?.get(url).send().await.with_context(|| format!("asking {url}"))?;
    Ok((answer.status(), answer.text().await?))
}

/// The app over HTTP.
pub fn http() -> String {
    format!("http://{APP}.localhost:8080/")
}

fn https() -> String {
    format!("https://{APP}.localhost:8443/")
}

/// Events of starts that succeeded, newest first.
pub async fn starts(machine: &Machine) -> Result<Vec<Value>> {
    let events = machine.events().await?.into_iter();
    Ok(events.filter(|e| e["type"] == "start" && e["status"] == "started").collect())
}

/// Waits until the app answers with a page.
pub async fn until_answered(page: &str) -> Result<()> {
    let begun = std::time::Instant::now();
    loop {
        let answer = get(&http()).await?;
        if answer == (StatusCode::OK, page.to_owned()) {
            return Ok(());
        }
        ensure!(begun.elapsed() < DEADLINE, "it does not answer: {answer:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the proxy has put a machine to sleep, for good.
pub async fn until_put_to_sleep(machine: &Machine, autostop: &str) -> Result<()> {
    let asleep = if autostop == "suspend" { "suspended" } else { "stopped" };
    // A request that comes at the same time calls it off, after which waiting by the API fails.
    let begun = std::time::Instant::now();
    while machine.get().await?["state"] != asleep {
        ensure!(begun.elapsed() < DEADLINE, "not {asleep}: {}", machine.get().await?);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let events = machine.events().await?;
    let event = events.iter().find(|event| event["type"] == autostop);
    ensure!(event.is_some_and(|event| event["source"] == "proxy"), "{event:?}");
    Ok(())
}

async fn sleeps_and_wakes(autostop: &str) -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let service = web_service(autostop, json!({ "idle_timeout": "1s" }));
    let machine = stand.script(SITE, service).await?;
    machine.wait("started").await?;
    until_answered("hello\n").await?;
    for url in [http(), https()] {
        until_put_to_sleep(&machine, autostop).await?;
        let (status, body) = get(&url).await?;
        ensure!((status, body.as_str()) == (StatusCode::OK, "hello\n"), "{url}: {status} {body}");
        let starts = starts(&machine).await?;
        ensure!(starts.first().is_some_and(|start| start["source"] == "proxy"), "{starts:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_idle_machine_is_suspended_and_a_request_resumes_it() -> Result<()> {
    sleeps_and_wakes("suspend").await
}

#[tokio::test]
async fn an_idle_machine_is_stopped_and_a_request_starts_it() -> Result<()> {
    sleeps_and_wakes("stop").await
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
    until_answered("hello\n").await?;
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
async fn nginx_that_one_command_publishes_answers_sleeps_and_wakes() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let image = stand.registry.push(&images::debian()?, "debian:nginx")?;
    stand.server.api().create_app("hello", None).await?;
    let mut run_nginx = vec!["machine", "run", &image, "-a", "hello"];
    run_nginx.extend(["-p", "80:80/tcp:http", "-p", "443:80/tcp:tls:http"]);
    run_nginx.extend(["--autostop=suspend", "--idle-timeout", "2s"]);
    let output = stand.server.cli(&run_nginx).await?;
    ensure!(output.code == Some(0), "{output:?}");
    let (http, https) = ("http://hello.localhost:8080", "https://hello.localhost:8443");
    ensure!(output.stdout.trim_end().ends_with(&format!("{http}\n  {https}")), "{output:?}");
    let machines = stand.server.api().get("/v1/apps/hello/machines").await?.ok()?;
    let machine = stand.server.machine("hello", machines[0]["id"].as_str().context("an id")?);

    let is_page = |answer: &(StatusCode, String)| {
        answer.0 == StatusCode::OK && answer.1.contains("Welcome to nginx!")
    };
    for url in [http, https] {
        let answer = get(url).await?;
        ensure!(is_page(&answer), "{url}: {answer:?}");
        until_put_to_sleep(&machine, "suspend").await?;
    }
    let status = stand.server.cli(&["machine", "status", machine.id(), "-a", "hello"]).await?;
    let why = "suspended: nothing was in progress for 2s";
    ensure!(status.stdout.contains(why), "{status:?}");
    // Clients choose the version of HTTP; nginx gets the one it knows.
    for (option, url) in [("--http2-prior-knowledge", http), ("--http2", https)] {
        let format = "%{http_version} %{http_code}";
        let words = ["curl", "-sk", option, "-o", "/dev/null", "-w", format, url];
        ensure!(run(words)? == "2 200", "{words:?}");
    }
    let starts = starts(&machine).await?;
    ensure!(starts.len() >= 3 && starts[0]["source"] == "proxy", "{starts:?}");

    until_put_to_sleep(&machine, "suspend").await?;
    let mut config = machine.get().await?["config"].clone();
    for service in config["services"].as_array_mut().context("services")? {
        for port in service["ports"].as_array_mut().context("ports")? {
            port["force_https"] = json!(port["port"] == 80);
        }
    }
    machine.post("", json!({ "config": config })).await?.ok()?;
    // The answer names the other listener, which the client asks then, once the proxy knows.
    let target = format!("{https}/?a=b");
    let began = std::time::Instant::now();
    let answer = loop {
        let answer = client()?.get(format!("{http}/?a=b")).send().await?;
        if answer.url().as_str() == target {
            break (answer.status(), answer.text().await?);
        }
        ensure!(began.elapsed() < DEADLINE, "{} instead of {target}", answer.url());
    };
    ensure!(is_page(&answer), "{answer:?}");
    Ok(())
}

/// What a TLS client is answered to `echo`, up to as many bytes.
async fn over_tls(address: &str, options: &[&str]) -> Result<Vec<u8>> {
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", address])
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("openssl")?;
    client.stdin.as_mut().context("its input")?.write_all(b"echo").await?;
    let mut answer = vec![0; 4];
    let read = client.stdout.as_mut().context("its output")?.read_exact(&mut answer);
    tokio::time::timeout(DEADLINE, read).await??;
    Ok(answer)
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
        "-p",
        "5433:7/tcp:tls",
        "-p",
        "5434:7/tcp:pg_tls",
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
    for (port, options) in [(5433, &[][..]), (5434, &["-starttls", "postgres"])] {
        let address = format!("{}:{port}", address.ip());
        let answer = over_tls(&address, options).await.with_context(|| address.clone())?;
        ensure!(answer == b"echo", "{address}: {answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn services_answer_on_addresses_of_the_host_as_seen_from_outside() -> Result<()> {
    let host = Host::new().await?;
    let before = traces()?;
    let listen = |port| format!("{}:{port}", Host::ADDRESS);
    let arguments = ["--domain", "example.com", "--http-listen", &listen(80)].map(str::to_owned);
    let mut arguments = arguments.to_vec();
    arguments.extend(["--https-listen".to_owned(), listen(443)]);
    // The first are of the network of a link of the host; the others are routed to it.
    for prefix in ["198.51.100.16/28", "2001:db8:1::/64"] {
        arguments.extend(["--public-addresses".to_owned(), prefix.to_owned()]);
    }
    host.outside().run(&["ip", "route", "add", "2001:db8:1::/64", "via", Host::ADDRESS_V6])?;
    let mut stand = Stand::with(&host, Options { arguments, ..Options::default() }).await?;
    let image = stand.web()?;
    let mut command = vec!["machine", "run", &image, "-a", APP, "-p", "80:80/tcp:http"];
    command.extend(["-p", "443:80/tcp:tls:http", "-p", "8000:80/tcp:http"]);
    let output = stand.server.cli(&command).await?;
    ensure!(output.code == Some(0), "{output:?}");
    let name = format!("{APP}.example.com");
    let own = "http://198.51.100.17:8000";
    for url in [&*format!("http://{name}"), &*format!("https://{name}"), own] {
        ensure!(output.stdout.lines().any(|line| line.trim() == url), "{url}: {output:?}");
    }
    let output = stand.server.cli(&["ips", "allocate-v6", "-a", APP]).await?;
    ensure!(output.code == Some(0), "{output:?}");

    let resolve = |port| format!("{name}:{port}:{}", Host::ADDRESS);
    let (http, https) = (resolve(80), resolve(443));
    for _ in 0..2 {
        for url in [
            &*format!("http://{name}/"),
            &*format!("https://{name}/"),
            &*format!("{own}/"),
            "http://198.51.100.17/",
            "http://[2001:db8:1::1]:8000/",
        ] {
            let mut curl = vec!["curl", "-skg", "--max-time", "60", url];
            curl.extend(["--resolve", &*http, "--resolve", &*https]);
            let page = host.outside().run(&curl).with_context(|| url.to_owned())?;
            ensure!(page == "hello from a machine\n", "{url}: {page}");
        }
        // The next server has them too.
        stand.server.kill().await?;
        stand.server.launch().await?;
    }
    let machines = stand.server.api().get(&format!("/v1/apps/{APP}/machines")).await?.ok()?;
    let id = machines[0]["id"].as_str().context("an id")?;
    stand.server.machine(APP, id).destroy().await?;
    ended_and_cleaned(&mut stand, &before).await
}
