//! Holds and traffic, as they are shown.

use serde_json::json;

use crate::support::Fixture;

#[tokio::test]
async fn a_hold_is_set_shown_with_the_machine_and_released() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let path = format!("/v1/apps/a/machines/{id}/hold");
    assert_eq!(fixture.call(&format!("GET {path}")).await.status, 404);
    for ttl in [json!(600), json!("600"), json!("10m")] {
        let body = json!({ "ttl": ttl, "reason": "why" });
        let hold = fixture.put(&path, body).await.ok();
        let expected = json!({ "until": "2026-03-31T06:08:08.600Z", "reason": "why" });
        assert_eq!(hold, expected, "{ttl}");
    }
    let shown = fixture.call(&format!("GET {path}")).await.ok();
    let machine = fixture.call(&format!("GET /v1/apps/a/machines/{id}")).await.ok();
    assert_eq!(machine["hold"], shown);
    for _ in 0..2 {
        assert_eq!(fixture.call(&format!("DELETE {path}")).await.ok(), json!({ "ok": true }));
    }
    assert_eq!(fixture.call(&format!("GET {path}")).await.status, 404);
}

#[tokio::test]
async fn a_hold_needs_no_nonce_and_a_time_within_a_day() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    fixture.call(&format!("POST /v1/apps/a/machines/{id}/lease?ttl=60")).await;
    let path = format!("/v1/apps/a/machines/{id}/hold");
    fixture.put(&path, json!({ "ttl": 1 })).await.ok();
    fixture.put(&path, json!({ "ttl": 86400 })).await.ok();
    for body in [json!({}), json!({ "ttl": 0 }), json!({ "ttl": 86401 }), json!({ "ttl": "soon" })]
    {
        let answer = fixture.put(&path, body.clone()).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.error().contains("ttl"), "{body}: {}", answer.text);
    }
    let long = json!({ "ttl": 1, "reason": "x".repeat(257) });
    assert!(fixture.put(&path, long).await.error().contains("reason"));
}

#[tokio::test]
async fn traffic_is_what_the_proxy_knows_and_404_where_it_knows_nothing() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let traffic = fixture.call(&format!("GET /v1/apps/a/machines/{id}/traffic")).await.ok();
    assert_eq!((&traffic["waiting"], &traffic["connections"]), (&json!(3), &json!(0)));
    assert_eq!(traffic["decision"]["why"], "a request came");
    let all = fixture.call("GET /v1/apps/a/traffic").await.ok();
    assert_eq!((&all["errors"], &all["machines"][id.as_str()]), (&json!({ "PR01": 2 }), &traffic));
    assert_eq!(fixture.call("GET /v1/apps/none/traffic").await.status, 404);
    fixture.post("/v1/apps", json!({ "name": "other", "org_slug": "personal" })).await;
    let config = json!({ "config": { "image": "nginx" } });
    let other = fixture.post("/v1/apps/other/machines", config).await.ok();
    let path = format!("/v1/apps/other/machines/{}/traffic", other["id"].as_str().unwrap());
    assert_eq!(fixture.call(&format!("GET {path}")).await.status, 404);
    assert_eq!(fixture.call("GET /v1/apps/other/traffic").await.status, 404);
}
