//! Network policies on real VMs: at once, over TCP and ICMP of both families, through all that
//! becomes of machine, server and firewall.

use anyhow::{Result, ensure};
use caddis_testkit::{Host, Machine, Outside, run};
use serde_json::{Value, json};

use crate::stand::{APP, Stand};

const PROGRAM: &str = "busybox httpd -p 80 -h /var/www && echo ready && sleep 1000000";

/// Whether a machine reaches the outside over HTTP of both families, and by echo requests.
async fn reaches(machine: &Machine) -> Result<[bool; 4]> {
    let (v4, v6) = (Outside::ADDRESS, Outside::ADDRESS_V6);
    let script = format!(
        "try() {{ \"$@\" >/dev/null 2>&1 && echo yes || echo no; }}; \
         try timeout 10 wget -q -O - http://{v4}/; try timeout 10 wget -q -O - http://[{v6}]/; \
         try ping -c 1 -W 3 {v4}; try ping -c 1 -W 3 {v6}"
    );
    let said = machine.shell(&script).await?;
    let answers: Vec<_> = said.lines().map(|line| line == "yes").collect();
    match *answers.as_slice() {
        [a, b, c, d] => Ok([a, b, c, d]),
        _ => anyhow::bail!("{said}"),
    }
}

async fn expect(machine: &Machine, expected: [bool; 4], when: &str) -> Result<()> {
    let found = reaches(machine).await?;
    ensure!(found == expected, "{when}: {found:?}");
    Ok(())
}

const ALL: [bool; 4] = [true; 4];
const NONE: [bool; 4] = [false; 4];
const ONLY_TCP: [bool; 4] = [true, true, false, false];

async fn put(stand: &Stand<'_>, policy: Value) -> Result<Value> {
    stand.server.api().post(&format!("/v1/apps/{APP}/network_policies"), policy).await?.ok()
}

#[tokio::test]
async fn a_policy_acts_at_once_and_stays_through_all_that_becomes_of_its_machine() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let web = json!({ "metadata": { "role": "web" } });
    let machine = stand.script(PROGRAM, web).await?;
    let other = stand.script(PROGRAM, json!({})).await?;
    for machine in [&machine, &other] {
        machine.logged("ready").await?;
    }
    expect(&machine, ALL, "without a policy").await?;
    let address = other.address().await?;
    let get = format!("timeout 10 wget -q -O /dev/null http://[{address}]/ && echo yes || echo no");
    ensure!(machine.shell(&get).await? == "yes\n", "a machine of the same network");

    let tcp_80 = json!([{ "protocol": "tcp", "port": 80 }]);
    let policy = json!({
        "name": "web", "selector": { "metadata": { "role": "web" } },
        "rules": [{ "action": "allow", "direction": "egress", "ports": tcp_80,
            "to": [{ "cidr": "0.0.0.0/0" }, { "cidr": "2001:db8::/32" }] }]
    });
    let made = put(&stand, policy.clone()).await?;
    expect(&machine, ONLY_TCP, "with a policy").await?;
    ensure!(machine.shell(&get).await? == "no\n", "a machine of the same network");
    expect(&other, ALL, "which is not selected").await?;
    // The other way there is no policy.
    let back = format!(
        "timeout 10 wget -q -O /dev/null http://[{}]/ && echo yes || echo no",
        machine.address().await?
    );
    ensure!(other.shell(&back).await? == "yes\n", "ingress");

    // The same machine under a new boot, a killed server and a flushed firewall.
    machine.stop().await?;
    machine.wait("stopped").await?;
    machine.start().await?;
    machine.wait("started").await?;
    expect(&machine, ONLY_TCP, "after a stop").await?;
    stand.server.kill().await?;
    run(["nft", "flush", "ruleset"])?;
    stand.server.launch().await?;
    machine.wait("started").await?;
    expect(&machine, ONLY_TCP, "after a kill of the server").await?;

    let mut app = policy;
    app["id"] = made["id"].clone();
    app["rules"][0]["to"] = json!([{ "app": APP }]);
    put(&stand, app).await?;
    expect(&machine, NONE, "with another policy").await?;
    ensure!(machine.shell(&get).await? == "yes\n", "a machine of the app");

    let id = made["id"].as_str().unwrap_or_default();
    let path = format!("/v1/apps/{APP}/network_policies/{id}");
    stand.server.api().delete(&path).await?;
    expect(&machine, ALL, "without a policy again").await
}
