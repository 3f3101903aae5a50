//! Network policies of apps, and what workers are told of them.

use axum::http::StatusCode;
use caddis_api::ApiError;
use caddis_bus::message::{Allowance, AppPolicies};
use caddis_gateway::Settings;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{Answer, Fixture, TIMEOUT};

const PATH: &str = "/v1/apps/a/network_policies";

async fn fixture() -> Fixture {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    fixture
}

/// A policy that lets machines connect to these.
fn egress(name: &str, to: Value) -> Value {
    json!({
        "name": name, "selector": { "all": true },
        "rules": [{ "action": "allow", "direction": "egress", "to": to }]
    })
}

async fn put(fixture: &Fixture, body: Value) -> Answer {
    fixture.post(PATH, body).await
}

fn told(fixture: &Fixture) -> Vec<AppPolicies> {
    fixture.worker.state().policies.clone()
}

/// Addresses that the only policy of the only app lets machines connect to.
fn peers(fixture: &Fixture) -> Vec<String> {
    let told = told(fixture);
    let Allowance { peers, .. } = &told[0].policies[0].egress.as_ref().unwrap()[0];
    peers.as_ref().unwrap().iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_policy_is_made_shown_replaced_and_deleted_and_workers_know() {
    let fixture = fixture().await;
    assert_eq!(fixture.call(&format!("GET {PATH}")).await.ok(), json!([]));
    let body = json!({
        "name": "web", "id": "",
        "selector": { "all": true },
        "rules": [{
            "action": "allow", "direction": "egress", "ports": [{ "protocol": "tcp", "port": 443 }]
        }]
    });
    let made = put(&fixture, body.clone()).await.ok();
    assert_eq!((&made["name"], &made["dns"]), (&json!("web"), &json!("allow")));
    for field in ["selector", "rules"] {
        assert_eq!(made[field], body[field], "as it was sent");
    }
    let id = made["id"].as_str().unwrap();
    // The answer comes when they know.
    let policies = told(&fixture);
    assert_eq!((policies.len(), policies[0].app.as_str()), (1, "a"));
    let policy = &policies[0].policies[0];
    assert_eq!((policy.ingress.is_none(), policy.dns), (true, true));
    assert_eq!(policy.egress.as_ref().unwrap()[0].peers, None);
    // With and without the slash.
    for path in [PATH.to_owned(), format!("{PATH}/")] {
        let request = fixture.request(&format!("GET {path}"));
        let request = request.body(axum::body::Body::empty()).unwrap();
        let answer = tower::ServiceExt::oneshot(fixture.router.clone(), request).await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
    }
    assert_eq!(fixture.call(&format!("GET {PATH}")).await.ok(), json!([made]));
    assert_eq!(fixture.call(&format!("GET {PATH}/{id}")).await.ok(), made);

    let again = put(&fixture, body.clone()).await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    assert!(again.error().contains("a network policy with the name \"web\""), "{}", again.error());
    // As a client does that reads, changes and writes.
    let mut changed = made.clone();
    changed["name"] = json!("db");
    changed["dns"] = json!("deny");
    changed["rules"] = json!([{ "action": "allow", "direction": "ingress" }]);
    let replaced = put(&fixture, changed).await.ok();
    assert_eq!((&replaced["id"], &replaced["name"]), (&json!(id), &json!("db")));
    let policy = told(&fixture)[0].policies[0].clone();
    assert!(policy.egress.is_none() && policy.ingress.is_some() && !policy.dns);

    let deleted = fixture.call(&format!("DELETE {PATH}/{id}")).await;
    assert_eq!(deleted.status, StatusCode::NO_CONTENT);
    assert_eq!(told(&fixture), []);
    for line in [format!("GET {PATH}/{id}"), format!("DELETE {PATH}/{id}")] {
        let answer = fixture.call(&line).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert_eq!(answer.error(), format!("Could not find network policy '{id}'"));
    }
    let mut gone = body;
    gone["id"] = json!(id);
    assert_eq!(put(&fixture, gone).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_is_wrong_with_a_policy_is_said_and_nothing_is_recorded() {
    let fixture = fixture().await;
    let selected = json!({ "machines": [{ "id": "0123456789abcd" }] });
    for (body, expected) in [
        (json!({ "name": "x" }), "invalid selector, it is required"),
        (
            json!({ "name": "x", "selector": { "all": true }, "dsn": "deny", "rules": [
                { "action": "allow", "direction": "egress" }
            ] }),
            "unknown field `dsn`",
        ),
        (egress("x", json!([{ "app": "nothing" }])), "the organization has no app 'nothing'"),
        (egress("x", json!([{ "network": "n" }])), "the organization has no network 'n'"),
        (egress("x", json!([{ "cidr": "300.0.0.1" }])), "rules[0].to[0].cidr, '300.0.0.1'"),
        (
            json!({ "name": "x", "selector": selected, "rules": [
                { "action": "allow", "direction": "egress" }
            ] }),
            "the app has no machine '0123456789abcd'",
        ),
        (
            json!({ "name": "x", "selector": { "all": true }, "rules": [
                { "action": "deny", "direction": "egress" }
            ] }),
            "rules[0].action",
        ),
    ] {
        let answer = put(&fixture, body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.error().contains(expected), "{}", answer.error());
    }
    assert_eq!(fixture.call(&format!("GET {PATH}")).await.ok(), json!([]));
    let missing = fixture.call("GET /v1/apps/b/network_policies").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn apps_and_networks_stand_for_the_addresses_they_have_at_the_time() {
    let fixture = fixture().await;
    fixture.post("/v1/apps", json!({ "name": "b", "org_slug": "personal" })).await;
    let to = json!([{ "app": "b" }, { "network": "default" }, { "cidr": "192.0.2.0/24" }]);
    put(&fixture, egress("x", to)).await.ok();
    let app = fixture.call("GET /v1/apps/b").await.ok();
    let network =
        app["network_cidr"].as_str().map_or_else(|| peers(&fixture)[0].clone(), str::to_owned);
    assert_eq!(peers(&fixture), [network.clone(), "192.0.2.0/24".to_owned()]);

    // Its worker knows of a machine's address before there is such a machine.
    let body = json!({ "config": { "image": "nginx" } });
    let made = fixture.post("/v1/apps/b/machines", body).await.ok();
    let address = format!("{}/128", made["private_ip"].as_str().unwrap());
    assert_eq!(peers(&fixture), [address, network, "192.0.2.0/24".to_owned()]);
    let requests = fixture.worker.state().requests.clone();
    let names: Vec<_> = requests.iter().map(|request| format!("{request:?}")).collect();
    let made_at = names.iter().position(|name| name.starts_with("Create(")).unwrap();
    assert!(names[..made_at].iter().any(|name| {
        name.starts_with("SetPolicies") && name.contains(made["private_ip"].as_str().unwrap())
    }));
}

#[tokio::test]
async fn a_host_that_cant_put_policies_in_force_is_told_of_and_tried_again() {
    let fixture = fixture().await;
    put(&fixture, egress("first", json!([{ "cidr": "192.0.2.9" }]))).await.ok();
    // Whoever tells of the change first, and the one that answers for it.
    let errors = [ApiError::internal("no nft"), ApiError::internal("no nft")];
    fixture.worker.state().policy_errors.extend(errors);
    let answer = put(&fixture, egress("x", json!([{ "cidr": "192.0.2.1" }]))).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    let recorded = fixture.call(&format!("GET {PATH}")).await.ok();
    assert_eq!(recorded[1]["name"], "x");
    timeout(TIMEOUT, async {
        while told(&fixture)[0].policies.len() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert!(fixture.worker.state().policy_errors.is_empty());
}

#[tokio::test]
async fn a_new_gateway_tells_workers_what_there_is_and_policies_go_with_their_app() {
    let fixture = fixture().await;
    put(&fixture, egress("x", json!([{ "cidr": "192.0.2.1" }]))).await.ok();
    // Another process of the worker, which knows nothing.
    fixture.worker.state().policies.clear();
    let _gateway = fixture.restarted_with(Settings::default()).await;
    timeout(TIMEOUT, async {
        while told(&fixture).is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    fixture.call("DELETE /v1/apps/a").await;
    timeout(TIMEOUT, async {
        while !fixture.catalog.policies().await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn of_two_gateways_each_puts_back_what_the_other_has_changed() {
    let fixture = fixture().await;
    let other = fixture.restarted_with(Fixture::settings()).await.router();
    let made = put(&fixture, egress("x", json!([{ "cidr": "192.0.2.1" }]))).await.ok();
    let replace = |cidr: &str| {
        let mut policy = egress("x", json!([{ "cidr": cidr }]));
        policy["id"] = made["id"].clone();
        policy
    };
    for _ in 0..3 {
        // When the answer comes, the worker has what was asked for.
        let request = fixture.request(&format!("POST {PATH}"));
        let body = replace("192.0.2.2").to_string();
        let request = request.header("content-type", "application/json").body(body.into()).unwrap();
        Fixture::send_to(&other, request).await.ok();
        assert_eq!(peers(&fixture), ["192.0.2.2/32"]);
        put(&fixture, replace("192.0.2.1")).await.ok();
        assert_eq!(peers(&fixture), ["192.0.2.1/32"]);
    }
}

#[tokio::test]
async fn a_catalog_that_is_behind_its_worker_comes_before_it_again() {
    let fixture = fixture().await;
    put(&fixture, egress("x", json!([{ "cidr": "192.0.2.1" }]))).await.ok();
    // As after a restore of the catalog alone.
    fixture.worker.state().policy_revision = 1000;
    put(&fixture, egress("y", json!([{ "cidr": "192.0.2.2" }]))).await.ok();
    assert_eq!(told(&fixture)[0].policies.len(), 2);
    assert!(fixture.worker.state().policy_revision > 1000);
}
