//! Apps at addresses within private networks: machines of the network reach and wake them, and
//! nobody else does.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use caddis_testkit::{DEADLINE, Host, Machine};
use serde_json::{Value, json};

use crate::{
    names::until_denied,
    stand::{APP, Stand},
    traffic::starts,
};

/// A page on port 80, and on port 81 the head of the request.
const SITE: &str = r#"
    mkdir -p /www; echo hello >/www/index.html
    cat >/head <<'END'
        while read -r line && [ "${#line}" -gt 1 ]; do head="$head$line|"; done
        printf 'HTTP/1.0 200 OK\r\n\r\n%s' "$head"
END
    nc -ll -p 81 -e sh /head &
    exec httpd -f -p 80 -h /www
"#;

fn services() -> Value {
    json!({
        "services": [
            { "protocol": "tcp", "internal_port": 80, "autostop": "off", "autostart": true,
              "ports": [
                { "port": 80, "handlers": ["http"], "force_https": true },
                { "port": 443, "handlers": ["tls", "http"] },
              ] },
            { "protocol": "tcp", "internal_port": 81,
              "ports": [{ "port": 81, "handlers": ["http"] }] },
        ],
    })
}

async fn idle(stand: &Stand<'_>, app: &str) -> Result<Machine> {
    let config = json!({
        "image": stand.busybox()?, "init": { "cmd": ["/bin/sleep", "1000000"] },
    });
    let machine = stand.server.api().create_machine(app, config).await?;
    machine.wait("started").await?;
    Ok(machine)
}

/// What a machine is told at a URL: the page, or why there is none.
async fn fetched(machine: &Machine, url: &str) -> Result<Result<String, String>> {
    let line = format!("wget -q -O - {url}");
    let exec = machine.exec(&["/bin/sh", "-c", &line]).await?;
    Ok(if exec.code == 0 {
        Ok(exec.stdout)
    } else {
        Err(format!("{}: {}", exec.code, exec.stderr))
    })
}

/// Waits until this comes of fetching a URL: routes and names follow a change a moment later.
async fn until(
    machine: &Machine,
    url: &str,
    is_right: impl Fn(&Result<String, String>) -> bool,
) -> Result<()> {
    let begun = Instant::now();
    loop {
        let outcome = fetched(machine, url).await?;
        if is_right(&outcome) {
            return Ok(());
        }
        ensure!(begun.elapsed() < DEADLINE, "{url}: {outcome:?}");
    }
}

/// Whether it is this page.
fn is_page(outcome: &Result<String, String>) -> bool {
    outcome.as_deref() == Ok("hello\n")
}

fn says(text: &'static str) -> impl Fn(&Result<String, String>) -> bool {
    move |outcome| outcome.as_ref().is_err_and(|error| error.contains(text))
}

/// Fetching a URL fails with this.
async fn fails(machine: &Machine, url: &str, text: &'static str) -> Result<()> {
    let outcome = fetched(machine, url).await?;
    ensure!(says(text)(&outcome), "{url}: {outcome:?}, not {text}");
    Ok(())
}

/// Gives the app an address in a network.
async fn assign(stand: &Stand<'_>, network: &str) -> Result<String> {
    let body = json!({ "type": "private_v6", "org_slug": "", "network": network });
    let path = format!("/v1/apps/{APP}/ip_assignments");
    let given = stand.server.api().post(&path, body).await?.ok()?;
    assert_eq!(given["network"], json!({ "name": network, "org_slug": "personal" }));
    Ok(given["ip"].as_str().context("no address")?.to_owned())
}

async fn release(stand: &Stand<'_>, ip: &str) -> Result<()> {
    let path = format!("/v1/apps/{APP}/ip_assignments/{ip}");
    assert_eq!(stand.server.api().delete(&path).await?.status, 204);
    Ok(())
}

#[tokio::test]
async fn machines_of_a_network_reach_and_wake_an_app_there_and_others_do_not() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    stand.server.api().create_app("near", None).await?;
    stand.server.api().create_app("apart", Some("apart")).await?;
    let web = stand.script(SITE, services()).await?;
    let (near, apart) = (idle(&stand, "near").await?, idle(&stand, "apart").await?);
    let host_name = format!("{APP}.flycast");
    let name = format!("http://{host_name}/");
    until_denied(&near, &host_name).await?;

    let ip = assign(&stand, "").await?;
    let literal = format!("http://[{ip}]/");
    until(&near, &name, is_page).await?;
    web.stop().await?;
    web.wait("stopped").await?;
    assert_eq!(fetched(&near, &name).await?, Ok("hello\n".to_owned()), "a request wakes it");
    let begun = starts(&web).await?;
    assert_eq!((begun.len(), &begun[0]["source"]), (2, &json!("proxy")), "{begun:?}");

    let head = near.shell(&format!("wget -q -O - http://{APP}.flycast:81/a")).await?;
    let (asker, id) = (near.address().await?, near.id());
    for line in [
        "GET /a HTTP/1.1".to_owned(),
        format!("host: {APP}.flycast:81"),
        format!("fly-client-ip: {asker}"),
        format!("x-forwarded-for: {asker}, {ip}"),
        format!("fly-src: instance={id};app=near"),
    ] {
        let line = line.to_ascii_lowercase();
        assert!(head.to_ascii_lowercase().contains(&line), "{line} in {head}");
    }
    // The machine itself is one of the network, too.
    assert_eq!(web.shell(&format!("wget -q -O - {name}")).await?, "hello\n");
    // There is no TLS, nor a port that no service has.
    for port in [443, 82] {
        until(&near, &format!("http://[{ip}]:{port}/"), says("Connection refused")).await?;
    }

    // Another network knows neither name nor address.
    until_denied(&apart, &host_name).await?;
    fails(&apart, &literal, "onnection refused").await?;
    let bridge = assign(&stand, "apart").await?;
    until(&apart, &name, is_page).await?;
    fails(&apart, &literal, "onnection refused").await?;
    fails(&near, &format!("http://[{bridge}]/"), "onnection refused").await?;
    // The host is in no private network.
    let from_host = tokio::net::TcpStream::connect((ip.as_str(), 80));
    let from_host = tokio::time::timeout(std::time::Duration::from_secs(3), from_host).await;
    assert!(!matches!(from_host, Ok(Ok(_))), "{from_host:?}");

    // Without a server nobody answers, and nothing else is open; the next one takes over.
    stand.server.kill().await?;
    stand.server.launch().await?;
    until(&near, &name, is_page).await?;
    until(&apart, &name, is_page).await?;

    release(&stand, &ip).await?;
    until(&near, &literal, says("Connection refused")).await?;
    until_denied(&near, &host_name).await?;
    until(&apart, &name, is_page).await
}
