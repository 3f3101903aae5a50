//! One machine after the other, for ever: nothing grows beyond what is kept of it.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use caddis_bus::InProcessBus;
use caddis_guest_protocol::fake::Behaviour;
use caddis_vmm::fake::Faults;
use futures::{StreamExt as _, stream};
use serde_json::json;

use crate::{
    ALONE,
    process::Taken,
    site::{MACHINES, Site, path},
    soaks,
};

/// Machines at a time.
const AT_ONCE: usize = 16;
/// Measured so often.
const PARTS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_that_come_and_go_leave_nothing() {
    let _alone = ALONE.lock().await;
    let cycles = if soaks() { 10_000 } else { 320 };
    let site = Site::new(InProcessBus::new()).await;
    let guest = Behaviour { completes_logs: true, ..Behaviour::default() };
    site.host.set_faults(Faults { pool: true, guest, ..Faults::default() });
    let (mut taken, mut bytes) = (Vec::new(), Vec::new());
    for part in 0..PARTS {
        let began = Instant::now();
        let one = |_| cycle(&site);
        stream::iter(0..cycles / PARTS).map(one).buffer_unordered(AT_ONCE).collect::<()>().await;
        // Destroyed machines are forgotten, here after a second.
        site.destroy_all().await;
        assert_eq!(site.rows(), [0, 0, 0], "machines, events, versions");
        // The gateway forgets when it hears of another.
        cycle(&site).await;
        assert!(site.shown().await <= 1, "the gateway still shows machines");
        taken.push(Taken::now());
        bytes.push(site.database_bytes());
        println!(
            "part {part} took {:?}: {:?}, databases {} KiB",
            began.elapsed(),
            taken[part],
            bytes[part] >> 10
        );
    }
    let last = PARTS - 1;
    assert!(taken[last].is_flat_since(taken[1]), "{taken:?}");
    // What is deleted leaves room in the file that the next ones take. Of each machine a line stays
    // in the catalog, so that no id or address is ever given out twice.
    assert!(bytes[last] <= bytes[1] * 5 / 4 + (1 << 20), "databases grow: {bytes:?}");
    site.end().await;
}

/// Create, start, stop, destroy, with a new version and words of its user on the way.
async fn cycle(site: &Site) {
    let config = json!({ "image": "image", "init": { "exec": ["echo", "hello"] },
        "restart": { "policy": "no" } });
    let created =
        granted(site, "POST", MACHINES, json!({ "config": config, "skip_launch": true })).await;
    let there = path(created["id"].as_str().unwrap());
    until(site, &there, "created").await;
    let config = json!({ "image": "image", "init": { "exec": ["sleep", "inf"] },
        "restart": { "policy": "no" } });
    granted(site, "POST", &there, json!({ "config": config })).await;
    until(site, &there, "created").await;
    granted(site, "PATCH", &(there.clone() + "/metadata"), json!({ "metadata": { "a": "b" } }))
        .await;
    granted(site, "POST", &(there.clone() + "/start"), json!(null)).await;
    until(site, &there, "started").await;
    granted(site, "POST", &(there.clone() + "/stop"), json!(null)).await;
    until(site, &there, "stopped").await;
    granted(site, "DELETE", &there, json!(null)).await;
}

async fn granted(
    site: &Site,
    method: &str,
    path: &str,
    body: serde_json::Value,
) -> serde_json::Value {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = site.send(method, path, None, &body).await;
    assert!(answer.status.is_success(), "{method} {path}: {} {}", answer.status, answer.body);
    answer.body
}

async fn until(site: &Site, there: &str, state: &str) {
    granted(site, "GET", &format!("{there}/wait?state={state}"), json!(null)).await;
}

/// A destroyed machine's log is kept, but not kept open.
#[tokio::test]
async fn logs_of_destroyed_machines_hold_no_descriptors() {
    let _alone = ALONE.lock().await;
    let site = Site::keeping(InProcessBus::new(), Duration::from_secs(3600)).await;
    let config = json!({ "image": "image", "init": { "exec": ["echo", "hello"] },
        "restart": { "policy": "no" } });
    let mut taken = Vec::new();
    for _ in 0..2 {
        for _ in 0..20 {
            let created = granted(&site, "POST", MACHINES, json!({ "config": config })).await;
            let there = path(created["id"].as_str().unwrap());
            until(&site, &there, "stopped").await;
            granted(&site, "DELETE", &there, json!(null)).await;
            until(&site, &there, "destroyed").await;
        }
        site.settle().await;
        taken.push(Taken::now());
    }
    assert!(taken[1].descriptors < taken[0].descriptors + 10, "{taken:?}");
    site.end().await;
}
