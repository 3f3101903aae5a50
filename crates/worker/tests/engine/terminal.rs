//! Interactive sessions at the worker, with guests that speak the real protocol.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use caddis_api::{MachineId, MachineState, terminal::WINDOW_BYTES};
use caddis_bus::{
    message::Action,
    stream::frames::{self, Frame},
};
use futures::{StreamExt as _, stream::BoxStream};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::support::Fixture;

const TIMEOUT: Duration = Duration::from_secs(60);

/// A client.
struct Client {
    say: mpsc::Sender<Frame>,
    heard: BoxStream<'static, Result<Frame, String>>,
}

impl Client {
    async fn open(fixture: &Fixture, machine: &MachineId) -> Result<Self, (StatusCode, Value)> {
        let (say, mut receiver) = mpsc::channel::<Frame>(1);
        let frames = futures::stream::poll_fn(move |task| receiver.poll_recv(task));
        let body = Body::from_stream(
            frames.map(|frame| Ok::<_, std::convert::Infallible>(frame.encode())),
        );
        let request = Request::post(format!("/machines/{machine}/session")).body(body).unwrap();
        let response = fixture.streams().call(request).await;
        let (status, body) = (response.status(), response.into_body());
        if status.is_success() {
            return Ok(Self { say, heard: frames::read(body).boxed() });
        }
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        Err((status, serde_json::from_slice(&bytes).unwrap()))
    }

    async fn started(fixture: &Fixture, machine: &MachineId, start: Value) -> Self {
        let client = Self::open(fixture, machine).await.unwrap();
        client.text(json!({ "type": "start" }), start).await;
        client
    }

    async fn text(&self, mut message: Value, more: Value) {
        message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.say.send(Frame::Text(message.to_string().into())).await.unwrap();
    }

    async fn input(&self, bytes: &[u8]) {
        self.say.send(Frame::Data([&[0], bytes].concat().into())).await.unwrap();
    }

    async fn heard(&mut self) -> Option<Frame> {
        tokio::time::timeout(TIMEOUT, self.heard.next()).await.unwrap().map(Result::unwrap)
    }

    /// The next message of this type; all output before it.
    async fn until(&mut self, kind: &str) -> (String, Value) {
        let mut output = Vec::new();
        loop {
            match self.heard().await.unwrap() {
                Frame::Data(data) => {
                    assert_eq!(data[0], 1);
                    output.extend_from_slice(&data[1..]);
                }
                Frame::Text(text) => {
                    let message: Value = serde_json::from_slice(&text).unwrap();
                    if message["type"] == kind {
                        return (String::from_utf8(output).unwrap(), message);
                    }
                    assert_eq!(message["type"], "credit", "{message}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_session_runs_hears_and_ends() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    let start = json!({ "user": "www", "terminal": { "columns": 80, "rows": 24 } });
    let mut client = Client::started(&fixture, &machine, start).await;
    client.input("grün".as_bytes()).await;
    client.text(json!({ "type": "resize", "columns": 100, "rows": 30 }), json!({})).await;
    client.text(json!({ "type": "signal", "signal": "SIGTERM" }), json!({})).await;
    client.text(json!({ "type": "eof" }), json!({})).await;
    let (output, exit) = client.until("exit").await;
    assert_eq!(output, "session of www on 80x24\ngrün[100x30][signal 15]");
    assert_eq!(exit, json!({ "type": "exit", "exit_code": 0, "exit_signal": 0 }));
    assert_eq!(client.heard().await, None, "nothing follows");

    let start = json!({ "command": ["env"], "env": { "A": "b" } });
    let (output, _) = Client::started(&fixture, &machine, start).await.until("exit").await;
    assert!(output.ends_with("A=b\n"), "{output}");
    let exit = Client::started(&fixture, &machine, json!({ "command": ["exit", "7"] }))
        .await
        .until("exit")
        .await
        .1;
    assert_eq!(exit["exit_code"], 7);
    let mut missing = Client::started(&fixture, &machine, json!({ "command": ["nothing"] })).await;
    assert_eq!(
        missing.heard().await,
        Some(Frame::Data([&[2], &b"nothing: no such program\n"[..]].concat().into()))
    );
    assert_eq!(missing.until("exit").await.1["exit_code"], 127, "as a shell tells it");
}

#[tokio::test]
async fn input_of_any_length_goes_through_the_window_and_more_than_that_is_refused() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    let mut client =
        Client::started(&fixture, &machine, json!({ "command": ["cat"], "stdin": true })).await;
    let (mut sent, mut credit, mut back) = (0, WINDOW_BYTES, 0);
    let total = 3 << 20;
    while back < total {
        while sent < total && credit >= 32 * 1024 {
            client.input(&[b'x'; 32 * 1024]).await;
            (sent, credit) = (sent + 32 * 1024, credit - 32 * 1024);
        }
        match client.heard().await.unwrap() {
            Frame::Data(data) => back += data.len() - 1,
            Frame::Text(text) => {
                let message: Value = serde_json::from_slice(&text).unwrap();
                credit += usize::try_from(message["bytes"].as_u64().unwrap()).unwrap();
            }
        }
    }
    client.text(json!({ "type": "eof" }), json!({})).await;
    client.until("exit").await;

    // Nobody reads: what is within the window waits, and what is beyond is too much.
    let mut client =
        Client::started(&fixture, &machine, json!({ "command": ["sleep", "inf"], "stdin": true }))
            .await;
    for _ in 0..2 * WINDOW_BYTES / 32 / 1024 + 1 {
        let _ = client.say.send(Frame::Data(vec![0; 32 * 1024 + 1].into())).await;
    }
    let (_, error) = client.until("error").await;
    assert!(error["error"].as_str().unwrap().contains("not credited"), "{error}");
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_its_own_program_and_is_heard_all_the_same() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    let slow =
        Client::started(&fixture, &machine, json!({ "command": ["yes"], "stdin": true })).await;
    let (output, _) = Client::started(&fixture, &machine, json!({ "command": ["echo", "quick"] }))
        .await
        .until("exit")
        .await;
    assert_eq!(output, "quick\n");
    let guest = fixture.host.guest(machine.as_str()).unwrap();
    assert_eq!(guest.hung_up(), 0);
    drop(slow);
    let hung_up = async {
        while guest.hung_up() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, hung_up).await.expect("it is hung up on");
}

#[tokio::test]
async fn what_is_wrong_is_told() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    for (first, words) in [
        (Frame::Data("\0x".into()), "must be a text"),
        (Frame::Text("nonsense".into()), "invalid message"),
        (Frame::Text(r#"{"type":"eof"}"#.into()), "type start"),
        (Frame::Text(r#"{"type":"start","command":["a\u0000b"]}"#.into()), "NUL"),
        (Frame::Text(r#"{"type":"start","command":[""]}"#.into()), "no name"),
        (
            Frame::Text(r#"{"type":"start","command":["a"],"env":{"A=B":"c"}}"#.into()),
            "invalid env",
        ),
        (Frame::Text(r#"{"type":"start","files":true}"#.into()), "files takes a command"),
        (
            Frame::Text(
                json!({ "type": "start", "command": ["x".repeat(2 << 20)] }).to_string().into(),
            ),
            "",
        ),
    ] {
        let mut client = Client::open(&fixture, &machine).await.unwrap();
        client.say.send(first.clone()).await.unwrap();
        let (_, error) = client.until("error").await;
        assert!(error["error"].as_str().unwrap().contains(words), "{error}");
        assert_eq!(client.heard().await, None);
    }
    for (wrong, words) in [
        (Frame::Data("\x01x".into()), "begin with 0"),
        (Frame::Data("".into()), "begin with 0"),
        (Frame::Text(r#"{"type":"start"}"#.into()), "has started"),
        (Frame::Text(r#"{"type":"signal","signal":"SIGNONE"}"#.into()), "invalid"),
    ] {
        let mut client = Client::started(&fixture, &machine, json!({})).await;
        client.say.send(wrong.clone()).await.unwrap();
        let (_, error) = client.until("error").await;
        assert!(error["error"].as_str().unwrap().contains(words), "{error}");
    }
    fixture.act(&machine, Action::Stop { signal: None, timeout: None }).await.unwrap();
    fixture.until(&machine, MachineState::Stopped).await;
    let (status, error) = Client::open(&fixture, &machine).await.err().unwrap();
    assert_eq!(status, StatusCode::PRECONDITION_FAILED, "{error}");
    let unknown = "00000000000000".parse().unwrap();
    assert_eq!(Client::open(&fixture, &unknown).await.err().unwrap().0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_machine_that_ends_ends_its_sessions() {
    let fixture = Fixture::new().await;
    let machine = fixture.started().await;
    let mut client = Client::started(&fixture, &machine, json!({})).await;
    assert!(matches!(client.heard().await, Some(Frame::Data(_))));
    fixture.act(&machine, Action::Destroy { force: true }).await.unwrap();
    let (_, error) = client.until("error").await;
    assert!(error["error"].as_str().unwrap().contains("the session was interrupted"), "{error}");
}
