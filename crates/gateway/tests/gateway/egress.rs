//! Egress addresses of apps and machines, and what workers are told of them.

use axum::body::Body;
use caddis_bus::message::{EgressSource, MachineEgress};
use serde_json::{Value, json};

use crate::support::{Answer, Fixture};

async fn assign(fixture: &Fixture, body: Value) -> Answer {
    fixture.post("/v1/apps/a/ip_assignments", body).await
}

/// What a worker was told last of a machine.
fn told(fixture: &Fixture, machine: &str) -> Vec<(String, Option<(u16, u16)>)> {
    let egress = fixture.worker.state().egress.clone();
    let found: Vec<MachineEgress> =
        egress.into_iter().filter(|one| one.machine.as_str() == machine).collect();
    let sources = found.into_iter().flat_map(|one| one.sources);
    sources.map(|EgressSource { address, ports }| (address.to_string(), ports)).collect()
}

fn ips(answer: &Value) -> Vec<&str> {
    let all = answer["egress_ips"].as_array().unwrap().iter();
    all.map(|one| one["ip"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_pair_of_an_app_is_assigned_shown_with_its_machines_and_released() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    for kind in ["egress_pair", "egress-pair"] {
        let body = json!({ "type": kind, "region": "local", "org_slug": "", "network": "",
            "service_name": "" });
        let pair = assign(&fixture, body).await.ok();
        assert!(pair["ip"].is_null() && pair["egress"] == true && pair["region"] == "local");
        let pair = &pair["ip_pair"];
        let (v4, v6) = (pair["v4"].as_str().unwrap(), pair["v6"].as_str().unwrap());
        let number = if kind == "egress_pair" { 5 } else { 6 };
        assert_eq!(v4, format!("203.0.113.6{number}"));
        assert_eq!(v6, format!("2001:db8:1::e:{}", number - 4));
    }
    let block = Some((1024, 2047));
    let expected = [("203.0.113.65".to_owned(), block), ("2001:db8:1::e:1".to_owned(), block)];
    assert_eq!(told(&fixture, id.as_str()), expected);
    let listed = fixture.call("GET /v1/apps/a/ip_assignments").await.ok();
    let first = &listed["ips"][0];
    assert_eq!((&first["ip"], &first["egress"]), (&json!("203.0.113.65"), &json!(true)));
    assert_eq!(
        first["machines"],
        json!([{ "machine_id": id, "first_port": 1024, "last_port": 2047 }])
    );
    let of_app = fixture.call("GET /v1/apps/a/egress_ips").await.ok();
    // Those that no machine has ports of come last.
    let all = ["203.0.113.65", "2001:db8:1::e:1", "203.0.113.66", "2001:db8:1::e:2"];
    assert_eq!(ips(&of_app), all);
    assert_eq!(of_app["egress_ips"][0]["scope"], "app");
    let machines = [0_usize, 1, 2, 3].map(|index| &of_app["egress_ips"][index]["machine_id"]);
    assert_eq!(machines, [&json!(id), &json!(id), &Value::Null, &Value::Null]);

    // A new machine has its block before its worker is asked for it.
    let body = json!({ "config": { "image": "nginx" } });
    let made = fixture.post("/v1/apps/a/machines", body).await.ok();
    assert_eq!(told(&fixture, made["id"].as_str().unwrap()).len(), 2);
    assert!(made["warnings"].is_null(), "{made}");

    for ip in ["203.0.113.65", "2001:db8:1::e:1", "203.0.113.66", "2001:db8:1::e:2"] {
        let released = fixture.call(&format!("DELETE /v1/apps/a/ip_assignments/{ip}")).await;
        assert_eq!(released.status, 204, "{}", released.text);
    }
    assert_eq!(told(&fixture, id.as_str()), []);
    // All hosts know: it is free again.
    let again = assign(&fixture, json!({ "type": "egress_v4" })).await.ok();
    assert_eq!(again["ip"], "203.0.113.65");
}

#[tokio::test]
async fn a_pair_of_which_one_is_missing_is_completed_and_what_is_missing_is_told() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let missing = "the app has no IPv6 egress address in local: connections over IPv6 come from an \
                   address of the host";
    let half = assign(&fixture, json!({ "type": "egress_v4" })).await.ok();
    assert_eq!(half["warnings"], json!([missing]));
    // No machine has ports of it yet.
    let of_app = fixture.call("GET /v1/apps/a/egress_ips").await.ok();
    assert_eq!(ips(&of_app), ["203.0.113.65"]);
    assert!(of_app["egress_ips"][0].get("machine_id").is_none(), "{of_app}");
    let whole = assign(&fixture, json!({ "type": "egress_pair" })).await.ok();
    assert_eq!(whole["ip_pair"], json!({ "v4": "203.0.113.65", "v6": "2001:db8:1::e:1" }));
    assert!(whole["warnings"].is_null(), "{whole}");
    let another = assign(&fixture, json!({ "type": "egress_pair" })).await.ok();
    assert_eq!(another["ip_pair"], json!({ "v4": "203.0.113.66", "v6": "2001:db8:1::e:2" }));
}

#[tokio::test]
async fn a_pair_has_the_families_of_which_the_server_has_addresses() {
    let mut settings = Fixture::settings();
    settings.traffic.egress_addresses = vec!["203.0.113.7/32".parse().unwrap()];
    let fixture = Fixture::with(settings, |_| {}).await;
    fixture.app("a").await;
    let given = assign(&fixture, json!({ "type": "egress_pair" })).await.ok();
    assert_eq!((&given["ip"], &given["ip_pair"]), (&Value::Null, &json!({ "v4": "203.0.113.7" })));
    assert_eq!(
        given["warnings"],
        json!(["this server has no IPv6 egress addresses: connections over IPv6 come from an \
                address of the host"])
    );
    let refused = assign(&fixture, json!({ "type": "egress_v6" })).await;
    assert_eq!(refused.status, 412);
    assert!(refused.error().contains("this server has no IPv6 egress addresses"));
}

#[tokio::test]
async fn a_server_warns_of_addresses_whose_prefix_it_does_not_have_any_more() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let warnings = async |router: axum::Router| {
        let request = fixture.request("GET /healthz").body(axum::body::Body::empty()).unwrap();
        let answer = Fixture::send_to(&router, request).await;
        serde_json::from_str::<Value>(&answer.text).unwrap()["warnings"].clone()
    };
    assign(&fixture, json!({ "type": "egress_pair" })).await.ok();
    assert_eq!(warnings(fixture.router.clone()).await, json!([]));
    let mut settings = Fixture::settings();
    settings.traffic.egress_addresses = vec!["203.0.113.64/28".parse().unwrap()];
    let gateway = fixture.restarted_with(settings).await;
    let told = warnings(gateway.router()).await;
    let told = told[0].as_str().unwrap();
    assert!(told.contains("go on using them: 2001:db8:1::e:1; add their prefix again"), "{told}");
}

#[tokio::test]
async fn addresses_of_a_machine_are_allocated_listed_promoted_and_released() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let path = format!("/v1/apps/a/machines/{id}/egress_ips");
    let nothing = fixture.call(&format!("GET {path}")).await.ok();
    assert_eq!(ips(&nothing), [""; 0]);
    for missing in [format!("DELETE {path}"), format!("POST {path}/promote")] {
        let answer = fixture.call(&missing).await;
        assert_eq!(answer.status, 404);
        assert!(answer.error().contains("no egress addresses of its own"), "{}", answer.text);
    }
    let own = ["203.0.113.65", "2001:db8:1::e:1"];
    let given = fixture.call(&format!("POST {path}")).await.ok();
    assert_eq!(ips(&given), own);
    assert_eq!(told(&fixture, id.as_str()), own.map(|ip| (ip.to_owned(), None)));
    assert_eq!(fixture.call(&format!("POST {path}")).await.status, 409);
    // They are not among those of the app, nor released with them.
    let listed = fixture.call("GET /v1/apps/a/ip_assignments").await.ok();
    assert_eq!(listed["ips"], json!([]));
    let released = fixture.call(&format!("DELETE /v1/apps/a/ip_assignments/{}", own[0])).await;
    assert_eq!(released.status, 404);

    let promoted = fixture.call(&format!("POST {path}/promote")).await.ok();
    assert_eq!(ips(&promoted), own);
    let block = Some((1024, 2047));
    assert_eq!(told(&fixture, id.as_str()), own.map(|ip| (ip.to_owned(), block)));
    let listed = fixture.call("GET /v1/apps/a/ip_assignments").await.ok();
    assert_eq!(listed["ips"].as_array().unwrap().len(), 2);

    fixture.call(&format!("POST {path}")).await.ok();
    assert_eq!(told(&fixture, id.as_str())[0], ("203.0.113.66".to_owned(), None));
    let released = fixture.call(&format!("DELETE {path}")).await.ok();
    assert_eq!(ips(&released), ["203.0.113.66", "2001:db8:1::e:2"]);
    assert_eq!(told(&fixture, id.as_str()), own.map(|ip| (ip.to_owned(), block)));
}

#[tokio::test]
async fn a_worker_that_was_away_is_told_what_it_missed() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    assign(&fixture, json!({ "type": "egress_v4" })).await.ok();
    let known = told(&fixture, id.as_str());
    assert_eq!(known.len(), 1);
    // Another process of it, which has to be told again.
    fixture.worker.state().egress.clear();
    let gateway = fixture.restarted().await;
    let begun = std::time::Instant::now();
    while told(&fixture, id.as_str()) != known {
        assert!(begun.elapsed() < crate::support::TIMEOUT);
        tokio::task::yield_now().await;
    }
    drop(gateway);
}

#[tokio::test]
async fn of_two_that_want_the_last_egress_address_one_gets_it_and_the_other_is_told_why() {
    let mut settings = Fixture::settings();
    settings.traffic.egress_addresses = vec!["203.0.113.7/32".parse().unwrap()];
    let fixture = Fixture::with(settings, |_| {}).await;
    fixture.app("a").await;
    let last = || assign(&fixture, json!({ "type": "egress_v4" }));
    let (one, other) = tokio::join!(last(), last());
    let (given, refused) = if one.status == 200 { (one, other) } else { (other, one) };
    assert_eq!(given.ok()["ip"], "203.0.113.7");
    assert_eq!(refused.status, 422);
    assert!(refused.error().contains("no egress address is free in 203.0.113.7/32"));
}

#[tokio::test]
async fn a_machine_for_which_no_block_is_left_is_made_with_a_warning() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    assign(&fixture, json!({ "type": "egress_v4" })).await.ok();
    let make = async || {
        let body = json!({ "config": { "image": "nginx" }, "skip_launch": true });
        fixture.post("/v1/apps/a/machines", body).await.ok()
    };
    for _ in 0..64 {
        assert!(make().await["warnings"].is_null());
    }
    let made = make().await;
    assert!(made["warnings"][0].as_str().unwrap().contains("allocate-egress"), "{made}");
    assert_eq!(told(&fixture, made["id"].as_str().unwrap()), []);
}

#[tokio::test]
async fn a_catalog_that_is_behind_its_worker_comes_before_it_again() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    assign(&fixture, json!({ "type": "egress_v4" })).await.ok();
    // As after a restore of the catalog alone.
    fixture.worker.state().egress_revision = 1000;
    assign(&fixture, json!({ "type": "egress_v6" })).await.ok();
    let block = Some((1024, 2047));
    let both = ["203.0.113.65", "2001:db8:1::e:1"].map(|ip| (ip.to_owned(), block));
    assert_eq!(told(&fixture, id.as_str()), both);
    assert!(fixture.worker.state().egress_revision > 1000);
    // What its worker has not heard of is not free.
    let released = fixture.call("DELETE /v1/apps/a/ip_assignments/203.0.113.65").await;
    assert_eq!(released.status, 204, "{}", released.text);
    assert_eq!(told(&fixture, id.as_str()), both[1..]);
}

#[tokio::test]
async fn of_two_gateways_each_puts_back_what_the_other_has_changed() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let other = fixture.restarted_with(Fixture::settings()).await.router();
    let own = [("203.0.113.65".to_owned(), Some((1024, 2047)))];
    for _ in 0..3 {
        // When the answer comes, the worker has what was asked for: the same as before the other
        // gateway took it away.
        let given = assign(&fixture, json!({ "type": "egress_v4" })).await.ok();
        assert_eq!(given["ip"], own[0].0);
        assert_eq!(told(&fixture, id.as_str()), own);
        let line = format!("DELETE /v1/apps/a/ip_assignments/{}", own[0].0);
        let request = fixture.request(&line).body(Body::empty()).unwrap();
        let released = Fixture::send_to(&other, request).await;
        assert_eq!(released.status, 204, "{}", released.text);
        assert_eq!(told(&fixture, id.as_str()), []);
    }
}
