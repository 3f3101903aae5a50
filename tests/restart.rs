//! VMs outlive the server, and come back after the host was down.

use anyhow::{Context as _, Result};
use caddis_testkit::{Host, Machine, process};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use reqwest::Method;
use serde_json::json;
use tokio::net::TcpStream;

use crate::stand::{APP, Stand, rounds};

/// A program that writes a numbered line ten times a second.
const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo line $i; usleep 100000; done";

#[tokio::test]
async fn a_killed_server_finds_its_vms_and_their_logs_again() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let machine = stand.script(COUNTER, json!({})).await?;
    machine.logged("line 3").await?;
    let vm = stand.server.vm(&machine)?;
    let boot = machine.shell("cat /proc/sys/kernel/random/boot_id").await?;
    let events = machine.events().await?.len();

    stand.server.kill().await?;
    assert_eq!(stand.server.vms(), [vm], "the VM goes on without a server");
    stand.server.launch().await?;
    machine.wait("started").await?;
    assert_eq!(stand.server.vm(&machine)?, vm);
    assert_eq!(machine.shell("cat /proc/sys/kernel/random/boot_id").await?, boot);
    assert_eq!(machine.events().await?.len(), events, "for the machine nothing happened");
    // A read without a position gives the last lines only, so they are told by their numbers.
    let numbers = |lines: &[String]| -> Vec<u64> {
        lines.iter().filter_map(|line| line.strip_prefix("line ")?.parse().ok()).collect()
    };
    let newest = |lines: &[String]| numbers(lines).last().copied().unwrap_or(0);
    let so_far = newest(&machine.logs().await?);
    machine.logged(&format!("line {}", so_far + 5)).await?;

    // The same over an orderly end, and again.
    for _ in 0..rounds(1, 30) {
        assert!(stand.server.terminate().await?.success());
        assert_eq!(stand.server.vms(), [vm]);
        stand.server.launch().await?;
        let lines = machine.logs().await?;
        let seen = numbers(&lines);
        let expected: Vec<_> = (seen.first().copied().unwrap_or(0)..).take(seen.len()).collect();
        assert_eq!(seen, expected, "no line is lost, none comes twice");
        machine.logged(&format!("line {}", newest(&lines) + 5)).await?;
    }
    let seen = numbers(&machine.logs().await?);
    let expected: Vec<_> = (seen.first().copied().unwrap_or(0)..).take(seen.len()).collect();
    assert_eq!(seen, expected, "no line is lost, none comes twice");

    machine.stop().await?;
    machine.wait("stopped").await?;
    stand.server.until_no_vm().await
}

#[tokio::test]
async fn a_program_that_ends_while_the_server_is_down_is_reported_with_its_code() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let script = "echo ready; nc -l -p 99 >/dev/null; echo last words; exit 42";
    let machine = stand.script(script, json!({})).await?;
    machine.logged("ready").await?;
    machine.shell("until netstat -ltn | grep -q :99; do usleep 10000; done").await?;
    let address = machine.address().await?;

    stand.server.kill().await?;
    drop(TcpStream::connect((address, 99)).await.context("telling the program to end")?);
    stand.server.launch().await?;
    machine.wait("stopped").await?;
    let exit = machine.exit_event().await?;
    assert_eq!(
        (&exit["exit_code"], &exit["requested_stop"]),
        (&json!(42), &json!(false)),
        "{exit}"
    );
    assert!(machine.logs().await?.contains(&"last words".to_owned()));
    stand.server.until_no_vm().await
}

#[tokio::test]
async fn a_vm_that_dies_while_the_server_is_down_is_noticed() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let machine = stand.script("sleep 1000", json!({})).await?;
    machine.wait("started").await?;
    let vm = stand.server.vm(&machine)?;
    stand.server.kill().await?;
    process::end(vm);
    stand.server.launch().await?;
    machine.wait("stopped").await?;
    assert_eq!(machine.exit_event().await?["requested_stop"], false);
    Ok(())
}

#[tokio::test]
async fn after_a_reboot_of_the_host_what_should_run_runs_again() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let image = stand.web()?;
    let config = json!({ "image": image, "restart": { "policy": "no" } });
    let wanted = stand.machine(config.clone()).await?;
    let stopped = stand.machine(config).await?;
    wanted.wait("started").await?;
    stopped.wait("started").await?;
    stopped.stop().await?;
    stopped.wait("stopped").await?;
    let before = wanted.newest_event().await?;
    let boot = wanted.shell("cat /proc/sys/kernel/random/boot_id").await?;
    let address = wanted.address().await?;

    stand.server.kill().await?;
    for vm in stand.server.vms() {
        process::end(vm);
    }
    std::fs::write(stand.server.boot_id_file(), "99999999-2222-4333-8444-555555555555\n")?;
    stand.server.launch().await?;
    wanted.wait_after(&before, "started").await?;
    assert_eq!(wanted.http_get(80, "/").await?, "hello from a machine\n");
    assert_ne!(wanted.shell("cat /proc/sys/kernel/random/boot_id").await?, boot);
    assert_eq!(wanted.address().await?, address);
    let exit = wanted.exit_event().await?;
    assert_eq!(
        (&exit["requested_stop"], &exit["restarting"]),
        (&json!(false), &json!(true)),
        "{exit}"
    );
    assert!(
        wanted.events().await?.iter().any(|event| event.to_string().contains("reboot")),
        "the events say why"
    );

    assert_eq!(stopped.get().await?["state"], "stopped");
    assert_eq!(stand.server.vms().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_drain_stops_the_guests_and_the_next_start_of_the_host_brings_them_back() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let machine = stand
        .script("trap 'echo asked; exit 0' INT; echo ready; sleep 1000 & wait", json!({}))
        .await?;
    machine.logged("ready").await?;
    let before = machine.newest_event().await?;
    let data = stand.server.data_directory();
    let drained =
        stand.server.cli(&["host", "drain", "--data-dir", &data.to_string_lossy()]).await?;
    assert_eq!(drained.code, Some(0), "{drained:?}");
    assert!(stand.server.vms().is_empty());
    assert!(machine.logs().await?.contains(&"asked".to_owned()), "it was asked, not killed");
    assert!(stand.server.terminate().await?.success());
    std::fs::write(stand.server.boot_id_file(), "99999999-2222-4333-8444-555555555555\n")?;
    stand.server.launch().await?;
    machine.wait_after(&before, "started").await?;
    Ok(())
}

/// At moments spread over a start and a stop: between fork and record, while init prepares, while
/// the guest powers off.
#[tokio::test]
async fn a_server_that_is_killed_at_any_moment_goes_on_where_it_was() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let machine =
        stand.script("trap 'exit 0' INT; echo ready; sleep 1000 & wait", json!({})).await?;
    machine.wait("started").await?;
    for round in 0..u64::from(rounds(6, 60)) {
        let wanted = if machine.get().await?["state"] == "started" { "stop" } else { "start" };
        let before = machine.newest_event().await?;
        machine.post(&format!("/{wanted}"), json!({})).await?.ok()?;
        tokio::time::sleep(std::time::Duration::from_millis(round * 97 % 900)).await;
        stand.server.kill().await?;
        stand.server.launch().await?;
        machine.wait("settled").await?;
        let shown = machine.get().await?;
        let state = if wanted == "stop" { "stopped" } else { "started" };
        assert_eq!(shown["state"], state, "round {round}: {shown}");
        if wanted == "stop" {
            stand.server.until_no_vm().await?;
        } else {
            assert_eq!(stand.server.vms().len(), 1, "round {round}");
        }
        let events = machine.events().await?;
        let exits = events
            .iter()
            .take_while(|event| event["id"] != *before)
            .filter(|event| event["type"] == "exit")
            .count();
        assert_eq!(exits, usize::from(wanted == "stop"), "round {round}: {events:#?}");
    }
    machine.destroy().await?;
    assert!(stand.server.vms().is_empty());
    Ok(())
}

/// What may be asked of a machine, and where it is to be afterwards.
const REQUESTS: &[(&str, &str, &str)] = &[
    ("started", "/stop", "stopped"),
    ("started", "/suspend", "suspended"),
    ("started", "/restart", "started"),
    ("started", "", "started"),
    ("started", "?force=true", "destroyed"),
    ("stopped", "/start", "started"),
    ("stopped", "", "stopped"),
    ("stopped", "?force=true", "destroyed"),
    ("suspended", "/start", "started"),
    ("suspended", "/stop", "stopped"),
    // What was saved was of the old version.
    ("suspended", "", "stopped"),
];

/// The server is killed at moments drawn from a seed while it makes, starts, stops, suspends,
/// resumes, updates, restarts and destroys: what it had answered comes true, a create that comes
/// again makes no second machine, and there is never more than one VM.
#[tokio::test]
async fn what_was_answered_comes_true_whenever_the_server_is_killed() -> Result<()> {
    let seed = std::env::var("CADDIS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("CADDIS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let script = "trap 'exit 0' INT; echo ready; sleep 1000 & wait";
    let config = json!({
        "image": stand.busybox()?, "init": { "cmd": ["/bin/sh", "-c", script] },
        "restart": { "policy": "no" },
    });
    let machines = format!("/v1/apps/{APP}/machines");
    let mut current: Option<(Machine, &str)> = None;
    for round in 0..rounds(10, 60) {
        let delay = std::time::Duration::from_millis(random.random_range(0..1200));
        let Some((machine, state)) = current.take() else {
            // Its answer may not come.
            let (key, body) = (format!("round {round}"), json!({ "config": config }).to_string());
            let headers = [("idempotency-key", key.as_str())];
            let create =
                stand.server.api().send(Method::POST, &machines, &headers, Some(body.clone()));
            let _ = tokio::time::timeout(delay / 8, create).await;
            stand.server.kill().await?;
            stand.server.launch().await?;
            let made = stand
                .server
                .api()
                .send(Method::POST, &machines, &headers, Some(body))
                .await?
                .ok()?;
            let listed = stand.server.api().get(&machines).await?.ok()?;
            assert_eq!(listed.as_array().map(Vec::len), Some(1), "round {round}: {listed}");
            let machine = stand.server.machine(APP, made["id"].as_str().unwrap_or_default());
            machine.wait("started").await?;
            current = Some((machine, "started"));
            continue;
        };
        let possible: Vec<_> = REQUESTS.iter().filter(|(from, ..)| *from == state).collect();
        let (_, request, wanted) = possible[random.random_range(0..possible.len())];
        println!("round {round}: {state}, POST {request}, killed after {delay:?}");
        let reply = match *request {
            "?force=true" => stand.server.api().delete(&machine.path(request)).await?,
            "" => machine.post("", json!({ "config": config })).await?,
            action => machine.post(action, json!({})).await?,
        };
        reply.ok()?;
        tokio::time::sleep(delay).await;
        stand.server.kill().await?;
        stand.server.launch().await?;
        machine.wait(if *wanted == "destroyed" { wanted } else { "settled" }).await?;
        let shown = machine.get().await?;
        assert_eq!(shown["state"], *wanted, "round {round}, {request}: {shown}");
        if *wanted == "started" {
            stand.server.vm(&machine)?;
            machine.shell("true").await?;
        } else {
            stand.server.until_no_vm().await?;
        }
        current = (*wanted != "destroyed").then_some((machine, wanted));
    }
    if let Some((machine, _)) = current {
        machine.destroy().await?;
    }
    stand.server.until_no_vm().await
}
