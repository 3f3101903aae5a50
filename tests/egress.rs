//! What the outside sees connections of machines with egress addresses come from, through all that
//! becomes of machines and their server.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use caddis_testkit::{Host, Machine, Options, Outside, run};
use serde_json::{Value, json};

use crate::stand::{APP, Stand};

/// In the networks of the link to the outside: the host answers ARP and neighbour solicitations.
const POOLS: [&str; 2] = ["198.51.100.64/28", "2001:db8:100::e:0/112"];
const FIRST: [&str; 2] = ["198.51.100.65", "2001:db8:100::e:1"];
const SECOND: [&str; 2] = ["198.51.100.66", "2001:db8:100::e:2"];
const HOST: [&str; 2] = [Host::ADDRESS, Host::ADDRESS_V6];
const TIMEOUT: Duration = Duration::from_secs(60);
const IDLE: &str = "sleep 1000000";

fn options() -> Options {
    let arguments = POOLS.iter().flat_map(|pool| ["--egress-addresses".to_owned(), (*pool).into()]);
    Options { arguments: arguments.collect(), ..Options::default() }
}

/// What the outside sees, over TCP of both families, and UDP.
async fn comes_from(machine: &Machine, host: &Host, expected: [&str; 2]) -> Result<()> {
    for (to, address) in [Outside::ADDRESS, Outside::ADDRESS_V6].into_iter().zip(expected) {
        let to = if to.contains(':') { format!("[{to}]") } else { to.to_owned() };
        let page = machine.shell(&format!("wget -q -O - http://{to}/")).await?;
        ensure!(page == format!("you are {address}\n"), "{page}, not {address}");
    }
    let word = format!("from-{}-{}", machine.id(), expected[0]);
    let (to, port) = (Outside::ADDRESS, Outside::UDP_PORT);
    machine.shell(&format!("timeout 2 tftp -g -l /dev/null -r {word} {to} {port} || true")).await?;
    let seen = host.outside().datagrams_until(word.as_bytes()).await?;
    let last = seen.last().context("no datagram")?.source.ip().to_string();
    ensure!(last == expected[0], "a datagram from {last}, not {}", expected[0]);
    machine.shell(&format!("ping -c 1 -W 10 {to}")).await?;
    Ok(())
}

/// The gateway releases what a machine had once it hears of its end.
async fn until_gone(stand: &Stand<'_>, machine: &Machine) -> Result<()> {
    machine.destroy().await?;
    let path = format!("/v1/apps/{APP}/egress_ips");
    let begun = Instant::now();
    loop {
        let left = stand.server.api().get(&path).await?.ok()?;
        let is_left = |it: &Value| it["machine_id"] == machine.id();
        if !left["egress_ips"].as_array().context("a list")?.iter().any(is_left) {
            return Ok(());
        }
        ensure!(begun.elapsed() < TIMEOUT, "{left}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_machine_keeps_its_egress_addresses_through_all_that_becomes_of_it() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::with(&host, options()).await?;
    let machine = stand.script(IDLE, json!({})).await?;
    machine.wait("started").await?;
    comes_from(&machine, &host, HOST).await?;

    let allocated = machine.post("/egress_ips", Value::Null).await?.ok()?;
    let given: Vec<_> = allocated["egress_ips"].as_array().context("a list")?.iter().collect();
    assert_eq!([&given[0]["ip"], &given[1]["ip"]], FIRST);
    comes_from(&machine, &host, FIRST).await?;

    machine.stop().await?;
    machine.wait("stopped").await?;
    machine.start().await?;
    machine.wait("started").await?;
    comes_from(&machine, &host, FIRST).await?;

    machine.post("/suspend", Value::Null).await?.ok()?;
    machine.wait("suspended").await?;
    machine.start().await?;
    machine.wait("started").await?;
    comes_from(&machine, &host, FIRST).await?;

    let mut config = machine.get().await?["config"].take();
    config["env"] = json!({ "CHANGED": "1" });
    let before = machine.newest_event().await?;
    machine.post("", json!({ "config": config })).await?.ok()?;
    machine.wait_after(&before, "started").await?;
    comes_from(&machine, &host, FIRST).await?;

    // The server is killed while it runs, and the host's filter is flushed meanwhile.
    stand.server.kill().await?;
    run(["nft", "flush", "ruleset"])?;
    stand.server.launch().await?;
    machine.wait("started").await?;
    comes_from(&machine, &host, FIRST).await?;

    // Those of the app are not used where the machine has its own; another machine has them.
    let post = format!("/v1/apps/{APP}/ip_assignments");
    let pair = stand.server.api().post(&post, json!({ "type": "egress-pair" })).await?.ok()?;
    assert_eq!([&pair["ip_pair"]["v4"], &pair["ip_pair"]["v6"]], SECOND);
    comes_from(&machine, &host, FIRST).await?;
    let other = stand.script(IDLE, json!({})).await?;
    other.wait("started").await?;
    comes_from(&other, &host, SECOND).await?;

    stand.server.api().delete(&machine.path("/egress_ips")).await?.ok()?;
    comes_from(&machine, &host, SECOND).await?;
    for address in SECOND {
        stand.server.api().delete(&format!("{post}/{address}")).await?.ok()?;
    }
    comes_from(&machine, &host, HOST).await?;
    comes_from(&other, &host, HOST).await?;

    other.post("/egress_ips", Value::Null).await?.ok()?;
    until_gone(&stand, &other).await
}
