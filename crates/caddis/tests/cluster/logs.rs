//! The log of an app on several hosts.

use std::collections::BTreeMap;

use caddis_testkit::cluster::{Cluster, ClusterOptions};
use serde_json::{Value, json};

use crate::support::{cluster, config, started_on};

/// Reads what comes after a place, in pages of so many lines, until nothing does. Their messages
/// and the place.
async fn read(
    cluster: &Cluster,
    mut place: String,
    limit: usize,
) -> (Vec<(String, String)>, String) {
    let mut lines = Vec::new();
    loop {
        let path = format!("GET /api/v1/apps/app/logs?limit={limit}&next_token={place}");
        let page = cluster.call(0, &path, Value::Null).await.unwrap();
        assert_eq!(page.status, 200, "{}", page.body);
        place = page.body["meta"]["next_token"].as_str().unwrap().to_owned();
        let entries = page.body["data"].as_array().unwrap();
        if entries.is_empty() {
            return (lines, place);
        }
        lines.extend(entries.iter().map(|entry| {
            let attributes = &entry["attributes"];
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (text(&attributes["instance"]), text(&attributes["message"]))
        }));
    }
}

/// Lines of each machine that its program wrote.
fn of_programs(lines: &[(String, String)]) -> BTreeMap<&str, Vec<&str>> {
    let mut of: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (machine, message) in lines.iter().filter(|(_, message)| message.starts_with("line ")) {
        of.entry(machine).or_default().push(message);
    }
    of
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_an_app_on_three_hosts_has_each_line_once_also_over_the_loss_of_one_of_them() {
    let mut cluster = cluster(ClusterOptions::default()).await;
    let mut ids = Vec::new();
    for number in 0..3 {
        ids.push(started_on(&cluster, number, config()).await);
    }
    let write = |cluster: &Cluster, round: usize| {
        for (number, id) in ids.iter().enumerate() {
            let guest = cluster.vms(number as u8).guest(id).unwrap();
            for line in 0..7 {
                guest.log(format!("line {round}.{line}"));
            }
        }
    };
    let expected = |rounds: std::ops::Range<usize>| -> Vec<String> {
        rounds.flat_map(|round| (0..7).map(move |line| format!("line {round}.{line}"))).collect()
    };
    let first = cluster.call(0, "GET /api/v1/apps/app/logs?limit=1000", Value::Null).await.unwrap();
    let place = first.body["meta"]["next_token"].as_str().unwrap().to_owned();
    write(&cluster, 0);
    let mut seen = Vec::new();
    let mut place = place;
    // What is written arrives by and by.
    while of_programs(&seen).values().map(Vec::len).sum::<usize>() < 21 {
        let (lines, next) = read(&cluster, place, 4).await;
        seen.extend(lines);
        place = next;
    }
    assert_eq!(of_programs(&seen).len(), 3);

    cluster.kill(2).await.unwrap();
    let written = cluster.vms(0).guest(&ids[0]).unwrap();
    written.log("line 1.0");
    while of_programs(&seen)[ids[0].as_str()].len() < 8 {
        let (lines, next) = read(&cluster, place, 4).await;
        seen.extend(lines);
        place = next;
    }
    // What it wrote while its worker was away comes when that is back.
    cluster.vms(2).guest(&ids[2]).unwrap().log("line 1.0");
    cluster.start(2).await.unwrap();
    while of_programs(&seen)[ids[2].as_str()].len() < 8 {
        let (lines, next) = read(&cluster, place, 4).await;
        seen.extend(lines);
        place = next;
    }
    let of = of_programs(&seen);
    for (number, id) in ids.iter().enumerate() {
        let mut lines = expected(0..1);
        lines.extend((number != 1).then(|| "line 1.0".to_owned()));
        assert_eq!(of[id.as_str()], lines, "of host {number}");
    }

    // A wait ends with the first line of any of them.
    let waiting = format!("GET /api/v1/apps/app/logs?wait_seconds=60&next_token={place}");
    let page = cluster.call(0, &waiting, Value::Null);
    let said = async {
        tokio::task::yield_now().await;
        cluster.vms(1).guest(&ids[1]).unwrap().log("line 2.0");
    };
    let (page, ()) = tokio::join!(page, said);
    assert_eq!(page.unwrap().body["data"][0]["attributes"]["message"], json!("line 2.0"));
    // One machine has the log of its host alone.
    let one = format!("GET /api/v1/apps/app/logs?limit=1000&instance={}", ids[1]);
    let one = cluster.call(0, &one, Value::Null).await.unwrap();
    assert!(
        one.body["data"]
            .as_array()
            .unwrap()
            .iter()
            .all(|entry| entry["attributes"]["instance"] == ids[1].as_str())
    );
    assert!(!one.body["meta"]["next_token"].as_str().unwrap().starts_with("hosts."));
}
