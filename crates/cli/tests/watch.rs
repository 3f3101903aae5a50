//! `machine list --watch` against a server that ends connections.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{future::pending, time::Duration};

use caddis_cli::{Command, Environment, Globals, Printer, execute};
use clap::Parser;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

const A: &str = "000000000000a1";
const B: &str = "000000000000b2";
const VERSION: &str = "01HQ73A7BFFDF1B6WMGHFZZ4E7";

fn machine(id: &str, state: &str) -> Value {
    json!({"machine": {
        "id": id, "name": format!("name-{id}"), "state": state, "region": "local",
        "instance_id": VERSION, "version": VERSION,
        "private_ip": "", "created_at": "", "updated_at": "",
        "image_ref": {"registry": "", "repository": "", "digest": ""}, "config": {}
    }})
}

/// Answers each connection with what is next; the body comes whole or, when `false`, is cut off. A
/// connection more is told to the receiver and gets no answer.
async fn server(answers: Vec<(u16, Vec<Value>, bool)>) -> (String, oneshot::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (further, told) = oneshot::channel();
    tokio::spawn(async move {
        for (status, lines, complete) in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            head(&mut stream).await;
            let body: String = lines.iter().map(|line| format!("{line}\n\n")).collect();
            let length = body.len() + if complete { 0 } else { 1 };
            let reply = format!(
                "HTTP/1.1 {status} x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
        let _silent = listener.accept().await.unwrap();
        let _ = further.send(());
        pending::<()>().await;
    });
    (url, told)
}

async fn head(stream: &mut TcpStream) {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
    }
    assert!(request.starts_with(b"GET /v1/apps/a/machines/watch HTTP/1.1\r\n"));
}

/// Exit code, standard output and standard error.
async fn run(url: &str, line: &str, interrupt: impl Future<Output = ()>) -> (u8, String, String) {
    // Already installed is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::try_parse_from(line.split(' ')).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut environment =
        Environment { current_directory: directory.path().to_owned(), ..Environment::default() };
    let home = directory.path().display().to_string();
    for (name, value) in [("HOME", &*home), ("CADDIS_API_URL", url), ("CADDIS_API_TOKEN", "secret")]
    {
        environment.variables.insert(name.to_owned(), value.to_owned());
    }
    let (printer, stdout, stderr) = Printer::capturing();
    let command = execute(cli.command, cli.globals, environment, printer, interrupt);
    let code = tokio::time::timeout(Duration::from_secs(60), command).await.unwrap();
    (code, stdout.text(), stderr.text())
}

fn answers() -> Vec<(u16, Vec<Value>, bool)> {
    let snapshot = |machines: u64| json!({"snapshot": {"machines": machines}});
    vec![
        (
            200,
            vec![snapshot(2), machine(A, "started"), machine(B, "started"), machine(A, "stopped")],
            true,
        ),
        (200, vec![snapshot(1), machine(A, "stopped"), json!({"removed": A})], false),
        (404, vec![json!({"error": "Could not find App \"a\""})], true),
    ]
}

const NOTES: &str = "The server closed the connection, reconnecting...\nReconnected.\n\
                     The server closed the connection, reconnecting...\nError: Could not find \
                     App \"a\"\n\
                     'caddis apps list' lists the apps.\n";

#[tokio::test]
async fn changes_are_lines_and_a_server_that_comes_back_is_followed_until_the_app_is_gone() {
    let (url, _told) = server(answers()).await;
    let (code, stdout, stderr) = run(&url, "caddis machine list -a a --watch", pending()).await;
    assert_eq!(
        stdout,
        format!(
            "{A} started name-{A}\n{B} started name-{B}\n{A} stopped name-{A}\n{B} removed\n{A} \
             removed\n"
        ),
        "what was known before the connection broke is not told again"
    );
    assert_eq!((code, &*stderr), (1, NOTES));
}

#[tokio::test]
async fn as_json_there_is_a_document_per_line() {
    let (url, _told) = server(answers()).await;
    let (code, stdout, _) = run(&url, "caddis machine list -a a --watch --json", pending()).await;
    let lines: Vec<Value> =
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> =
        lines.iter().map(|line| (&line["machine"]["id"], &line["removed"])).collect();
    let (a, b, none) = (json!(A), json!(B), Value::Null);
    assert_eq!(told, [(&a, &none), (&b, &none), (&a, &none), (&none, &b), (&none, &a)]);
    assert_eq!((code, &lines[2]["machine"]["state"]), (1, &json!("stopped")));
}

#[tokio::test]
async fn an_interrupt_ends_it_also_while_the_server_is_away() {
    let (url, away) = server(answers()[..1].to_vec()).await;
    let interrupt = async { away.await.unwrap() };
    let (code, stdout, _) = run(&url, "caddis machine list -a a --watch", interrupt).await;
    assert_eq!(code, 127);
    assert!(stdout.ends_with(&format!("{A} stopped name-{A}\n")), "{stdout}");
}

#[tokio::test]
async fn a_server_that_was_never_there_is_an_error_at_once() {
    let (code, stdout, stderr) =
        run("http://127.0.0.1:1", "caddis machine list -a a --watch", pending()).await;
    assert_eq!((code, &*stdout), (1, ""));
    assert!(stderr.contains("No server answers at http://127.0.0.1:1"), "{stderr}");
}
