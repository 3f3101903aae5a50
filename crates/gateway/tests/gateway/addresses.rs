//! Addresses of apps.

use axum::http::StatusCode;
use caddis_api::{ApiError, ErrorCode};
use caddis_gateway::{Settings, SharedListeners, TrafficSettings};
use futures::future::join;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{Answer, Fixture, TIMEOUT};

/// A server with these addresses for apps.
async fn with_addresses(prefixes: &[&str]) -> Fixture {
    let public_addresses = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
    let traffic = TrafficSettings { public_addresses, ..TrafficSettings::default() };
    let fixture = Fixture::with(Settings { traffic, ..Settings::default() }, |_| {}).await;
    fixture.app("a").await;
    fixture
}

async fn assign(fixture: &Fixture, body: Value) -> Answer {
    fixture.post("/v1/apps/a/ip_assignments", body).await
}

async fn list(fixture: &Fixture) -> Vec<String> {
    let ips = fixture.call("GET /v1/apps/a/ip_assignments").await.ok();
    let ips = ips["ips"].as_array().unwrap().iter();
    ips.map(|row| row["ip"].as_str().unwrap().to_owned()).collect()
}

async fn create(fixture: &Fixture, services: Value) -> Value {
    let body = json!({ "config": { "image": "nginx", "services": services } });
    fixture.post("/v1/apps/a/machines", body).await.ok()
}

fn on_port(port: u16) -> Value {
    json!([{ "internal_port": port, "ports": [{ "port": port }] }])
}

#[tokio::test]
async fn an_address_is_assigned_listed_and_released() {
    let fixture = with_addresses(&["127.64.0.0/16", "2001:db8::/64"]).await;
    assert_eq!(list(&fixture).await, [""; 0]);
    // As the usual client sends it: all fields, most of them empty.
    let body =
        json!({ "type": "v4", "region": "", "org_slug": "", "network": "", "service_name": "" });
    let given = assign(&fixture, body).await.ok();
    assert_eq!(given["ip"], "127.64.0.1");
    assert_eq!((&given["region"], &given["service_name"]), (&json!("global"), &json!("")));
    assert_eq!((&given["shared"], &given["egress"]), (&json!(false), &json!(false)));
    assert!(given["network"].is_null() && given["created_at"].as_str().unwrap().ends_with('Z'));
    let six = json!({ "type": "v6", "region": "local", "service_name": "web" });
    let six = assign(&fixture, six).await.ok();
    assert_eq!((&six["ip"], &six["region"]), (&json!("2001:db8::1"), &json!("local")));
    assert_eq!(six["service_name"], "web");
    let this = json!({ "type": "v4", "ip": "127.64.3.4", "region": "global" });
    assert_eq!(assign(&fixture, this).await.ok()["region"], "global");
    assert_eq!(list(&fixture).await, ["127.64.0.1", "2001:db8::1", "127.64.3.4"]);
    for ip in ["127.64.0.1", "2001:db8::1", "2001:0db8:0::2"] {
        let released = fixture.call(&format!("DELETE /v1/apps/a/ip_assignments/{ip}")).await;
        let expected =
            if ip.ends_with('2') { StatusCode::NOT_FOUND } else { StatusCode::NO_CONTENT };
        assert_eq!(released.status, expected, "{ip}: {}", released.text);
    }
    assert_eq!(list(&fixture).await, ["127.64.3.4"]);
}

#[tokio::test]
async fn the_shared_address_is_that_of_the_shared_listeners() {
    let fixture = with_addresses(&[]).await;
    for _ in 0..2 {
        let given = assign(&fixture, json!({ "type": "shared_v4" })).await.ok();
        assert_eq!((&given["ip"], &given["shared"]), (&json!("127.0.0.1"), &json!(true)));
    }
    assert_eq!(list(&fixture).await, ["127.0.0.1"]);
    let listeners = SharedListeners {
        domain: "example.com".to_owned(),
        http: "0.0.0.0:80".parse().unwrap(),
        https: "0.0.0.0:443".parse().unwrap(),
    };
    let traffic = TrafficSettings { listeners: Some(listeners), ..TrafficSettings::default() };
    let fixture = Fixture::with(Settings { traffic, ..Settings::default() }, |_| {}).await;
    fixture.app("a").await;
    let refused = assign(&fixture, json!({ "type": "shared_v4" })).await;
    assert_eq!(refused.status, 412);
    let app = fixture.call("GET /v1/apps/a").await.ok();
    assert_eq!(
        app["urls"],
        json!({ "hostname": "a.example.com", "http": "http://a.example.com",
            "https": "https://a.example.com" })
    );
}

#[tokio::test]
async fn what_can_not_be_assigned_is_refused_with_the_reason() {
    let fixture = with_addresses(&["127.64.0.0/16"]).await;
    for (body, status, text) in [
        (json!({}), 400, "invalid type, it is required"),
        (json!({ "type": "v5" }), 400, "invalid type"),
        (json!({ "type": "egress_pair" }), 412, "this server has no egress addresses"),
        (json!({ "type": "egress_v6" }), 412, "no IPv6 egress addresses"),
        (json!({ "type": "egress_v4", "region": "x" }), 400, "no egress addresses in 'x'"),
        (json!({ "type": "egress_v4", "ip": "192.0.2.1" }), 400, "only a v4 or v6"),
        (json!({ "type": "v6" }), 412, "no IPv6 addresses for apps"),
        (json!({ "type": "private_v6", "ip": "fdaa:1:2:0:1::9" }), 400, "only a v4 or v6"),
        (json!({ "type": "v4", "region": "x" }), 400, "unknown region 'x'"),
        (json!({ "type": "v4", "service_name": "a/b" }), 400, "invalid service_name"),
        (json!({ "type": "v4", "ip": "x" }), 400, "invalid ip, 'x' is not an IP address"),
        (json!({ "type": "v4", "ip": "192.0.2.1" }), 400, "not an address of 127.64.0.0/16"),
        (json!({ "type": "shared_v4", "ip": "127.64.0.9" }), 400, "only a v4 or v6"),
    ] {
        let refused = assign(&fixture, body.clone()).await;
        assert_eq!(refused.status, status, "{body}: {}", refused.text);
        assert!(refused.error().contains(text), "{body}: {}", refused.text);
    }
    let this = json!({ "type": "v4", "ip": "127.64.0.9" });
    assign(&fixture, this.clone()).await.ok();
    assert_eq!(assign(&fixture, this).await.status, 409);
    let released = fixture.call("DELETE /v1/apps/a/ip_assignments/nothing").await;
    assert_eq!(released.status, 400);
    let missing = fixture.call("GET /v1/apps/b/ip_assignments").await;
    assert_eq!(missing.error(), "Could not find App \"b\"");
}

#[tokio::test]
async fn of_two_that_want_the_last_address_one_gets_it() {
    let fixture = with_addresses(&["192.0.2.1/32"]).await;
    let last = || assign(&fixture, json!({ "type": "v4" }));
    let (one, other) = join(last(), last()).await;
    let mut statuses = [one.status.as_u16(), other.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 422]);
    let refused = if one.status == 200 { other } else { one };
    assert!(refused.error().starts_with("no address is free in 192.0.2.1/32"));
}

#[tokio::test]
async fn private_addresses_are_of_the_network_that_is_named() {
    let fixture = with_addresses(&[]).await;
    let app = fixture.call("GET /v1/apps/a").await.ok();
    let prefix = app["network_cidr"].as_str().unwrap().trim_end_matches("::/48").to_owned();
    let given = assign(&fixture, json!({ "type": "private_v6" })).await.ok();
    let ip: std::net::Ipv6Addr = given["ip"].as_str().unwrap().parse().unwrap();
    let first: std::net::Ipv6Addr = format!("{prefix}:0:1::").parse().unwrap();
    assert!(first < ip && ip.to_bits() - first.to_bits() < 1 << 32, "{ip}");
    assert_eq!(given["network"], json!({ "name": "", "org_slug": "personal" }));
    for (body, status, text) in [
        (json!({ "type": "private_v6", "network": "other" }), 400, "network not found"),
        (json!({ "type": "private_v6", "org_slug": "x" }), 404, "Could not find Organization"),
    ] {
        let refused = assign(&fixture, body).await;
        assert_eq!(refused.status, status);
        assert!(refused.error().starts_with(text), "{}", refused.text);
    }
}

#[tokio::test]
async fn a_machine_whose_service_needs_it_gives_its_app_an_address_once() {
    let fixture = with_addresses(&["127.64.0.0/16"]).await;
    let web = json!([{ "internal_port": 80, "ports": [{ "port": 80, "handlers": ["http"] },
        { "port": 443, "handlers": ["tls", "http"] }] }]);
    create(&fixture, web.clone()).await;
    assert_eq!(list(&fixture).await, [""; 0], "the shared listeners are enough");
    create(
        &fixture,
        json!([{ "internal_port": 53, "protocol": "udp", "ports": [{ "port": 53 }] }]),
    )
    .await;
    assert_eq!(list(&fixture).await, ["127.64.0.1"]);
    create(&fixture, on_port(5432)).await;
    create(&fixture, on_port(6379)).await;
    assert_eq!(list(&fixture).await, ["127.64.0.1"]);
}

#[tokio::test]
async fn an_update_that_adds_such_a_service_does_too() {
    let fixture = with_addresses(&["127.64.0.0/16"]).await;
    let id = create(&fixture, json!([])).await["id"].as_str().unwrap().to_owned();
    let body = json!({ "config": { "image": "nginx", "services": on_port(5432) } });
    fixture.post(&format!("/v1/apps/a/machines/{id}"), body).await.ok();
    assert_eq!(list(&fixture).await, ["127.64.0.1"]);
}

#[tokio::test]
async fn a_machine_that_is_refused_gives_its_app_no_address() {
    let fixture = with_addresses(&["127.64.0.0/16"]).await;
    let body = json!({ "config": { "image": "nginx", "services": on_port(5432) } });
    let full = ApiError::new(ErrorCode::InsufficientCapacity, "no host has room");
    fixture.worker.state().create_errors.push_back(full);
    assert_eq!(fixture.post("/v1/apps/a/machines", body.clone()).await.status, 422);
    let id = create(&fixture, json!([])).await["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/apps/a/machines/{id}");
    fixture.worker.state().update_errors.push_back(ApiError::aborted("it is leased"));
    assert_eq!(fixture.post(&path, body.clone()).await.status, 409);
    let mut with_lease = body;
    with_lease["lease_ttl"] = json!(1_000_000_000);
    assert_eq!(fixture.post(&path, with_lease).await.status, 400);
    assert_eq!(list(&fixture).await, [""; 0]);
}

#[tokio::test]
async fn apps_of_machines_that_are_there_get_an_address_of_the_pool_when_a_server_starts() {
    let fixture = with_addresses(&["127.64.0.0/16"]).await;
    create(&fixture, on_port(5432)).await;
    create(&fixture, on_port(6379)).await;
    let another = |prefix: &str| {
        let public_addresses = vec![prefix.parse().unwrap()];
        let traffic = TrafficSettings { public_addresses, ..TrafficSettings::default() };
        fixture.restarted_with(Settings { traffic, ..Settings::default() })
    };
    // As with a release that had no addresses.
    let mut changes = fixture.catalog.addresses_changed();
    fixture.catalog.release_address("a", "127.64.0.1".parse().unwrap()).await.unwrap();
    changes.mark_unchanged();
    for (prefix, expected) in
        [("127.64.0.0/16", &["127.64.0.1"][..]), ("192.0.2.0/24", &["127.64.0.1", "192.0.2.1"])]
    {
        let _server = another(prefix).await;
        timeout(TIMEOUT, changes.changed()).await.unwrap().unwrap();
        assert_eq!(list(&fixture).await, expected);
    }
}

#[tokio::test]
async fn a_machine_that_can_not_be_reached_is_made_with_a_warning() {
    let fixture = with_addresses(&["192.0.2.1/32"]).await;
    fixture.app("b").await;
    fixture.post("/v1/apps/b/ip_assignments", json!({ "type": "v4" })).await.ok();
    let made = create(&fixture, on_port(5432)).await;
    let warning = made["warnings"][0].as_str().unwrap();
    assert!(
        warning.starts_with("services of the machine can't be reached: no address is free"),
        "{warning}"
    );
    let fixture = with_addresses(&[]).await;
    let made = create(&fixture, on_port(5432)).await;
    assert!(made["warnings"][0].as_str().unwrap().contains("--public-addresses"));
}

#[tokio::test]
async fn an_address_that_services_need_is_released_with_a_warning() {
    let fixture = with_addresses(&["127.64.0.0/16", "2001:db8::/64"]).await;
    let release =
        async |ip: &str| fixture.call(&format!("DELETE /v1/apps/a/ip_assignments/{ip}")).await;
    assign(&fixture, json!({ "type": "v4" })).await.ok();
    create(
        &fixture,
        json!([{ "internal_port": 80,
        "ports": [{ "port": 80, "handlers": ["http"] }] }]),
    )
    .await;
    // The shared listeners serve it.
    assert_eq!(release("127.64.0.1").await.status, StatusCode::NO_CONTENT);
    let gone = create(&fixture, on_port(6379)).await;
    create(&fixture, on_port(5432)).await;
    create(
        &fixture,
        json!([{ "internal_port": 53, "protocol": "udp", "ports": [{ "port": 53 }] },
        { "internal_port": 1, "ports": [{ "start_port": 8000, "end_port": 8010 }] }]),
    )
    .await;
    let id = gone["id"].as_str().unwrap();
    fixture.call(&format!("DELETE /v1/apps/a/machines/{id}?force=true")).await.ok();
    fixture.call(&format!("GET /v1/apps/a/machines/{id}/wait?state=destroyed")).await.ok();
    assign(&fixture, json!({ "type": "v6" })).await.ok();
    assert_eq!(list(&fixture).await, ["127.64.0.1", "2001:db8::1"]);
    // They are still reached at the other one.
    assert_eq!(release("2001:db8::1").await.status, StatusCode::NO_CONTENT);
    let last = release("127.64.0.1").await.ok();
    assert_eq!(
        last,
        json!({ "warnings": ["services on ports 53/udp, 5432, 8000-8010 can't be reached any more: \
            the app has no address of its own left, 'caddis ips allocate-v4' allocates one"] })
    );
}

#[tokio::test]
async fn the_addresses_of_an_app_go_with_it() {
    let fixture = with_addresses(&["192.0.2.1/32"]).await;
    assign(&fixture, json!({ "type": "v4" })).await.ok();
    assert_eq!(fixture.call("DELETE /v1/apps/a").await.status, 202);
    fixture.until_gone("a").await;
    fixture.app("a").await;
    assert_eq!(list(&fixture).await, [""; 0]);
    assert_eq!(assign(&fixture, json!({ "type": "v4" })).await.ok()["ip"], "192.0.2.1");
}
