//! WireGuard peers of private networks.

use caddis_gateway::Settings;
use serde_json::{Value, json};

use crate::support::{
    Fixture,
    peers::{FIRST, SERVER},
};

const SECOND: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
const PEERS: &str = "/v1/orgs/personal/wireguard_peers";

async fn refused(fixture: &Fixture, body: Value) -> (u16, String) {
    let answer = fixture.post(PEERS, body).await;
    (answer.status.as_u16(), answer.error())
}

#[tokio::test]
async fn a_peer_is_told_all_that_its_file_needs() {
    let fixture = Fixture::new().await;
    let body = json!({ "name": "laptop", "public_key": FIRST, "network": "" });
    let made = fixture.post(PEERS, body).await.ok();
    let (peer, server) = (&made["peer"], &made["server"]);
    assert_eq!((&peer["name"], &peer["network"]), (&json!("laptop"), &json!("default")));
    assert_eq!((&peer["public_key"], &server["public_key"]), (&json!(FIRST), &json!(SERVER)));
    assert_eq!(server["endpoint"], "192.0.2.1:51820");
    let network: ipnet::Ipv6Net = server["allowed_ips"].as_str().unwrap().parse().unwrap();
    assert!(
        network.contains(&peer["peer_ip"].as_str().unwrap().parse::<std::net::Ipv6Addr>().unwrap())
    );
    let first = network.network().to_string();
    assert_eq!(server["dns"].as_str().unwrap(), format!("{first}3"));

    let shown = fixture.call(&format!("GET {PEERS}/laptop")).await.ok();
    assert_eq!(shown["endpoint"], "198.51.100.7:9");
    assert_eq!(shown["last_handshake_at"], "2001-09-09T01:46:40Z");
    let counts = ["received_bytes", "sent_bytes", "refused_packets"].map(|name| &shown[name]);
    assert_eq!(counts, [&json!(1), &json!(2), &json!(3)]);
    let listed = fixture.call(&format!("GET {PEERS}")).await.ok();
    assert_eq!(listed["peers"], json!([shown]));
}

#[tokio::test]
async fn another_key_keeps_name_and_address_and_a_removed_peer_is_gone() {
    let fixture = Fixture::new().await;
    let body = json!({ "name": "laptop", "public_key": FIRST });
    let made = fixture.post(PEERS, body).await.ok();
    let body = json!({ "public_key": SECOND });
    let reset = fixture.post(&format!("{PEERS}/laptop/reset"), body.clone()).await.ok();
    assert_eq!(reset["peer"]["peer_ip"], made["peer"]["peer_ip"]);
    assert_eq!(reset["peer"]["public_key"], SECOND);
    assert!(reset["peer"].get("endpoint").is_none());
    assert_eq!(fixture.call(&format!("DELETE {PEERS}/laptop")).await.status, 204);
    for line in ["GET", "DELETE"] {
        let answer = fixture.call(&format!("{line} {PEERS}/laptop")).await;
        assert_eq!(answer.status, 404, "{line}");
        assert_eq!(answer.error(), "Could not find WireGuard peer \"laptop\"");
    }
    assert_eq!(fixture.post(&format!("{PEERS}/laptop/reset"), body).await.status, 404);
}

#[tokio::test]
async fn what_could_not_be_served_is_refused() {
    let fixture = Fixture::new().await;
    let body = |name: &str, key: &str| json!({ "name": name, "public_key": key });
    fixture.post(PEERS, body("laptop", FIRST)).await.ok();
    for (body, status, expected) in [
        (body("laptop", SECOND), 409, "has a WireGuard peer \"laptop\""),
        (body("phone", FIRST), 409, "each needs a key of its own"),
        (body("phone", SERVER), 400, "the server's own"),
        (body("Phone", SECOND), 400, "invalid name"),
        (body("", SECOND), 400, "invalid name"),
        (body("phone", ""), 400, "invalid public_key"),
        (json!({ "name": "phone" }), 400, "invalid public_key"),
        (json!({ "name": "p", "public_key": SECOND, "network": "x" }), 400, "network not found"),
        (json!({ "name": "p", "public_key": SECOND, "net": "x" }), 400, "unknown field `net`"),
    ] {
        let (found, error) = refused(&fixture, body.clone()).await;
        assert!(found == status && error.contains(expected), "{body}: {found} {error}");
    }
    let elsewhere = fixture.call("GET /v1/orgs/elsewhere/wireguard_peers").await;
    assert_eq!(elsewhere.status, 404);
}

#[tokio::test]
async fn a_server_that_does_not_listen_says_how_it_would() {
    let fixture = Fixture::with(Settings::default(), |_| {}).await;
    let body = json!({ "name": "laptop", "public_key": FIRST });
    let (status, error) = refused(&fixture, body).await;
    assert!(status == 412 && error.contains("--wireguard-listen"), "{status} {error}");
    assert_eq!(fixture.call(&format!("GET {PEERS}")).await.ok(), json!({ "peers": [] }));
}
