//! Reading and changing machines.

use axum::body::Body;
use caddis_api::{MachineState, Signal};
use caddis_bus::message::{Action, WorkerRequest};
use serde_json::{Value, json};

use crate::support::Fixture;

fn last_action(fixture: &Fixture) -> Action {
    let state = fixture.worker.state();
    let mut actions = state.requests.iter().filter_map(|request| match request {
        WorkerRequest::Act { action, .. } => Some(action.clone()),
        _ => None,
    });
    actions.next_back().unwrap()
}

fn ids(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|machine| machine["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn changes_are_handed_to_the_worker_and_answered() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let machine = format!("/v1/apps/a/machines/{id}");
    let ok = json!({"ok": true});
    assert_eq!(
        fixture
            .post(&format!("{machine}/stop"), r#"{"signal": "TERM", "timeout": "10s"}"#)
            .await
            .ok(),
        ok
    );
    assert!(matches!(
        last_action(&fixture),
        Action::Stop { signal: Some(Signal::TERM), timeout: Some(timeout) }
            if timeout.0.as_secs() == 10
    ));
    assert_eq!(
        fixture.call(&format!("GET {machine}")).await.ok()["state"],
        "stopping",
        "it reads its own writes"
    );
    fixture.worker.turn(&id, MachineState::Stopped, "exit").await;
    let started = fixture.call(&format!("POST {machine}/start")).await.ok();
    assert_eq!(started, json!({"previous_state": "stopped", "migrated": false, "new_host": ""}));
    let restart = format!("POST {machine}/restart?timeout=20&signal=SIGINT&force_stop=true");
    assert_eq!(fixture.call(&restart).await.ok(), ok);
    assert!(matches!(
        last_action(&fixture),
        Action::Restart { signal: Some(Signal::INT), timeout: Some(timeout), force: true }
            if timeout.0.as_secs() == 20
    ));
    fixture.worker.turn(&id, MachineState::Started, "restart").await;
    assert_eq!(fixture.post(&format!("{machine}/signal"), r#"{"signal": 9}"#).await.ok(), ok);
    assert!(matches!(last_action(&fixture), Action::Signal { signal: Signal::KILL }));
    assert_eq!(fixture.call(&format!("POST {machine}/cordon")).await.ok(), ok);
    assert_eq!(fixture.call(&format!("GET {machine}")).await.ok()["cordoned"], true);
    assert_eq!(fixture.call(&format!("POST {machine}/uncordon")).await.ok(), ok);
    assert_eq!(fixture.call(&format!("GET {machine}")).await.ok()["cordoned"], false);
}

#[tokio::test]
async fn refusals_of_the_worker_come_through_and_both_ways_to_force_are_taken() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let machine = format!("/v1/apps/a/machines/{id}");
    let refused = fixture.call(&format!("DELETE {machine}?kill=false")).await;
    assert_eq!(refused.status, 412);
    assert_eq!(
        refused.error(),
        "failed_precondition: unable to destroy machine, not currently stopped, suspended, failed \
         or created"
    );
    fixture.call(&format!("DELETE {machine}?force=true&kill=false")).await.ok();
    assert_eq!(fixture.call(&format!("GET {machine}")).await.ok()["state"], "destroyed");
    assert_eq!(fixture.call("GET /v1/apps/a/machines").await.ok(), json!([]));
    let all = fixture.call("GET /v1/apps/a/machines?include_deleted=true").await.ok();
    assert_eq!(ids(&all), [id.as_str()]);
}

#[tokio::test]
async fn an_update_is_answered_with_the_new_version_and_the_old_ones_stay_readable() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let machine = format!("/v1/apps/a/machines/{id}");
    let before = fixture.call(&format!("GET {machine}")).await.ok();
    let old = before["version"].as_str().unwrap();
    for (body, text) in [
        (json!({}), "invalid config, it is required"),
        (
            json!({ "config": { "image": "b", "mounts": [{ "volume": "vol_1",
                "path": "/data" }] } }),
            "the volume of a machine can't be changed",
        ),
        (
            json!({ "config": { "image": "b", "stop_config": { "timeout": 3 } } }),
            "write \"3s\" for seconds",
        ),
        (json!({ "config": { "image": "b" }, "lease_ttl": 99_999_999 }), "invalid lease_ttl"),
        (
            json!({ "config": { "image": "b", "guest": { "cpus": 3 } } }),
            "invalid config.guest.cpus",
        ),
    ] {
        let refused = fixture.post(&machine, body).await;
        assert_eq!(refused.status, 400);
        assert!(refused.error().contains(text), "{}", refused.error());
    }
    let body = json!({
        "config": { "image": "b", "unknown": 1 }, "name": before["name"], "region": "local",
        "current_version": old, "skip_launch": true, "lease_ttl": 60, "min_secrets_version": null,
    });
    let updated = fixture.post(&machine, body).await.ok();
    assert_eq!(
        updated["warnings"],
        json!(["config.unknown is not known, it is stored and has no effect"])
    );
    assert_ne!(updated["version"], old);
    assert_eq!(updated["instance_id"], updated["instance_id"]);
    assert_eq!(updated["config"]["unknown"], 1);
    assert!(updated["nonce"].is_string(), "{updated}");
    let Some(WorkerRequest::Update { update: sent, .. }) =
        fixture.worker.state().requests.last().cloned()
    else {
        panic!("no update")
    };
    assert_eq!(
        (sent.expected.unwrap().as_str(), sent.skip_launch, sent.lease.unwrap().0),
        (old, true, 60)
    );

    let versions = fixture.call(&format!("GET {machine}/versions")).await.ok();
    let ids: Vec<_> =
        versions.as_array().unwrap().iter().map(|version| &version["version"]).collect();
    assert_eq!(ids, [&updated["version"], &before["version"]], "newest first");
    assert_eq!(versions[1]["user_config"], before["config"]);
    let earlier = fixture.call(&format!("GET {machine}?version={old}")).await.ok();
    assert_eq!((&earlier["state"], &earlier["config"]), (&json!("replaced"), &before["config"]));
    let unknown = fixture.call(&format!("GET {machine}?version=01HQ73A7BFFDF1B6WMGHFZZ4E7")).await;
    assert_eq!(unknown.status, 404);
    let wait = fixture.call(&format!("GET {machine}/wait?version={old}")).await;
    assert!(wait.status == 409 && wait.error().contains("currently replaced"), "{}", wait.error());
}

#[tokio::test]
async fn what_an_update_can_not_change_is_ignored_with_a_warning() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let machine = format!("/v1/apps/a/machines/{id}");
    let before = fixture.call(&format!("GET {machine}")).await.ok();
    let body = json!({ "config": { "image": "b" }, "name": "other", "region": "fra", "nmae": "x" });
    let updated = fixture.post(&machine, body).await.ok();
    assert_eq!((&updated["name"], &updated["region"]), (&before["name"], &before["region"]));
    let name = before["name"].as_str().unwrap();
    let told = json!([
        "nmae is not known and has no effect; did you mean name?",
        format!("name is ignored: it can't be changed from {name}"),
        "region is ignored: it can't be changed from local",
    ]);
    assert_eq!(updated["warnings"], told);
    fixture.worker.turn(&id, MachineState::Suspended, "suspend").await;
    fixture.call(&format!("GET {machine}/wait?state=suspended")).await.ok();
    let updated = fixture.post(&machine, json!({ "config": { "image": "b" } })).await.ok();
    let told = "the memory saved by the suspend is discarded, the next start is a new boot";
    assert_eq!(updated["warnings"], json!([told]));
}

#[tokio::test]
async fn what_is_asked_of_a_machine_that_is_about_to_run_waits_for_that() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let id = fixture.machine("a", "m").await;
    let machine = format!("/v1/apps/a/machines/{id}");
    let reply = json!({"exit_code": 0, "exit_signal": 0, "stdout": "out", "stderr": ""});
    fixture.worker.state().stream_answer = Some((200, reply.to_string()));
    let late = fixture.post(&format!("{machine}/exec"), r#"{"cmd": "ls", "timeout": "1s"}"#).await;
    assert_eq!(late.status, 408, "{}", late.text);
    assert!(late.error().contains("the machine is still creating after 1 s"), "{}", late.error());
    let (exec, signal) = (format!("{machine}/exec"), format!("{machine}/signal"));
    let exec = fixture.post(&exec, r#"{"cmd": "ls"}"#);
    let signal = fixture.post(&signal, r#"{"signal": "SIGWINCH"}"#);
    let start = async {
        tokio::task::yield_now().await;
        assert!(fixture.worker.state().calls.is_empty(), "it waits");
        fixture.worker.turn(&id, MachineState::Starting, "start").await;
        fixture.worker.turn(&id, MachineState::Started, "start").await;
    };
    let (exec, signal, ()) = tokio::join!(exec, signal, start);
    assert_eq!(exec.ok(), reply);
    assert_eq!(signal.ok(), json!({"ok": true}));
    assert!(matches!(last_action(&fixture), Action::Signal { signal } if signal.number() == 28));
    // One that has failed, or is stopped, is not waited for.
    fixture.worker.turn(&id, MachineState::Stopped, "exit").await;
    fixture.post(&format!("{machine}/signal"), r#"{"signal": "SIGHUP"}"#).await;
    assert!(
        matches!(last_action(&fixture), Action::Signal { signal } if signal.number() == 1),
        "the worker refuses it"
    );
}

#[tokio::test]
async fn metadata_is_read_and_written_by_key_and_as_a_whole() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let metadata = format!("/v1/apps/a/machines/{id}/metadata");
    assert_eq!(fixture.call(&format!("GET {metadata}")).await.ok(), json!({}));
    let set = fixture.post(&format!("{metadata}/a%2Fb"), json!({ "value": "1" })).await;
    assert_eq!(set.status, 204);
    assert_eq!(fixture.call(&format!("GET {metadata}/a%2Fb")).await.ok(), json!({ "value": "1" }));
    assert_eq!(fixture.call(&format!("GET {metadata}")).await.ok(), json!({ "a/b": "1" }));
    assert_eq!(fixture.call(&format!("GET {metadata}/none")).await.status, 404);
    assert_eq!(fixture.call(&format!("DELETE {metadata}/a%2Fb")).await.status, 204);
    let body = json!({ "metadata": { "x": "1", "gone": null, "empty": "" }, "machine_version": "",
        "updated_at": "now" });
    for method in ["PATCH", "PUT"] {
        let request = fixture.request(&format!("{method} {metadata}"));
        assert_eq!(
            fixture.send(request.body(Body::from(body.to_string())).unwrap()).await.status,
            204
        );
        let Action::SetMetadata { changes, expected } = last_action(&fixture) else { panic!() };
        assert_eq!((changes.len(), changes["gone"].clone(), expected), (3, None, None));
    }
    for (path, body) in
        [("/k", json!({})), ("/k", json!({ "value": 5 })), ("/k", json!([])), ("/k", json!(["x"]))]
    {
        assert_eq!(fixture.post(&format!("{metadata}{path}"), body).await.status, 400);
    }
}

#[tokio::test]
async fn a_suspend_needs_no_body_and_is_answered_at_once() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let request = fixture.request(&format!("POST /v1/apps/a/machines/{id}/suspend"));
    let answer = fixture.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!((answer.status.as_u16(), answer.ok()), (200, json!({ "ok": true })));
}

#[tokio::test]
async fn lists_are_filtered() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let create = |name: &str, kind: &str| {
        let metadata = json!({"kind": kind, "x": "y"});
        json!({"name": name, "config": {"image": "nginx", "metadata": metadata}})
    };
    let mut made = Vec::new();
    for (name, kind) in [("one", "web"), ("two", "web"), ("three", "job")] {
        made.push(
            fixture.post("/v1/apps/a/machines", create(name, kind)).await.ok()["id"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    let id = made[0].parse().unwrap();
    fixture.worker.turn(&id, MachineState::Started, "start").await;
    fixture.call(&format!("GET /v1/apps/a/machines/{id}/wait")).await.ok();
    for (query, mut expected) in [
        ("", vec![0, 1, 2]),
        ("state=started", vec![0]),
        ("state=creating,stopped", vec![1, 2]),
        ("metadata.kind=web", vec![0, 1]),
        ("metadata.kind=web&metadata.x=y&state=creating", vec![1]),
        ("metadata.kind=none", vec![]),
        ("region=local", vec![0, 1, 2]),
        ("region=other", vec![]),
        ("any=thing&else", vec![0, 1, 2]),
    ] {
        let list = fixture.call(&format!("GET /v1/apps/a/machines?{query}")).await.ok();
        expected.sort_by_key(|index| &made[*index]);
        assert_eq!(
            ids(&list),
            expected.iter().map(|index| made[*index].as_str()).collect::<Vec<_>>(),
            "{query}"
        );
    }
    let summary = fixture.call("GET /v1/apps/a/machines?summary=true").await.ok();
    for field in ["config", "events", "checks", "host_status", "nonce"] {
        assert!(summary[0].get(field).is_none(), "{field}");
    }
    assert!(summary[0]["cordoned"].is_boolean());
}

#[tokio::test]
async fn lists_come_in_pages() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    for name in ["one", "two", "three"] {
        fixture.machine("a", name).await;
    }
    let first = fixture.call("GET /v1/apps/a/machines?limit=2").await;
    let cursor = first.headers["fly-next-cursor"].to_str().unwrap().to_owned();
    let second = fixture.call(&format!("GET /v1/apps/a/machines?limit=2&cursor={cursor}")).await;
    assert!(!second.headers.contains_key("fly-next-cursor"));
    let (first, second) = (first.ok(), second.ok());
    let all = fixture.call("GET /v1/apps/a/machines").await.ok();
    assert_eq!([ids(&first), ids(&second)].concat(), ids(&all));
    let organization = fixture.call("GET /v1/orgs/personal/machines?limit=2").await.ok();
    let cursor = organization["next_cursor"].as_str().unwrap();
    let rest =
        fixture.call(&format!("GET /v1/orgs/personal/machines?limit=2&cursor={cursor}")).await.ok();
    assert_eq!([ids(&organization["machines"]), ids(&rest["machines"])].concat(), ids(&all));
    assert_eq!(rest["machines"][0]["app_name"], "a");
    assert_eq!(rest["machines"][0]["config"]["image"], "nginx");
    assert!(rest.get("next_cursor").is_none());
}

#[tokio::test]
async fn a_version_is_shown_when_it_is_the_current_one() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let version =
        fixture.call(&format!("GET /v1/apps/a/machines/{id}")).await.ok()["version"].clone();
    let path = format!("GET /v1/apps/a/machines/{id}?version=");
    assert_eq!(
        fixture.call(&format!("{path}{}", version.as_str().unwrap())).await.ok()["version"],
        version
    );
    assert_eq!(fixture.call(&format!("{path}01HQ73A7BFFDF1B6WMGHFZZ4E7")).await.status, 404);
}

#[tokio::test]
async fn events_and_processes_come_from_the_worker() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let machine = format!("/v1/apps/a/machines/{id}");
    let events = fixture.call(&format!("GET {machine}/events?limit=1")).await.ok();
    assert_eq!(events.as_array().unwrap().len(), 1);
    assert_eq!((&events[0]["type"], &events[0]["status"]), (&json!("start"), &json!("started")));
    fixture.call(&format!("GET {machine}/events?limit=1000")).await.ok();
    assert!(matches!(
        fixture.worker.state().requests.last(),
        Some(WorkerRequest::Events { limit: 50, .. })
    ));
    let processes = fixture.call(&format!("GET {machine}/ps?sort_by=rss&order=desc")).await.ok();
    let pids: Vec<_> = processes
        .as_array()
        .unwrap()
        .iter()
        .map(|process| process["pid"].as_i64().unwrap())
        .collect();
    assert_eq!(pids, [7, 9, 1]);
}

#[tokio::test]
async fn exec_is_handed_to_the_stream_with_its_words_and_the_nonce() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let reply = json!({"exit_code": 3, "exit_signal": 0, "stdout": "out", "stderr": ""});
    fixture.worker.state().stream_answer = Some((200, reply.to_string()));
    let request = fixture
        .request(&format!("POST /v1/apps/a/machines/{id}/exec"))
        .header("fly-machine-lease-nonce", "abc")
        .body(Body::from(r#"{"cmd": "sh -c 'exit 3'", "timeout": 10, "container": null}"#));
    assert_eq!(fixture.send(request.unwrap()).await.ok(), reply);
    let call = fixture.worker.state().calls[0].clone();
    assert_eq!((call.method.as_str(), call.uri), ("POST", format!("/machines/{id}/exec")));
    assert_eq!(call.nonce.as_deref(), Some("abc"));
    let sent: Value = serde_json::from_str(&call.body).unwrap();
    assert_eq!(sent, json!({"command": ["sh", "-c", "exit 3"], "timeout": 10}));
}

#[tokio::test]
async fn errors_of_a_stream_get_their_request_id() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let error = caddis_api::ApiError::precondition("machine not running");
    fixture.worker.state().stream_answer =
        Some((412, serde_json::to_string(&error.body(None)).unwrap()));
    let answer = fixture.post(&format!("/v1/apps/a/machines/{id}/exec"), r#"{"cmd": "ls"}"#).await;
    assert_eq!(
        (answer.status.as_u16(), answer.error().as_str()),
        (412, "failed_precondition: machine not running")
    );
}
