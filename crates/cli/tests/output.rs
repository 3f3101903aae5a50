//! What commands print and end with, to the letter, against a server with canned answers.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    collections::{HashMap, VecDeque},
    future::pending,
    sync::{Arc, Mutex},
};

use caddis_cli::{Command, Environment, Globals, Printer, execute};
use clap::Parser;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// A server that answers `METHOD /path?query` with a status and a body, anything else with 404. Of
/// several answers to the same the first comes first and the last for ever.
async fn server(answers: &[(&str, u16, Value)]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut by_line: HashMap<String, VecDeque<(u16, String)>> = HashMap::new();
    for (line, status, body) in answers {
        by_line.entry((*line).to_owned()).or_default().push_back((*status, body.to_string()));
    }
    let answers = Arc::new(Mutex::new(by_line));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answers = answers.clone();
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                    if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let text = String::from_utf8_lossy(&request).into_owned();
                let line = text.split(" HTTP/").next().unwrap_or_default().to_owned();
                let unknown =
                    (404, json!({ "error": format!("no answer for {line}") }).to_string());
                let (status, body) = match answers.lock().unwrap().get_mut(&line) {
                    Some(left) if left.len() > 1 => left.pop_front().unwrap(),
                    Some(left) => left[0].clone(),
                    None => unknown,
                };
                let head = format!(
                    "HTTP/1.1 {status} x\r\nfly-request-id: 01X-local\r\ncontent-type: \
                     application/json"
                );
                let reply = format!(
                    "{head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(reply.as_bytes()).await;
            });
        }
    });
    url
}

struct Outcome {
    code: u8,
    stdout: String,
    stderr: String,
}

async fn run(variables: &[(&str, &str)], line: &str) -> Outcome {
    // Already installed is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let words = ["caddis"].into_iter().chain(line.split(' '));
    let cli = Cli::try_parse_from(words).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut environment =
        Environment { current_directory: directory.path().to_owned(), ..Environment::default() };
    let home = directory.path().display().to_string();
    for (name, value) in [("HOME", &*home), ("CADDIS_DATA_DIR", &*home)].iter().chain(variables) {
        environment.variables.insert((*name).to_owned(), (*value).to_owned());
    }
    let (printer, stdout, stderr) = Printer::capturing();
    let code = execute(cli.command, cli.globals, environment, printer, pending()).await;
    Outcome { code, stdout: stdout.text(), stderr: stderr.text().replace(&home, "HOME") }
}

async fn run_at(url: &str, line: &str) -> Outcome {
    run(&[("CADDIS_API_URL", url), ("CADDIS_API_TOKEN", "secret")], line).await
}

#[tokio::test]
async fn without_server_token_or_app_one_is_told_how_to_give_them() {
    let outcome = run(&[], "apps list").await;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (1, ""));
    assert_eq!(
        outcome.stderr,
        "Error: no server is known\nStart one here with 'caddis serve' (nothing is running with \
         data directory HOME), or \
         name one with --api-url, CADDIS_API_URL or 'caddis auth login --api-url URL \
         --access-token TOKEN'.\n"
    );
    let outcome = run(&[("CADDIS_API_URL", "http://127.0.0.1:1")], "apps list").await;
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.starts_with("Error: no access token available\n"), "{}", outcome.stderr);
    let outcome = run_at("http://127.0.0.1:1", "apps list").await;
    assert_eq!(outcome.code, 1);
    assert!(
        outcome.stderr.contains("No server answers at http://127.0.0.1:1"),
        "{}",
        outcome.stderr
    );
    assert!(!outcome.stderr.contains("secret"));
    let outcome = run_at("http://127.0.0.1:1", "machine list").await;
    assert!(
        outcome.stderr.starts_with("Error: the config for your app is missing an app name"),
        "{}",
        outcome.stderr
    );
}

#[tokio::test]
async fn what_the_server_refuses_is_told_with_its_words_and_request() {
    let refused =
        json!({ "error": "Could not find App \"a\"", "code": "not_found", "retryable": false });
    let url = server(&[
        ("GET /v1/apps/a/machines", 404, refused),
        (
            "POST /v1/apps",
            422,
            json!({ "error": "Name has already been taken", "status": "name_taken" }),
        ),
        ("GET /v1/apps?org_slug=personal", 401, json!({ "error": "unauthorized" })),
    ])
    .await;
    let outcome = run_at(&url, "machine list -a a").await;
    assert_eq!(
        (outcome.code, &*outcome.stderr),
        (
            1,
            "Error: Could not find App \"a\" (Request ID: 01X-local)\n'caddis apps list' lists \
             the apps.\n"
        )
    );
    let outcome = run_at(&url, "apps create a").await;
    assert_eq!(outcome.code, 1);
    assert_eq!(
        outcome.stderr,
        "Error: Name has already been taken (Request ID: 01X-local)\nThe name is already in use, \
         choose another one.\n"
    );
}

fn app(name: &str) -> Value {
    json!({
        "id": "abcdefgh12345678", "internal_numeric_id": 1, "name": name, "status": "pending",
        "network": "default",
        "network_cidr": "fdaa::/48", "machine_count": 0, "volume_count": 0,
        "organization": { "name": "Personal", "slug": "personal", "internal_numeric_id": 1 },
    })
}

/// A machine as the server shows it, with more.
fn machine(more: Value) -> Value {
    let mut machine = json!({
        "id": "148ed193b95389", "name": "web", "state": "started", "region": "local",
        "private_ip": "fdaa::1:2",
        "instance_id": "01HQ73A7BFFDF1B6WMGHFZZ4E7", "version": "01HQ73A7BFFDF1B6WMGHFZZ4E7",
        "image_ref": { "registry": "docker.io", "repository": "library/nginx", "tag": "1",
            "digest": "sha256:0" },
        "created_at": "2020-01-02T03:04:05Z", "updated_at": "2020-01-02T03:04:05Z",
        "config": { "image": "nginx:1",
            "guest": { "cpu_kind": "shared", "cpus": 2, "memory_mb": 512 } },
    });
    machine.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    machine
}

/// A machine with two checks of which one passes, then as `later` says.
async fn with_checks(later: Value) -> Outcome {
    let check = |status: &str| {
        let updated_at = "2020-01-02T03:04:05Z";
        json!({ "name": status, "status": status, "output": "", "updated_at": updated_at })
    };
    let path = "/v1/apps/a/machines/148ed193b95389";
    let get = format!("GET {path}");
    let (lease, restart) =
        (format!("POST {path}/lease?ttl=120"), format!("POST {path}/restart?force_stop=false"));
    let (release, wait) = (
        format!("DELETE {path}/lease"),
        format!(
            "GET {path}/wait?timeout=60&state=started&state=stopped&state=failed&state=destroyed"
        ),
    );
    let ends = format!("GET {path}/wait?timeout=1&state=stopped&state=failed&state=destroyed");
    let events = format!("GET {path}/events?limit=20");
    let lease_data = json!({ "nonce": "n", "expires_at": 4_000_000_000_u64, "owner": "me",
        "description": "",
                       "version": "01HQ73A7BFFDF1B6WMGHFZZ4E7" });
    let mut granted = lease_data.clone();
    granted["status"] = json!("success");
    granted["data"] = lease_data;
    let pending = machine(json!({ "checks": [check("passing"), check("critical")] }));
    let url = server(&[
        (&get, 200, machine(json!({}))),
        (&get, 200, pending.clone()),
        (&get, 200, pending),
        (&get, 200, machine(later)),
        (&lease, 201, granted),
        (&release, 200, json!({ "ok": true })),
        (&restart, 200, json!({ "ok": true })),
        (
            &wait,
            200,
            json!({ "ok": true, "state": "started", "version": "01HQ73A7BFFDF1B6WMGHFZZ4E7" }),
        ),
        (&ends, 408, json!({ "error": "deadline_exceeded: it runs" })),
        (&events, 200, json!([])),
    ])
    .await;
    run_at(&url, "machine restart 148ed193b95389 -a a").await
}

#[tokio::test]
async fn health_checks_are_followed_until_they_pass_or_the_machine_is_gone() {
    let passing = json!({ "name": "a", "status": "passing", "output": "",
        "updated_at": "2020-01-02T03:04:05Z" });
    let outcome = with_checks(json!({ "checks": [passing] })).await;
    assert_eq!(
        (outcome.code, &*outcome.stderr),
        (0, "  Waiting for 148ed193b95389 to become healthy (started, 1/2)\n")
    );
    assert!(
        outcome.stdout.ends_with("Machine 148ed193b95389 restarted successfully!\n"),
        "{}",
        outcome.stdout
    );
    let critical = json!({ "name": "a", "status": "critical", "output": "",
        "updated_at": "2020-01-02T03:04:05Z" });
    let outcome = with_checks(json!({ "state": "stopped", "checks": [critical] })).await;
    assert_eq!(outcome.code, 1);
    assert!(
        outcome.stderr.contains("Error: machine 148ed193b95389 is stopped and not healthy"),
        "{}",
        outcome.stderr
    );
}

#[tokio::test]
async fn lists_are_tables_json_or_nothing_but_ids() {
    let machine = machine(json!({}));
    let url = server(&[
        ("GET /v1/apps/a/machines", 200, json!([machine])),
        ("GET /v1/apps/b/machines", 200, json!([])),
    ])
    .await;
    let outcome = run_at(&url, "machine list -a a").await;
    assert_eq!(outcome.code, 0);
    assert_eq!(
        outcome.stdout,
        "1 machine has been retrieved from app a.\n\na\n \
         ID             │ NAME │ STATE   │ CHECKS │ REGION │ ROLE │ IMAGE           │ IP ADDRESS \
         │ VOLUME │ CREATED          │ LAST UPDATED     │ PROCESS GROUP │ SIZE               \n \
         148ed193b95389 │ web  │ started │        │ local  │      │ library/nginx:1 │ fdaa::1:2  \
         │        │ Jan 2 2020 03:04 │ Jan 2 2020 03:04 │               │ shared-cpu-2x:512MB\n\n"
    );
    let outcome = run_at(&url, "machine list -a a -q").await;
    assert_eq!((&*outcome.stdout, &*outcome.stderr), (" 148ed193b95389\n", ""));
    let outcome = run_at(&url, "machine list -a a --json").await;
    assert!(
        outcome.stdout.starts_with("[\n    {\n        \"id\": \"148ed193b95389\","),
        "{}",
        outcome.stdout
    );
    let outcome = run_at(&url, "machine list -a b").await;
    assert_eq!(outcome.stdout, "No machines are available on this app b\n");
}

#[tokio::test]
async fn logs_are_lines_that_can_not_take_over_a_terminal() {
    let attributes = json!({
        "timestamp": "2026-01-02T03:04:05.678901234Z", "message": "hello\r\u{7}", "level": "info",
        "instance": "148ed193b95389", "region": "local",
        "meta": { "instance": "148ed193b95389", "region": "local", "event": { "provider": "app" } },
    });
    let page =
        json!({ "data": [{ "id": "1", "attributes": attributes }], "meta": { "next_token": "t" } });
    let url = server(&[("GET /api/v1/apps/a/logs", 200, page)]).await;
    let outcome = run_at(&url, "logs -a a --no-tail").await;
    assert_eq!(
        (outcome.code, &*outcome.stdout),
        (0, "2026-01-02T03:04:05Z app[148ed193b95389] local [info]hello\n")
    );
}

#[tokio::test]
async fn confirmations_need_someone_to_give_them() {
    let url = server(&[
        ("GET /v1/apps/a", 200, app("a")),
        ("GET /v1/apps/a/machines", 200, json!([])),
        ("GET /v1/apps/a/volumes", 200, json!([])),
    ])
    .await;
    let outcome = run_at(&url, "apps destroy a").await;
    assert_eq!(outcome.code, 1);
    assert_eq!(
        outcome.stderr,
        "Destroying an app is not reversible.\nError: yes flag must be specified when not running \
         interactively\n"
    );
    let outcome = run_at(&url, "machine stop -a a").await;
    assert_eq!(outcome.code, 1);
}
