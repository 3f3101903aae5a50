//! Leases, as the worker decides them.

use caddis_api::{MachineId, MachineState};
use serde_json::json;

use crate::support::Fixture;

async fn leased(fixture: &Fixture) -> (MachineId, String) {
    let id = fixture.started().await;
    let answer = fixture.call(&format!("POST /v1/apps/a/machines/{id}/lease?ttl=60")).await;
    assert_eq!(answer.status, 201);
    let nonce = answer.json()["data"]["nonce"].as_str().unwrap().to_owned();
    (id, nonce)
}

#[tokio::test]
async fn a_lease_is_wrapped_and_repeated_at_the_top() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let path = format!("/v1/apps/a/machines/{id}/lease");
    let answer =
        fixture.post(&format!("{path}?ttl=5"), json!({"ttl": 60, "description": "deploy"})).await;
    assert_eq!(answer.status, 201);
    let reply = answer.json();
    assert_eq!(reply["status"], "success");
    for field in ["nonce", "expires_at", "owner", "description", "version"] {
        assert_eq!(reply[field], reply["data"][field], "{field}");
    }
    assert_eq!(
        (&reply["owner"], &reply["description"]),
        (&json!("root@tokens.caddis"), &json!("deploy"))
    );
    assert_eq!(reply["expires_at"], 4_000_000_060_u64, "the body's ttl wins");
    let nonce = reply["nonce"].as_str().unwrap();
    let refreshed = fixture.with_nonce(&format!("POST {path}?ttl=120"), nonce).await;
    assert_eq!((refreshed.status.as_u16(), &refreshed.json()["nonce"]), (201, &json!(nonce)));
    assert_eq!(
        fixture.call(&format!("GET {path}")).await.ok()["data"]["nonce"],
        nonce,
        "its owner sees it"
    );
}

#[tokio::test]
async fn a_leased_machine_changes_only_with_the_nonce() {
    let fixture = Fixture::new().await;
    let (id, nonce) = leased(&fixture).await;
    let text = format!(
        "aborted: machine ID {id} lease currently held by root@tokens.caddis, expires at \
         2030-01-01T00:00:00Z"
    );
    for line in [
        "POST /start",
        "POST /stop",
        "POST /restart",
        "POST /cordon",
        "POST /uncordon",
        "POST /lease",
        "DELETE /lease",
    ] {
        let line = line.replacen(' ', &format!(" /v1/apps/a/machines/{id}"), 1);
        for nonce in ["", "wrong"] {
            let answer = fixture.with_nonce(&line, nonce).await;
            assert_eq!((answer.status.as_u16(), answer.error()), (409, text.clone()), "{line}");
        }
        if !line.starts_with("DELETE") {
            assert!(fixture.with_nonce(&line, &nonce).await.status.is_success(), "{line}");
        }
    }
    let machine = format!("/v1/apps/a/machines/{id}");
    assert_eq!(fixture.call(&format!("DELETE {machine}?force=true")).await.status, 409);
    fixture.worker.turn(&id, MachineState::Started, "restart").await;
    assert_eq!(fixture.post(&format!("{machine}/signal"), r#"{"signal": 15}"#).await.status, 200);
    assert_eq!(fixture.call(&format!("GET {machine}")).await.status, 200);
}

#[tokio::test]
async fn a_lease_is_released_with_its_nonce_and_then_gone() {
    let fixture = Fixture::new().await;
    let (id, nonce) = leased(&fixture).await;
    let line = format!("DELETE /v1/apps/a/machines/{id}/lease");
    let released = fixture.with_nonce(&line, &nonce).await.ok();
    assert_eq!(released, json!({"status": "success", "data": {"ok": true}}));
    let again = fixture.with_nonce(&line, &nonce).await;
    assert_eq!((again.status.as_u16(), again.error().as_str()), (404, "lease not found"));
    assert_eq!(fixture.call(&format!("GET /v1/apps/a/machines/{id}/lease")).await.status, 404);
}

#[tokio::test]
async fn others_see_that_there_is_a_lease_but_not_its_nonce() {
    let fixture = Fixture::new().await;
    let (id, nonce) = leased(&fixture).await;
    fixture.worker.state().leases.get_mut(&id).unwrap().owner = "other@tokens.caddis".to_owned();
    let seen = fixture.call(&format!("GET /v1/apps/a/machines/{id}/lease")).await;
    assert_eq!(seen.json()["data"]["owner"], "other@tokens.caddis");
    assert!(!seen.text.contains(&nonce));
    for path in [format!("/v1/apps/a/machines/{id}"), "/v1/apps/a/machines".to_owned()] {
        let without = fixture.call(&format!("GET {path}")).await.text;
        let with = fixture.call(&format!("GET {path}?include_leases=true")).await.text;
        assert!(
            !without.contains("\"lease\"") && with.contains("\"lease\":{\"owner\":"),
            "{without} {with}"
        );
        assert!(!with.contains(&nonce));
    }
}
