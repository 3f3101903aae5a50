//! Health checks of real VMs: asked from the host, over the network of the machines.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use caddis_testkit::{DEADLINE, Host, Machine};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, ChildStderr},
    time::Instant,
};

use crate::stand::{APP, Stand};

/// Serves a directory from when `go` is there until `end` is, and goes on without.
const PROGRAM: &str = "echo ready; until [ -e /tmp/go ]; do sleep 1; done; mkdir -p /tmp/www; \
                       busybox httpd -f -p 8080 -h /tmp/www & \
                       until [ -e /tmp/end ]; do sleep 1; done; kill $!; sleep 1000000";

/// Listens from when `go` is there, or port 8080 of `PEER` is open.
const FOLLOWER: &str = "peer() { [ -n \"$PEER\" ] && busybox nc -w 2 $PEER 8080 </dev/null; }; \
                        echo ready; until [ -e /tmp/go ] || peer; do sleep 1; done; \
                        exec busybox httpd -f -p 8080";

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

/// A command line that waits for the checks of a machine.
struct Waiting {
    child: Child,
    stderr: BufReader<ChildStderr>,
    told: String,
}

impl Waiting {
    /// Begins it, and ends when it has told that it waits.
    async fn begin(stand: &Stand<'_>, arguments: &[&str]) -> Result<Self> {
        let mut child = stand.server.begin_cli(arguments)?;
        let stderr = BufReader::new(child.stderr.take().context("its errors are piped")?);
        let mut waiting = Self { child, stderr, told: String::new() };
        let read = async {
            while !waiting.told.contains("to become healthy (started, 0/1)") {
                let length = waiting.stderr.read_line(&mut waiting.told).await?;
                ensure!(length > 0, "it has not waited: {}", waiting.told);
            }
            Ok(())
        };
        tokio::time::timeout(DEADLINE, read).await.context("it tells nothing of checks")??;
        Ok(waiting)
    }

    /// Whether it has not ended yet.
    fn waits(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// What it has printed when it has ended well.
    async fn end(mut self) -> Result<String> {
        let (mut stdout, mut told) = (String::new(), self.told);
        let mut output = self.child.stdout.take().context("its output is piped")?;
        let read = async {
            tokio::try_join!(
                output.read_to_string(&mut stdout),
                self.stderr.read_to_string(&mut told),
            )?;
            self.child.wait().await
        };
        let status = tokio::time::timeout(DEADLINE, read).await.context("it does not end")??;
        ensure!(status.success(), "{status}: {stdout}{told}");
        Ok(stdout)
    }
}

#[tokio::test]
async fn cloning_and_updating_a_machine_wait_for_its_checks_to_pass() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let check = json!({ "type": "tcp", "port": 8080, "interval": "1s", "grace_period": "0s" });
    let source = stand.script(FOLLOWER, json!({ "checks": { "web": check } })).await?;
    source.logged("ready").await?;

    let clone = ["machine", "clone", source.id(), "--name", "copy", "-a", APP];
    let mut cloning = Waiting::begin(&stand, &clone).await?;
    let list = stand.server.api().get(&format!("/v1/apps/{APP}/machines")).await?.ok()?;
    let copy = list.as_array().into_iter().flatten().find(|machine| machine["name"] == "copy");
    let id = copy.and_then(|copy| copy["id"].as_str()).context("the clone's id")?;
    let copy = stand.server.machine(APP, id);
    until(&copy, "web", "critical", "connection refused").await?;
    ensure!(cloning.waits()?, "its check fails");
    copy.shell("touch /tmp/go").await?;
    let output = cloning.end().await?;
    ensure!(output.contains("Machine has been successfully cloned!"), "{output}");
    until(&copy, "web", "passing", "Success").await?;

    // Nobody else may run anything in a machine that is being updated: it waits for the other one.
    let ip = source.get().await?["private_ip"].as_str().context("an address")?.to_owned();
    let peer = format!("PEER={ip}");
    copy.shell("rm /tmp/go").await?;
    let update = ["machine", "update", id, "-e", &peer, "--yes", "-a", APP];
    let mut updating = Waiting::begin(&stand, &update).await?;
    until(&copy, "web", "critical", "connection refused").await?;
    ensure!(updating.waits()?, "its check fails");
    source.shell("touch /tmp/go").await?;
    let output = updating.end().await?;
    ensure!(output.contains(&format!("Machine {id} updated successfully!")), "{output}");
    until(&copy, "web", "passing", "Success").await?;
    Ok(())
}
