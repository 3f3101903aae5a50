//! What goes through to the streams of a worker.

use axum::body::Body;

use crate::support::{Fixture, worker::StreamCall};

fn calls(fixture: &Fixture) -> Vec<(String, String)> {
    fixture
        .worker
        .state()
        .calls
        .iter()
        .map(|call| (call.method.clone(), call.uri.clone()))
        .collect()
}

#[tokio::test]
async fn images_are_listed_imported_and_removed_at_the_worker() {
    let fixture = Fixture::new().await;
    fixture.call("GET /v1/images").await.ok();
    let request =
        fixture.request("POST /v1/images?format=oci-archive&name=a%2Fb%3Ac&image=web%3A2&other=x");
    fixture.send(request.body(Body::from("archive")).unwrap()).await.ok();
    fixture.call("DELETE /v1/images?name=a/b:c").await.ok();
    assert_eq!(fixture.call("GET /v1/images?worker=other").await.status, 400);
    let uris = calls(&fixture);
    let expected = [
        ("GET", "/images"),
        ("POST", "/images?format=oci-archive&image=web%3A2&name=a%2Fb%3Ac"),
        ("DELETE", "/images?name=a%2Fb%3Ac"),
    ];
    assert_eq!(uris, expected.map(|(method, uri)| (method.to_owned(), uri.to_owned())));
    assert_eq!(fixture.worker.state().calls[1].body, "archive");
}

#[tokio::test]
async fn logs_are_asked_of_the_worker_with_limits() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let page = r#"{"data":[],"meta":{"next_token":"t"}}"#;
    fixture.worker.state().stream_answer = Some((200, page.to_owned()));
    for (query, expected) in [
        (String::new(), "/logs?app=a".to_owned()),
        (
            format!("next_token=x%26y&instance={id}&limit=99999&wait_seconds=600&region=fra"),
            format!("/logs?app=a&instance={id}&next_token=x%26y&limit=1000&wait_seconds=60"),
        ),
        (
            "region=local&since=1970-01-01T00:00:01Z&until=1970-01-01T01:00:02.5%2B01:00"
                .to_owned(),
            "/logs?app=a&region=local&since_ns=1000000000&until_ns=2500000000".to_owned(),
        ),
    ] {
        assert_eq!(fixture.call(&format!("GET /api/v1/apps/a/logs?{query}")).await.text, page);
        let StreamCall { method, uri, .. } = fixture.worker.state().calls.pop().unwrap();
        assert_eq!((method.as_str(), uri), ("GET", expected));
    }
}

#[tokio::test]
async fn logs_of_no_time_or_region_are_not_asked_for() {
    let fixture = Fixture::new().await;
    for (query, name) in
        [("since=10m", "since"), ("until=now", "until"), ("region=nowhere", "region")]
    {
        let answer = fixture.call(&format!("GET /api/v1/apps/a/logs?{query}")).await;
        assert!(
            answer.status == 400
                && answer.error().starts_with(&format!("invalid parameter {name} '")),
            "{query}"
        );
    }
    assert!(calls(&fixture).is_empty());
}

#[tokio::test]
async fn an_answer_that_is_no_error_body_is_our_fault() {
    let fixture = Fixture::new().await;
    fixture.worker.state().stream_answer = Some((500, "<html>".to_owned()));
    let answer = fixture.call("GET /v1/images").await;
    assert_eq!(answer.status, 500);
    assert!(answer.error().starts_with("internal: the worker answered 500"));
}
