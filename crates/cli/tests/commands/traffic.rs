//! `caddis machine hold`, and what `status` and `top` show of traffic.

use caddis_api::traffic::{MachineTraffic, TrafficDecision};
use caddis_testkit::fake::FakeOptions;
use serde_json::json;

use crate::stand::Stand;

#[tokio::test]
async fn machines_are_held_for_a_time_and_released() {
    let stand = Stand::with_app().await;
    let (one, other) = (stand.machine("one").await, stand.machine("other").await);
    let line = format!("machine hold {one} {other} -a shop --for 10m --reason job");
    let held = stand.run(&line).await.ok();
    for id in [&one, &other] {
        assert!(held.stdout.contains(&format!("{id} is held until 2")), "{}", held.stdout);
    }
    let machine = stand.run(&format!("machine status {one} -a shop --json")).await.ok().json();
    assert_eq!(machine["hold"]["reason"], "job");
    let until = machine["hold"]["until"].as_str().unwrap();
    let status = stand.run(&format!("machine status {one} -a shop")).await.ok();
    assert!(status.stdout.contains(&format!("until {until} (job)")), "{}", status.stdout);
    let released = stand.run(&format!("machine hold {one} -a shop --release")).await.ok();
    assert_eq!(released.stdout, format!("{one} is no longer held\n"));
    let machine = stand.run(&format!("machine status {one} -a shop --json")).await.ok().json();
    assert_eq!(machine["hold"], json!(null));
}

#[tokio::test]
async fn flags_about_services_are_told_where_a_machine_has_none() {
    let stand = Stand::with_app().await;
    let no = |flag: &str| {
        format!("Warning: {flag} has no effect: the machine has no services, add one with --port\n")
    };
    let flags = "--autostop=stop --autostart --idle-timeout 5m --max-drain 1m";
    let run = stand.run(&format!("machine run web -a shop --detach {flags}")).await.ok();
    for flag in ["--autostop", "--autostart", "--idle-timeout", "--max-drain"] {
        assert!(run.stderr.contains(&no(flag)), "{}", run.stderr);
    }
    let id = stand.run("machine list -a shop -q").await.stdout.trim().to_owned();
    let update = format!("machine update {id} -a shop --yes --min-machines-running 1");
    let update = stand.run(&update).await.ok();
    assert!(update.stderr.starts_with(&no("--min-machines-running")), "{}", update.stderr);
    let served = stand.run(&format!("machine create web -a shop -p 80 {flags}")).await.ok();
    assert!(!served.stderr.contains("no services"), "{}", served.stderr);
}

#[tokio::test]
async fn a_handler_that_is_named_twice_is_told() {
    let stand = Stand::with_app().await;
    let run = stand.run("machine create web -a shop -p 80:80/tcp:http:http").await.ok();
    let expected = "Warning: config.services[0].ports[0].handlers has http more than once\n";
    assert!(run.stderr.contains(expected), "{}", run.stderr);
}

#[tokio::test]
async fn a_hold_needs_a_time_and_a_machine_that_runs() {
    let stand = Stand::with_app().await;
    let id = stand.machine("web").await;
    for (flags, words) in [
        ("", "--for"),
        ("--for soon", "invalid duration 'soon'"),
        ("--for 25h", "86400 seconds"),
        ("--for 10m --release", "cannot be used with"),
    ] {
        let refused = stand.run(&format!("machine hold {id} -a shop {flags}")).await;
        assert!(refused.code != 0 && refused.stderr.contains(words), "{flags}: {}", refused.stderr);
    }
    stand.run(&format!("machine stop {id} -a shop -w 60s")).await.ok();
    let refused = stand.run(&format!("machine hold {id} -a shop --for 10m")).await;
    assert!(refused.stderr.contains("machine not running"), "{}", refused.stderr);
}

#[tokio::test]
async fn traffic_is_in_status_and_top_where_a_proxy_knows_of_it() {
    let decision = TrafficDecision {
        what: "keep running".to_owned(),
        why: "2 open connections".to_owned(),
        at: "2026-03-31T06:08:08.000Z".to_owned(),
    };
    let known = MachineTraffic {
        in_progress: 1,
        connections: 2,
        requests: 1,
        bytes_in: 1500,
        bytes_out: 2_000_000,
        waiting: 7,
        decision: Some(decision),
    };
    for traffic in [Some(known), None] {
        let is_known = traffic.is_some();
        let stand = Stand::with(FakeOptions { traffic, ..FakeOptions::default() }).await;
        stand.run("apps create shop").await.ok();
        let id = stand.machine("web").await;
        let status = stand.run(&format!("machine status {id} -a shop")).await.ok().stdout;
        for words in ["Traffic", "keep running: 2 open connections", "2026-03-31T06:08:08.000Z"] {
            assert_eq!(status.contains(words), is_known, "{words}: {status}");
        }
        let top = stand.run("machine top -a shop --once --interval 1").await.ok().stdout;
        for words in ["ACTIVE", "CONNS", "1.5 kB", "2.0 MB"] {
            assert_eq!(top.contains(words), is_known, "{words}: {top}");
        }
    }
}
