//! Health checks of real VMs: asked from the host, over the network of the machines.

use std::time::Duration;

use anyhow::{Result, ensure};
use caddis_testkit::{DEADLINE, Host, Machine};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::stand::Stand;

/// Serves a directory from when `go` is there until `end` is, and goes on without.
const PROGRAM: &str = "echo ready; until [ -e /tmp/go ]; do sleep 1; done; mkdir -p /tmp/www; \
                       busybox httpd -f -p 8080 -h /tmp/www & \
                       until [ -e /tmp/end ]; do sleep 1; done; kill $!; sleep 1000000";

/// Waits until a check stands like this.
async fn until(machine: &Machine, name: &str, status: &str, output: &str) -> Result<Value> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let checks = machine.get().await?["checks"].clone();
        let found = checks.as_array().into_iter().flatten().find(|check| check["name"] == name);
        if let Some(check) = found
            && check["status"] == status
            && check["output"].as_str().is_some_and(|shown| shown.contains(output))
        {
            return Ok(check.clone());
        }
        ensure!(Instant::now() < deadline, "not {status} with {output}: {checks}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_program_that_listens_late_is_healthy_then_and_restarted_when_it_fails() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let check =
        json!({ "type": "http", "path": "/health", "interval": "5m", "grace_period": "0s" });
    let alive = json!({
        "type": "tcp", "port": 8080, "interval": "1s", "grace_period": "0s",
        "liveness": { "failures": 2 },
    });
    let machine = stand
        .script(
            PROGRAM,
            json!({
                "restart": { "policy": "on-failure" },
                "services": [{ "internal_port": 8080, "checks": [check] }],
                "checks": { "alive": alive },
            }),
        )
        .await?;
    machine.logged("ready").await?;
    let web = "servicecheck-00-http-8080";
    until(&machine, web, "critical", "connection refused").await?;
    machine.shell("touch /tmp/go").await?;
    until(&machine, web, "critical", "404 Not Found").await?;
    machine.shell("echo fine > /tmp/www/health").await?;
    // Its interval is five minutes: attempts are quick until the first that passes.
    until(&machine, web, "passing", "200 OK Output: \"fine\"").await?;
    until(&machine, "alive", "passing", "Success").await?;

    machine.shell("touch /tmp/end").await?;
    let deadline = Instant::now() + DEADLINE;
    let restart = loop {
        let events = machine.events().await?;
        let started = |event: &&Value| event["type"] == "restart" && event["status"] == "started";
        if events.iter().any(|event| started(&event)) {
            break events.into_iter().find(|e| e["status"] == "restarting");
        }
        ensure!(Instant::now() < deadline, "not restarted: {events:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let told = restart.unwrap_or_default()["details"]["message"].to_string();
    ensure!(told.contains("health check alive failed 2 times in a row"), "{told}");
    until(&machine, web, "critical", "connection refused").await?;
    Ok(())
}
