//! Progress as server-sent events.

use axum::body::Body;
use caddis_api::MachineState;
use futures::StreamExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::support::{Fixture, TIMEOUT, worker::records::operation};

/// Name and data of the next event.
async fn next(body: &mut axum::body::BodyDataStream) -> Option<(String, Value)> {
    let chunk = tokio::time::timeout(TIMEOUT, body.next()).await.unwrap()?.unwrap();
    let text = String::from_utf8(chunk.to_vec()).unwrap();
    let (name, data) = text.trim().split_once('\n').unwrap();
    let data = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
    Some((name.strip_prefix("event: ").unwrap().to_owned(), data))
}

#[tokio::test]
async fn each_change_of_an_operation_is_told_until_it_is_done() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let id = fixture.machine("a", "m").await;
    let request = fixture
        .request(&format!("GET /v1/apps/a/machines/{id}/operation"))
        .body(Body::empty())
        .unwrap();
    let response = fixture.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body().into_data_stream();
    assert_eq!(next(&mut body).await, Some(("operation".to_owned(), json!(operation("pull", 0)))));
    let unpack = operation("unpack", 50);
    fixture.worker.change(&id, |record| record.machine.operation = Some(unpack.clone())).await;
    assert_eq!(next(&mut body).await, Some(("operation".to_owned(), json!(unpack))));
    fixture.worker.turn(&id, MachineState::Started, "start").await;
    assert_eq!(next(&mut body).await, Some(("done".to_owned(), json!({"state": "started"}))));
    assert_eq!(next(&mut body).await, None);
}

#[tokio::test]
async fn without_an_operation_it_is_done_at_once() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let answer = fixture.call(&format!("GET /v1/apps/a/machines/{id}/operation")).await;
    assert_eq!(answer.text, "event: done\ndata: {\"state\":\"started\"}\n\n");
}
