//! Requests that must be refused, and how.

use axum::{body::Body, http::Request};
use caddis_gateway::Settings;
use serde_json::json;

use crate::support::Fixture;

#[tokio::test]
async fn all_ways_to_send_a_token_are_taken() {
    let fixture = Fixture::new().await;
    let token = &fixture.token;
    for value in [
        format!("Bearer {token}"),
        format!("bearer  {token}"),
        format!("FlyV1 fm2_x,{token}"),
        format!("FlyV1 FlyV1 {token}, fm2_y"),
        format!("Bearer fm1r_x,{token},fm1a_y"),
        token.clone(),
    ] {
        let request =
            Request::get("/v1/apps").header("authorization", &value).body(Body::empty()).unwrap();
        assert_eq!(fixture.send(request).await.status, 200, "{value}");
    }
}

#[tokio::test]
async fn every_answer_has_a_request_id_and_errors_repeat_it() {
    let fixture = Fixture::new().await;
    let fine = fixture.call("GET /v1/apps").await;
    let id = fine.headers["fly-request-id"].to_str().unwrap().to_owned();
    assert!(id.len() == 32 && id.ends_with("-local"), "{id}");
    let missing = fixture.call("GET /v1/nothing/here?token=x").await;
    assert_eq!(
        (missing.status.as_u16(), missing.error().as_str()),
        (404, "no such endpoint: GET /v1/nothing/here")
    );
    let wrong = fixture.call("PATCH /v1/apps").await;
    assert_eq!(wrong.status, 405);
    assert!(wrong.error().contains("PATCH"));
    assert_eq!(fixture.call("GET /v1/apps/a/machines/3d8d413b29d089/start").await.status, 405);
}

#[tokio::test]
async fn bad_bodies_of_a_create_are_refused_with_the_place() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let deep = format!("{{\"config\": {{\"x\": {}1{}}}}}", "[".repeat(500), "]".repeat(500));
    for (body, expected) in [
        ("", "invalid config, it is required"),
        ("{}", "invalid config, it is required"),
        (r#"{"config": null}"#, "invalid config, it is required"),
        ("[]", "invalid body: it must be an object"),
        ("nonsense", "invalid JSON: expected ident at line 1 column 2"),
        (r#"{"config": {"image": "a"}"#, "invalid JSON: EOF"),
        (
            r#"{"config": {"image": "a"}} x"#,
            "invalid JSON: trailing characters at line 1 column 28",
        ),
        (r#"{"config": 5}"#, "invalid config: invalid type: integer `5`"),
        (r#"{"config": {}}"#, "config.image"),
        (r#"{"config": {"image": 5}}"#, "invalid config.image"),
        (r#"{"config": {"image": "a", "guest": {"cpus": "2"}}}"#, "invalid config.guest.cpus"),
        (
            r#"{"config": {"image": "a", "guest": {"cpus": 3}}}"#,
            "invalid config.guest.cpus, 3 is not one of",
        ),
        (r#"{"config": {"image": "a", "guest": {"memory_mb": 128}}}"#, "minimum required 256 MiB"),
        (r#"{"config": {"image": "a", "guest": {"memory_mb": 99999}}}"#, "cannot exceed 2048 MiB"),
        (r#"{"config": {"image": "a"}, "name": 7}"#, "invalid name: invalid type: integer `7`"),
        (r#"{"config": {"image": "a"}, "name": "a b"}"#, "invalid machine name"),
        (r#"{"config": {"image": "a"}, "lease_ttl": -1}"#, "invalid lease_ttl"),
        (
            r#"{"config": {"image": "a"}, "lease_ttl": 999999}"#,
            "invalid lease_ttl, cannot exceed 86400 seconds",
        ),
        (r#"{"config": {"image": "a"}, "skip_launch": "yes"}"#, "invalid skip_launch"),
        (deep.as_str(), "recursion limit exceeded"),
    ] {
        let answer = fixture.post("/v1/apps/a/machines", body).await;
        assert_eq!(answer.status, 400, "{body} gave {}", answer.text);
        assert!(answer.error().contains(expected), "{body} gave {}", answer.text);
    }
    assert!(fixture.worker.state().machines.is_empty());
}

#[tokio::test]
async fn bad_parameters_are_refused_with_their_name() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let machine = format!("/v1/apps/a/machines/{id}");
    for (line, expected) in [
        ("GET /v1/apps/a/machines?state=odd".to_owned(), "state"),
        ("GET /v1/apps/a/machines?summary=maybe".to_owned(), "summary"),
        ("GET /v1/apps/a/machines?limit=1001".to_owned(), "limit"),
        (format!("GET {machine}/wait?state=odd"), "state"),
        (format!("GET {machine}/wait?timeout=x"), "timeout"),
        (format!("GET {machine}/wait?version=short"), "version"),
        (format!("GET {machine}/wait?from_event_id=short"), "from_event_id"),
        (format!("GET {machine}/events?limit=x"), "limit"),
        (format!("GET {machine}/ps?sort_by=shoe_size"), "sort_by"),
        (format!("GET {machine}/ps?order=up"), "order"),
        (format!("POST {machine}/restart?timeout=x"), "timeout"),
        (format!("POST {machine}/restart?signal=SIGFOO"), "signal"),
        (format!("POST {machine}/restart?timeout=301"), "timeout"),
        (format!("POST {machine}/lease?ttl=86401"), "ttl"),
        (format!("DELETE {machine}?force=maybe"), "force"),
        ("POST /v1/images?format=zip".to_owned(), "format"),
        ("DELETE /v1/images".to_owned(), "name"),
        ("GET /api/v1/apps/a/logs?instance=../x".to_owned(), "instance"),
    ] {
        let answer = fixture.call(&line).await;
        assert_eq!(answer.status, 400, "{line} gave {}", answer.text);
        assert!(answer.error().contains(expected), "{line} gave {}", answer.text);
    }
    for (path, body, expected) in [
        ("stop", r#"{"signal": "SIGFOO"}"#, "signal"),
        ("stop", r#"{"signal": true}"#, "signal"),
        ("stop", r#"{"timeout": "301s"}"#, "cannot exceed 300s"),
        ("stop", "[1]", "body"),
        ("signal", "{}", "signal"),
        ("signal", r#"{"signal": 65}"#, "signal"),
        ("stop", r#"{"timeout": 10}"#, "write \"10s\" for seconds"),
        ("lease", r#"{"ttl": "x"}"#, "ttl"),
    ] {
        let answer = fixture.post(&format!("{machine}/{path}"), body).await;
        assert_eq!(answer.status, 400, "{path} {body} gave {}", answer.text);
        assert!(answer.error().contains(expected), "{path} {body} gave {}", answer.text);
    }
}

#[tokio::test]
async fn unknown_things_are_not_found() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    fixture.app("b").await;
    let create = json!({"config": {"image": "nginx"}});
    assert_eq!(
        fixture.post("/v1/apps/x/machines", create).await.error(),
        "Could not find App \"x\""
    );
    for (line, status, text) in [
        ("GET /v1/apps/x/machines".to_owned(), 404, "Could not find App \"x\""),
        (format!("GET /v1/apps/x/machines/{id}"), 404, "Could not find App \"x\""),
        (format!("GET /v1/apps/b/machines/{id}"), 404, "machine not found"),
        (format!("DELETE /v1/apps/b/machines/{id}?force=true"), 404, "machine not found"),
        ("GET /v1/apps/a/machines/00000000000000".to_owned(), 404, "machine not found"),
        ("GET /v1/apps/a/machines/NOPE".to_owned(), 400, "invalid machine ID, 'NOPE'"),
        (
            "GET /v1/apps/a/machines/%2e%2e%2fetc/wait".to_owned(),
            400,
            "invalid machine ID, '../etc'",
        ),
        ("DELETE /v1/apps/x".to_owned(), 404, "Could not find App \"x\""),
        ("GET /api/v1/apps/x/logs".to_owned(), 404, "Could not find App \"x\""),
        ("GET /v1/orgs/other/machines".to_owned(), 404, "Could not find Organization 'other'"),
    ] {
        let answer = fixture.call(&line).await;
        assert_eq!((answer.status.as_u16(), answer.error().as_str()), (status, text), "{line}");
    }
    let undecodable = fixture.call("GET /v1/apps/%ff/machines").await;
    assert_eq!(undecodable.status, 400);
    assert!(undecodable.error().starts_with("invalid path"));
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused_whether_announced_or_not() {
    let settings = Settings { max_body_bytes: 1000, max_upload_bytes: 2000, ..Settings::default() };
    let fixture = Fixture::with(settings, |_| {}).await;
    let large = "x".repeat(1001);
    let announced = fixture.request("POST /v1/apps").header("content-length", "1001");
    let answer = fixture.send(announced.body(Body::from(large.clone())).unwrap()).await;
    assert_eq!(answer.status, 413);
    assert_eq!(answer.error(), "the body is too large, cannot exceed 1000 bytes");
    let chunked = |line: &str| {
        let chunks: Vec<_> = (0..3).map(|_| Ok::<_, std::io::Error>(large.clone())).collect();
        fixture.request(line).body(Body::from_stream(futures::stream::iter(chunks))).unwrap()
    };
    assert_eq!(fixture.send(chunked("POST /v1/apps")).await.status, 413);
    fixture.send(chunked("POST /v1/images?format=oci-archive")).await;
    let seen = fixture.worker.state().calls[0].body.clone();
    assert!(seen.starts_with("error: "), "the worker must see that the upload was cut: {seen}");
}

#[tokio::test]
async fn content_types_nulls_and_empty_bodies_do_not_matter() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let machine = format!("/v1/apps/a/machines/{id}");
    for body in [
        "",
        " ",
        "{}",
        "null",
        r#"{"signal": null, "timeout": "0s", "id": "x"}"#,
        r#"{"signal": "", "timeout": ""}"#,
    ] {
        for content_type in ["application/json", "text/plain", "application/x-www-form-urlencoded"]
        {
            let request = fixture
                .request(&format!("POST {machine}/stop"))
                .header("content-type", content_type);
            let answer = fixture.send(request.body(Body::from(body)).unwrap()).await;
            assert_eq!(answer.status, 200, "{body:?} {content_type} gave {}", answer.text);
        }
    }
    for signal in ["9", "\"9\"", "\"SIGKILL\"", "\"kill\""] {
        let answer =
            fixture.post(&format!("{machine}/signal"), format!("{{\"signal\": {signal}}}")).await;
        assert_eq!(answer.ok(), json!({"ok": true}));
    }
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_back() {
    let fixture =
        Fixture::with(caddis_gateway::Settings { rate_limit: 1.0, ..Default::default() }, |_| {})
            .await;
    let id = fixture.started().await;
    let stop = format!("POST /v1/apps/a/machines/{id}/stop");
    for _ in 0..3 {
        assert_eq!(fixture.call(&stop).await.status, 200);
    }
    let refused = fixture.call(&stop).await;
    assert_eq!(refused.status, 429);
    assert!(
        refused.error().starts_with("resource_exhausted: too many requests"),
        "{}",
        refused.error()
    );
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(
        fixture.call(&format!("GET /v1/apps/a/machines/{id}")).await.status,
        200,
        "other kinds are let through"
    );
    let asked = fixture.worker.state().requests.len();
    fixture.call(&stop).await;
    assert_eq!(fixture.worker.state().requests.len(), asked, "the worker hears nothing of it");
    // Who has no token uses up nothing.
    for _ in 0..20 {
        let request = axum::http::Request::get("/v1/apps?org_slug=personal")
            .body(axum::body::Body::empty())
            .unwrap();
        assert_eq!(fixture.send(request).await.status, 401);
    }
    assert_eq!(fixture.call("GET /v1/apps?org_slug=personal").await.status, 200);
}
