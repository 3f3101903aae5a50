//! Every operation of the OpenAPI document, over HTTP. [`Fixture::send`] compares the answers with
//! the document.

use std::collections::BTreeSet;

use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use caddis_api::{MachineId, MachineState};
use serde_json::{Value, json};

use crate::support::{
    Answer, CONTRACT, Fixture,
    contract::{Operation, accept},
};

/// A volume of the app `a`, which is there from the start.
pub const VOLUME: &str = "vol_0123456789abcdef";

/// A snapshot of it, which is there from the start.
pub const SNAPSHOT: &str = "vs_0123456789abcdef";

/// A policy that says nothing, as it is recorded.
const NO_POLICY: &str = r#"{"selector": {"all": true}, "rules": []}"#;

/// What stands for a policy of the app `a` in paths.
const POLICY: &str = "np_0123456789abcdef";

/// A path of an operation with the app `a` and a machine filled in.
fn filled_in(operation: &Operation, id: &str) -> String {
    filled_in_with(&operation.path, "a", id)
}

/// A path with an app and a machine filled in.
pub fn filled_in_with(path: &str, app: &str, id: &str) -> String {
    let path = path.replace("{app_name}", app).replace("{machine_id}", id);
    path.replace("{org_slug}", "personal")
        .replace("{key}", "k")
        .replace("{id}", "W1")
        .replace("{ip}", "127.64.0.1")
        .replace("{volume_id}", VOLUME)
        .replace("{snapshot_id}", SNAPSHOT)
        .replace("{policy_id}", POLICY)
        .replace("{name}", "laptop")
}

/// A query and a body with which an operation succeeds, in an order in which all do.
pub const REQUESTS: &[(&str, &str, &str)] = &[
    ("Server_openapi", "", ""),
    ("Server_docs", "", ""),
    ("Health_show", "", ""),
    ("Platform_regions_get", "", ""),
    ("Platform_status", "", ""),
    (
        "Platform_placements_post",
        "",
        concat!(
            r#"{"org_slug": "personal", "region": "any", "count": 1, "compute": {"cpus": 1}, "#,
            r#""weights": {"spread": 2}}"#
        ),
    ),
    ("Apps_list", "?org_slug=personal&limit=5", ""),
    ("Apps_show", "", ""),
    (
        "Apps_logs",
        "?limit=10&wait_seconds=0&next_token=x&region=local&since=2020-01-01T00:00:00Z&\
         until=2030-01-01T00:00:00Z",
        "",
    ),
    ("App_IPAssignments_create", "", r#"{"type": "v4", "region": "", "service_name": "web"}"#),
    ("App_IPAssignments_list", "", ""),
    ("App_IPAssignments_delete", "", ""),
    (
        "App_NetworkPolicies_put",
        "",
        r#"{"name": "web", "selector": {"all": true, "metadata": {"role": "web"}}, "dns": "deny",
        "rules": [{"action": "allow", "direction": "egress",
        "ports": [{"protocol": "tcp", "port": 443}],
        "to": [{"cidr": "10.0.0.0/8"}, {"app": "a"}, {"network": "default"}]}]}"#,
    ),
    ("App_NetworkPolicies_list", "", ""),
    ("App_NetworkPolicies_show", "", ""),
    ("App_NetworkPolicies_delete", "", ""),
    ("Images_list", "?worker=W1", ""),
    ("Images_import", "?format=oci-archive&name=b", "archive"),
    ("Images_delete", "?name=b", ""),
    (
        "Machines_list",
        "?include_deleted=true&include_leases=true&summary=true&region=local&state=started&limit=5",
        "",
    ),
    ("Organizations_list", "", ""),
    (
        "Machines_org_list",
        "?include_deleted=true&summary=false&updated_after=2020-01-01T00:00:00Z&limit=5",
        "",
    ),
    (
        "Volumes_create",
        "",
        r#"{"name": "data", "region": "any", "size_gb": 1, "encrypted": true,
        "require_unique_zone": false, "unique_zone_app_wide": false, "snapshot_retention": 5,
        "auto_backup_enabled": true, "fstype": "ext4", "snapshot_id": null,
        "source_volume_id": null, "compute": {"cpus": 1, "memory_mb": 256},
        "compute_image": "nginx"}"#,
    ),
    ("Volumes_list", "?summary=true&limit=5", ""),
    (
        "Volumes_org_list",
        "?include_deleted=true&summary=true&region=local&state=created&limit=5\
        &updated_after=2020-01-01T00:00:00Z",
        "",
    ),
    ("Volumes_get_by_id", "", ""),
    ("Volumes_update", "", r#"{"snapshot_retention": 7, "auto_backup_enabled": null}"#),
    ("Volumes_extend", "", r#"{"size_gb": 10}"#),
    ("Volumes_list_snapshots", "", ""),
    ("createVolumeSnapshot", "", ""),
    ("Volumes_get_snapshot", "", ""),
    ("Volumes_delete_snapshot", "", ""),
    ("Volume_delete", "", ""),
    ("Volumes_undelete", "", ""),
    ("Machines_show", "?include_leases=true", ""),
    ("Machines_wait", "?state=started,settled&timeout=1", ""),
    ("Machines_watch", "?timeout=1s", ""),
    ("Machines_usage", "?interval=1s&timeout=1s", ""),
    ("Machines_follow_operation", "", ""),
    ("Machines_list_events", "?limit=5", ""),
    ("Machines_list_versions", "", ""),
    ("Machines_list_processes", "?sort_by=cpu&order=desc", ""),
    ("Machines_exec", "", r#"{"command": ["ls", "/"], "stdin": "", "timeout": 5}"#),
    ("Machines_set_hold", "", r#"{"ttl": "10m", "reason": "migration"}"#),
    ("Machines_show_hold", "", ""),
    ("Machines_release_hold", "", ""),
    ("Machines_allocate_egress_ips", "", ""),
    ("Machines_list_egress_ips", "", ""),
    ("Machines_promote_egress_ips", "", ""),
    ("Machines_allocate_egress_ips", "", ""),
    ("App_EgressIPs_list", "", ""),
    ("Machines_release_egress_ips", "", ""),
    (
        "WireGuardPeers_create",
        "",
        r#"{"name": "laptop", "public_key": "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="}"#,
    ),
    ("WireGuardPeers_list", "", ""),
    ("WireGuardPeers_show", "", ""),
    (
        "WireGuardPeers_reset",
        "",
        r#"{"public_key": "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="}"#,
    ),
    ("WireGuardPeers_delete", "", ""),
    ("Machines_traffic", "", ""),
    ("Apps_traffic", "", ""),
    ("Machines_get_memory", "", ""),
    ("Machines_set_memory_limit", "", r#"{"limit_mb": 128}"#),
    ("Machines_reclaim_memory", "", r#"{"amount_mb": 10}"#),
    ("Machines_signal", "", r#"{"signal": "SIGUSR1"}"#),
    ("Machines_update_metadata", "", r#"{"metadata": {"k": "1", "gone": null}}"#),
    ("Machines_update_metadata_deprecated", "", r#"{"metadata": {"k": "2"}, "updated_at": "now"}"#),
    ("Machines_show_metadata", "", ""),
    ("Machines_upsert_metadata", "", r#"{"value": "3"}"#),
    ("Machines_get_metadata_key", "", ""),
    ("Machines_delete_metadata", "", ""),
    ("Machines_create_lease", "?ttl=5", r#"{"ttl": 60, "description": "deploy"}"#),
    ("Machines_show_lease", "", ""),
    ("Machines_release_lease", "", ""),
    ("Machines_cordon", "", ""),
    ("Machines_uncordon", "", ""),
    ("Machines_restart", "?timeout=5s&signal=SIGTERM&force_stop=false", ""),
    ("Machines_suspend", "", ""),
    ("Machines_stop", "", r#"{"signal": "SIGTERM", "timeout": "5s"}"#),
    ("Machines_start", "", ""),
    (
        "Machines_update",
        "",
        concat!(
            r#"{"config": {"image": "nginx", "guest": {"cpus": 2, "cpu_kind": "shared"}}, "#,
            r#""lease_ttl": 0}"#
        ),
    ),
    (
        "Machines_update_deprecated",
        "",
        r#"{"config": {"image": "nginx", "services": [], "own": [1]}, "skip_launch": true}"#,
    ),
    ("Apps_create", "", r#"{"name": "b", "org_slug": "personal", "network": "n"}"#),
    (
        "Machines_create",
        "",
        r#"{"config": {"image": "nginx", "env": {"A": "b"},
        "processes": [{"cmd": ["a"], "user": "1",
        "env_from": [{"env_var": "B", "field_ref": "id"}]}],
        "stop_config": {"signal": "SIGINT", "timeout": "1s"},
        "restart": {"policy": "always"}, "files": [{"guest_path": "/a", "raw_value": "YQ=="}]},
        "name": "n", "region": "local"}"#,
    ),
    ("Host_drain", "", r#"{"timeout_seconds": 1}"#),
    ("Machines_delete", "?force=true", ""),
    ("Apps_delete", "", ""),
];

/// These need a connection of their own, see `terminal.rs`.
pub const OVER_A_CONNECTION: &[&str] = &["Machines_exec_ws"];

#[tokio::test]
async fn every_operation_succeeds_as_documented() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    exercise(&fixture, &id, async |_, request| {
        let answer = fixture.send(request(&fixture.token)).await;
        assert!(answer.status.is_success(), "{} {}", answer.status, answer.text);
        answer
    })
    .await;
    let documented: BTreeSet<_> =
        CONTRACT.operations.iter().map(|operation| operation.id.as_str()).collect();
    let exercised =
        REQUESTS.iter().map(|(name, ..)| *name).chain(OVER_A_CONNECTION.iter().copied());
    let exercised: BTreeSet<_> = exercised.collect();
    assert_eq!(documented, exercised, "each operation of the document needs a request here");
    assert_eq!(CONTRACT.operations.len(), documented.len(), "ids of operations are unique");
}

/// Has the request of each operation sent, by whoever has the token that it is made with, about a
/// machine of the app `a`. What is given back is the answer to a request that was carried out.
pub async fn exercise(
    fixture: &Fixture,
    id: &MachineId,
    send: impl AsyncFn(&Operation, &dyn Fn(&str) -> Request<Body>) -> Answer,
) {
    fixture.volume_of_id(VOLUME).await;
    fixture.worker.add_snapshot(VOLUME, SNAPSHOT);
    let policy = fixture.catalog.put_policy("a", None, ("all", NO_POLICY)).await.unwrap();
    let mut nonce = String::new();
    for (name, query, body) in REQUESTS {
        let operation = CONTRACT.operations.iter().find(|operation| operation.id == *name);
        let operation = operation.unwrap_or_else(|| panic!("{name} is not in the document"));
        check_request(operation, query, body);
        let path = filled_in(operation, id.as_str()).replace(POLICY, policy.id.as_str());
        let line = format!("{} {path}{query}", operation.method);
        let request = |token: &str| {
            let request =
                fixture.request_by(token, &line).header("fly-machine-lease-nonce", &nonce);
            request.body(Body::from(*body)).unwrap()
        };
        let answer = send(operation, &request).await;
        match *name {
            "Machines_create_lease" => nonce = answer.json()["nonce"].as_str().unwrap().to_owned(),
            "Machines_release_lease" => nonce.clear(),
            _ => {}
        }
        if operation.method == "POST"
            && operation.path.contains("machine_id")
            && name != &"Machines_update"
        {
            fixture.worker.turn(id, MachineState::Started, "start").await;
        }
    }
}

/// A request must be one that the document describes, too.
fn check_request(operation: &Operation, query: &str, body: &str) {
    for (name, value) in
        query.trim_start_matches('?').split('&').filter_map(|pair| pair.split_once('='))
    {
        let known =
            operation.parameters.iter().any(|(known, place, _)| known == name && place == "query");
        assert!(known, "{} has no parameter {name} ({value})", operation.id);
    }
    match operation.request.get("application/json") {
        Some(validator) if !body.is_empty() => accept(validator, body, &operation.id),
        _ => assert!(
            body.is_empty() || !operation.request.is_empty(),
            "{} takes no body",
            operation.id
        ),
    }
}

#[tokio::test]
async fn parameters_with_a_form_are_read() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let has_form = |schema: &Value| {
        schema.get("enum").is_some()
            || ["boolean", "integer"].iter().any(|kind| schema["type"] == *kind)
    };
    let mut read = 0;
    for operation in &CONTRACT.operations {
        for (name, place, schema) in &operation.parameters {
            if place == "query" && has_form(schema) {
                let line = format!(
                    "{} {}?{name}=nonsense",
                    operation.method,
                    filled_in(operation, id.as_str())
                );
                assert_eq!(fixture.call(&line).await.status, 400, "{line}");
                read += 1;
            }
        }
    }
    assert!(read > 15, "{read}");
}

#[tokio::test]
async fn nothing_is_done_without_a_token_of_ours() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let asked = |fixture: &Fixture| {
        let state = fixture.worker.state();
        (state.requests.len(), state.calls.len())
    };
    let before = asked(&fixture);
    for operation in CONTRACT.operations.iter().filter(|operation| operation.needs_token) {
        for token in [
            None,
            Some("Bearer wrong"),
            Some("FlyV1 fm2_x,fm2_y"),
            Some(""),
            Some("Bearer "),
            Some("Basic eDp5"),
        ] {
            let path = filled_in(operation, id.as_str());
            let mut request = Request::builder().method(&operation.method).uri(path);
            if let Some(token) = token {
                request = request.header("authorization", token);
            }
            let answer = fixture.send(request.body(Body::empty()).unwrap()).await;
            assert_eq!(answer.status, 401, "{} {token:?}", operation.id);
            assert!(answer.error().starts_with("unauthenticated: "));
            assert_eq!(answer.json()["code"], "unauthenticated");
        }
    }
    assert_eq!(asked(&fixture), before);
    let open = CONTRACT.operations.iter().filter(|operation| !operation.needs_token);
    let open: Vec<_> = open.map(|operation| operation.path.as_str()).collect();
    assert_eq!(
        json!(open),
        json!(["/docs", "/healthz", "/v1/openapi.json", "/v1/platform/regions"])
    );
}

#[test]
fn an_answer_that_the_document_does_not_promise_is_noticed() {
    let error = r#"{"error": "x", "code": "not_found"}"#;
    let machine = "/v1/apps/a/machines/0";
    let stop = format!("{machine}/stop");
    let json = "application/json";
    for (right, method, path, status, media, body) in [
        (true, Method::POST, &*stop, 200, json, r#"{"ok": true}"#),
        (true, Method::POST, &stop, 412, json, error),
        (true, Method::PATCH, &stop, 405, json, error),
        (true, Method::GET, "/nothing", 404, json, error),
        (true, Method::DELETE, "/v1/apps/a", 202, "", ""),
        (false, Method::POST, &stop, 200, json, r#"{"ok": 1}"#),
        (false, Method::POST, &stop, 200, json, "{}"),
        (false, Method::POST, &stop, 200, "text/plain", r#"{"ok": true}"#),
        (false, Method::POST, &stop, 204, "", ""),
        (false, Method::POST, &stop, 418, json, error),
        (false, Method::POST, &stop, 412, json, r#"{"error": "x", "code": "new"}"#),
        (false, Method::GET, "/nothing", 200, json, "{}"),
        (false, Method::DELETE, "/v1/apps/a", 202, json, "{}"),
        (false, Method::GET, machine, 200, json, r#"{"id": "0"}"#),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        let checked =
            std::panic::catch_unwind(|| CONTRACT.check((&method, path), status, media, body));
        assert_eq!(checked.is_ok(), right, "{method} {path} {status} {media} {body}");
    }
}
