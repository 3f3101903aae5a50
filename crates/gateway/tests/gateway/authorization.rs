//! What callers see whose token is for one app: the table of endpoints, from its first row to its
//! last.

use std::collections::BTreeSet;

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode},
};
use caddis_api::MachineId;
use caddis_catalog::Access;
use caddis_gateway::{DescribedOperation, Scope, Settings, operations};
use serde_json::{Value, json};

use crate::{
    operations::{OVER_A_CONNECTION, REQUESTS, exercise, filled_in_with},
    support::{Answer, CONTRACT, Fixture, contract::Operation},
};

/// May change the app `a`, and nothing else.
const DEPLOYER: &str = "deployer";
/// May look at the app `a`, and at nothing else.
const READER: &str = "reader";
/// Of no machine.
const UNKNOWN: &str = "00000000000000";

async fn fixture() -> (Fixture, MachineId) {
    let fixture = Fixture::new().await;
    fixture.accept(DEPLOYER, "a", Access::Write);
    fixture.accept(READER, "a", Access::Read);
    let id = fixture.started().await;
    (fixture, id)
}

/// All of an answer but for what is another each time.
fn told(mut answer: Answer) -> (StatusCode, HeaderMap, String) {
    let id = answer.headers.remove("fly-request-id").unwrap();
    (answer.status, answer.headers, answer.text.replace(id.to_str().unwrap(), "-"))
}

async fn ask(fixture: &Fixture, token: &str, line: &str, key: Option<&str>, body: &str) -> Answer {
    let mut request = fixture.request_by(token, line);
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    fixture.send(request.body(Body::from(body.to_owned())).unwrap()).await
}

/// Queries, keys and bodies, right and wrong, of an operation.
fn requests(operation: &DescribedOperation) -> Vec<(String, Option<&'static str>, &'static str)> {
    let found = REQUESTS.iter().find(|(id, ..)| *id == operation.id);
    let is_apart = |apart: &[&str]| apart.contains(&operation.id.as_str());
    let is_covered = found.is_some() || is_apart(OVER_A_CONNECTION);
    assert!(is_covered, "{} needs a request in operations.rs", operation.id);
    let (query, body) = found.map_or(("", ""), |(_, query, body)| (*query, *body));
    let documented = documented(operation);
    let parameters = documented.parameters.iter().filter(|(_, place, _)| place == "query");
    let wrong = parameters.map(|(name, ..)| (format!("?{name}=nonsense"), None, body));
    let right = [(query.to_owned(), None, body), (query.to_owned(), Some("k"), body)];
    let bodies = ["", "nonsense"].map(|body| (query.to_owned(), None, body));
    let without = std::iter::once((String::new(), None, body));
    right.into_iter().chain(bodies).chain(without).chain(wrong).collect()
}

fn documented(row: &DescribedOperation) -> &'static Operation {
    CONTRACT.operation(&row.method.parse().unwrap(), &row.path).unwrap()
}

fn is_about_an_app(operation: &DescribedOperation) -> bool {
    matches!(operation.description.scope, Scope::App(_) | Scope::Machine(_))
}

#[tokio::test]
async fn every_endpoint_of_another_app_answers_as_if_there_were_no_such_app() {
    let (with, _) = fixture().await;
    with.app("other").await;
    let id = with.machine("other", "m").await;
    let (without, _) = fixture().await;
    let asked = |fixture: &Fixture| {
        let state = fixture.worker.state();
        (state.requests.len(), state.calls.len())
    };
    let before = (asked(&with), asked(&without));
    let mut refused = 0;
    for operation in operations().iter().filter(|operation| is_about_an_app(operation)) {
        for (query, key, body) in requests(operation) {
            let path = filled_in_with(&operation.path, "other", id.as_str());
            let line = format!("{} {path}{query}", operation.method);
            // Not one that was made of the answer to another.
            let expected = told(ask(&without, &without.token, &line, key, body).await);
            for token in [DEPLOYER, READER] {
                let hidden = told(ask(&with, token, &line, key, body).await);
                let missing = told(ask(&without, token, &line, key, body).await);
                assert_eq!((&hidden, &missing), (&expected, &expected), "{token}: {line} {body}");
            }
            refused += usize::from(expected.2.contains("Could not find App \\\"other\\\""));
        }
    }
    assert_eq!((asked(&with), asked(&without)), before, "no worker was asked");
    assert!(refused > 100, "{refused}");
}

#[tokio::test]
async fn a_machine_of_another_app_is_none_in_the_own_app() {
    let (fixture, _) = fixture().await;
    fixture.app("other").await;
    let id = fixture.machine("other", "m").await;
    let before = fixture.worker.state().requests.len();
    let is_about_a_machine = |scope| matches!(scope, Scope::Machine(_));
    for operation in operations().iter().filter(|row| is_about_a_machine(row.description.scope)) {
        let (query, _, body) = requests(operation).remove(0);
        let path = |id: &str| filled_in_with(&operation.path, "a", id);
        let line = |id: &str| format!("{} {}{query}", operation.method, path(id));
        let expected = told(ask(&fixture, DEPLOYER, &line(UNKNOWN), None, body).await);
        let answer = told(ask(&fixture, DEPLOYER, &line(id.as_str()), None, body).await);
        assert_eq!(answer, expected, "{}", operation.id);
        assert!(answer.0 == 404 && answer.2.contains("machine not found"), "{}", operation.id);
    }
    for line in ["GET /api/v1/apps/a/logs?instance=", "GET /v1/apps/a/machines/"] {
        let answer = ask(&fixture, DEPLOYER, &format!("{line}{id}"), None, "").await;
        assert_eq!(answer.error(), "machine not found", "{line}");
    }
    assert_eq!(fixture.worker.state().requests.len(), before, "no worker was asked");
}

/// Whether a token for one app that may do this much is good for operations of this scope.
fn is_allowed(scope: Scope, access: Access) -> bool {
    match scope {
        Scope::Open | Scope::Caller | Scope::Organization(Access::Read) => true,
        Scope::Installation | Scope::Organization(Access::Write) => false,
        Scope::App(wanted) | Scope::Machine(wanted) => wanted <= access,
    }
}

#[tokio::test]
async fn every_endpoint_is_open_to_a_token_of_the_app_or_refused_to_all_of_its_kind() {
    for (token, access) in [(DEPLOYER, Access::Write), (READER, Access::Read)] {
        let (fixture, id) = fixture().await;
        let table = operations();
        exercise(&fixture, &id, async |operation, request| {
            let mut rows = table.iter().filter(|row| row.path == operation.path);
            let row = rows.find(|row| operation.method == row.method).unwrap();
            let scope = row.description.scope;
            let answer = fixture.send(request(token)).await;
            if is_allowed(scope, access) {
                assert!(answer.status.is_success(), "{token}: {} {}", operation.id, answer.text);
                return answer;
            }
            let error = answer.error();
            assert_eq!(answer.status, 403, "{} {error}", operation.id);
            assert!(error.starts_with("permission_denied: "), "{error}");
            assert_eq!(answer.json()["code"], "permission_denied");
            // So that those that follow find what they need.
            fixture.send(request(&fixture.token)).await
        })
        .await;
    }
}

#[tokio::test]
async fn lists_leave_out_what_the_caller_may_not_see() {
    let (fixture, id) = fixture().await;
    for app in ["other", "third"] {
        fixture.app(app).await;
        fixture.machine(app, "m").await;
    }
    let names = |list: &Value, name: &str| -> Vec<String> {
        list.as_array().unwrap().iter().map(|one| one[name].as_str().unwrap().to_owned()).collect()
    };
    for token in [DEPLOYER, READER] {
        for query in ["", "?org_slug=personal", "?limit=1", "?org_slug=personal&limit=5"] {
            let list = ask(&fixture, token, &format!("GET /v1/apps{query}"), None, "").await.ok();
            assert_eq!(
                (names(&list["apps"], "name"), &list["total_apps"]),
                (vec!["a".to_owned()], &json!(1)),
                "{query}"
            );
            assert!(list.get("next_cursor").is_none(), "{query}");
        }
        for query in ["", "?include_deleted=true&limit=1", "?summary=true"] {
            let line = format!("GET /v1/orgs/personal/machines{query}");
            let list = ask(&fixture, token, &line, None, "").await.ok();
            assert_eq!(names(&list["machines"], "id"), [id.as_str()], "{query}");
            assert!(list.get("next_cursor").is_none_or(Value::is_null), "{query}");
        }
        let all = ask(&fixture, token, "GET /v1/orgs", None, "").await.ok();
        assert_eq!(all["organizations"].as_array().unwrap().len(), 1);
        for line in ["GET /v1/orgs/elsewhere/machines", "GET /v1/apps?org_slug=elsewhere"] {
            let answer = ask(&fixture, token, line, None, "").await;
            assert_eq!(answer.status, 404);
            assert!(answer.error().contains("Could not find Organization"), "{line}");
        }
    }
    let all = fixture.call("GET /v1/apps").await.ok();
    assert_eq!(all["total_apps"], 3, "who may see all sees all");
    assert_eq!(ask(&fixture, DEPLOYER, "DELETE /v1/apps/a", None, "").await.status, 202);
    fixture.until_gone("a").await;
    let list = ask(&fixture, DEPLOYER, "GET /v1/apps", None, "").await.ok();
    assert_eq!((&list["apps"], &list["total_apps"]), (&json!([]), &json!(0)));
}

#[tokio::test]
async fn a_caller_of_one_app_neither_uses_up_nor_learns_what_others_ask() {
    let fixture = Fixture::with(Settings { rate_limit: 0.01, ..Settings::default() }, |_| {}).await;
    fixture.accept(DEPLOYER, "a", Access::Write);
    fixture.app("other").await;
    let line = format!("POST /v1/apps/other/machines/{UNKNOWN}/stop");
    let status = async |token: &str| ask(&fixture, token, &line, None, "").await.status.as_u16();
    assert_eq!([status(DEPLOYER).await, status(DEPLOYER).await], [404, 429]);
    assert_eq!([status(&fixture.token).await, status(&fixture.token).await], [404, 429]);
}

#[test]
fn each_endpoint_of_the_table_is_in_the_document_and_the_other_way_round() {
    let table = operations();
    let rows: BTreeSet<_> = table.iter().map(|row| (row.method, row.path.as_str())).collect();
    let documented_rows = CONTRACT.operations.iter();
    let documented_rows = documented_rows.map(|row| (row.method.as_str(), row.path.as_str()));
    assert_eq!(rows, documented_rows.collect());
    assert_eq!(rows.len(), table.len(), "each once");
    for row in &table {
        let operation = documented(row);
        assert_eq!(operation.needs_token, row.description.scope != Scope::Open, "{}", operation.id);
    }
}

#[test]
fn what_changes_an_app_or_runs_something_in_it_needs_a_token_that_may_write() {
    for DescribedOperation { id, method, description, .. } in operations() {
        if let Scope::App(access) | Scope::Machine(access) = description.scope {
            let only_reads = method == "GET" && id != "Machines_exec_ws";
            assert_eq!(access == Access::Read, only_reads, "{id}");
        }
    }
}

#[test]
fn each_endpoint_says_that_it_is_about_what_its_path_names() {
    for DescribedOperation { id, path, description, .. } in operations() {
        let names = ["{machine_id}", "{app_name}", "{org_slug}"];
        let named = names.into_iter().find(|name| path.contains(name));
        let is_right = match named {
            Some("{machine_id}") => matches!(description.scope, Scope::Machine(_)),
            Some("{app_name}") => matches!(description.scope, Scope::App(_)),
            Some(_) => matches!(description.scope, Scope::Organization(_)),
            None => !matches!(description.scope, Scope::Machine(_) | Scope::App(_)),
        };
        assert!(is_right, "{id}: {path} {:?}", description.scope);
    }
}
