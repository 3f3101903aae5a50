//! Following the machines of an app.

use axum::body::{Body, BodyDataStream};
use caddis_api::{MachineId, MachineState, watch::MachinesUpdate};
use caddis_gateway::Settings;
use futures::{StreamExt as _, future::join_all};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};
use tower::ServiceExt as _;

use crate::support::{CONTRACT, Fixture, TIMEOUT, contract::accept};

/// The lines of an answer, each as the document promises.
struct Lines {
    body: BodyDataStream,
    rest: String,
}

impl Lines {
    async fn of(fixture: &Fixture, app: &str) -> Self {
        let request = fixture
            .request(&format!("GET /v1/apps/{app}/machines/watch"))
            .body(Body::empty())
            .unwrap();
        let response = fixture.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        Self { body: response.into_body().into_data_stream(), rest: String::new() }
    }

    async fn next(&mut self) -> Option<MachinesUpdate> {
        loop {
            if let Some((line, rest)) = self.rest.split_once('\n') {
                let (line, rest) = (line.to_owned(), rest.to_owned());
                self.rest = rest;
                if line.is_empty() {
                    continue;
                }
                accept(&CONTRACT.schema("MachinesUpdate"), &line, "a line");
                return Some(serde_json::from_str(&line).unwrap());
            }
            let piece = tokio::time::timeout(TIMEOUT, self.body.next()).await.unwrap()?.unwrap();
            self.rest.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }

    async fn snapshot(&mut self) -> Vec<(MachineId, MachineState)> {
        let Some(MachinesUpdate::Snapshot { machines }) = self.next().await else {
            panic!("no snapshot")
        };
        let mut found = Vec::new();
        for _ in 0..machines {
            found.push(self.machine().await);
        }
        found
    }

    async fn machine(&mut self) -> (MachineId, MachineState) {
        match self.next().await {
            Some(MachinesUpdate::Machine(machine)) => (machine.id.clone(), machine.state),
            other => panic!("no machine: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_snapshot_comes_first_then_changes_in_their_order_then_the_end_with_the_app() {
    let fixture = Fixture::new().await;
    let first = fixture.started().await;
    let mut lines = Lines::of(&fixture, "a").await;
    assert_eq!(lines.snapshot().await, [(first.clone(), MachineState::Started)]);
    let second = fixture.machine("a", "second").await;
    assert_eq!(lines.machine().await.0, second, "a new one");
    fixture.app("b").await;
    fixture.machine("b", "m").await;
    for state in [
        MachineState::Stopping,
        MachineState::Stopped,
        MachineState::Starting,
        MachineState::Started,
    ] {
        fixture.worker.turn(&first, state, "update").await;
        assert_eq!(lines.machine().await, (first.clone(), state), "and nothing of another app");
    }
    fixture.worker.turn(&second, MachineState::Destroyed, "destroy").await;
    assert_eq!(lines.next().await, Some(MachinesUpdate::Removed(second)));
    assert_eq!(
        Lines::of(&fixture, "a").await.snapshot().await,
        [(first.clone(), MachineState::Started)]
    );
    assert_eq!(fixture.call("DELETE /v1/apps/a").await.status, 202);
    loop {
        match lines.next().await {
            Some(MachinesUpdate::Machine(machine)) => assert_eq!(machine.id, first),
            other => break assert_eq!(other, Some(MachinesUpdate::Removed(first.clone()))),
        }
    }
    assert_eq!(lines.next().await, None);
}

#[tokio::test]
async fn an_app_without_machines_is_followed_until_it_is_deleted() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let mut lines = Lines::of(&fixture, "a").await;
    assert!(lines.snapshot().await.is_empty());
    assert_eq!(fixture.call("DELETE /v1/apps/a").await.status, 202);
    assert_eq!(lines.next().await, None);
}

#[tokio::test]
async fn who_falls_behind_gets_a_new_snapshot_and_misses_nothing_that_lasts() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let (mut slow, mut quick) = (Lines::of(&fixture, "a").await, Lines::of(&fixture, "a").await);
    slow.snapshot().await;
    quick.snapshot().await;
    let gone = fixture.machine("a", "gone").await;
    assert_eq!(quick.machine().await.0, gone);
    for round in 0..300 {
        let state = if round % 2 == 0 { MachineState::Stopped } else { MachineState::Started };
        fixture.worker.turn(&id, state, "update").await;
        assert_eq!(quick.machine().await, (id.clone(), state));
    }
    fixture.worker.turn(&gone, MachineState::Destroyed, "destroy").await;
    assert_eq!(quick.next().await, Some(MachinesUpdate::Removed(gone)));
    assert_eq!(
        slow.snapshot().await,
        [(id.clone(), MachineState::Started)],
        "the lines between were not kept for it"
    );
    fixture.worker.turn(&id, MachineState::Stopped, "exit").await;
    assert_eq!(slow.machine().await, (id, MachineState::Stopped));
}

#[tokio::test]
async fn many_follow_at_once() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let mut watchers = join_all((0..200).map(|_| Lines::of(&fixture, "a"))).await;
    for lines in &mut watchers {
        lines.snapshot().await;
    }
    fixture.worker.turn(&id, MachineState::Stopped, "exit").await;
    for lines in &mut watchers {
        assert_eq!(lines.machine().await, (id.clone(), MachineState::Stopped));
    }
}

#[tokio::test]
async fn a_machine_that_vanished_without_a_word_is_removed_too() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let other = fixture.machine("a", "other").await;
    let mut lines = Lines::of(&fixture, "a").await;
    assert_eq!(lines.snapshot().await.len(), 2);
    {
        let mut state = fixture.worker.state();
        state.machines.remove(&id);
        state.incarnation = "second".to_owned();
    }
    fixture.worker.turn(&other, MachineState::Started, "start").await;
    assert_eq!(lines.machine().await, (other, MachineState::Started));
    assert_eq!(lines.next().await, Some(MachinesUpdate::Removed(id)));
}

#[tokio::test]
async fn what_can_not_be_followed_is_refused() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let unknown = fixture.call("GET /v1/apps/nope/machines/watch").await;
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.error(), "Could not find App \"nope\"");
    assert_eq!(fixture.call("GET /v1/apps/a/machines/watch?timeout=soon").await.status, 400);
    let request = axum::http::Request::get("/v1/apps/a/machines/watch")
        .header("authorization", "Bearer wrong");
    assert_eq!(fixture.send(request.body(Body::empty()).unwrap()).await.status, 401);
    let answer = fixture.call("GET /v1/apps/a/machines/watch?timeout=1").await;
    let line: Value = serde_json::from_str(answer.text.trim()).unwrap();
    assert_eq!(line, json!({"snapshot": {"machines": 0}}), "and the end after its time");
}

#[tokio::test]
async fn watchers_do_not_hold_up_the_end_of_the_server() {
    let settings = Settings { drain_timeout: TIMEOUT * 10, ..Settings::default() };
    let fixture = Fixture::with(settings, |_| {}).await;
    fixture.started().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let client = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "GET /v1/apps/a/machines/watch HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n",
            fixture.token
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains("\"started\"") {
            assert_ne!(stream.read_buf(&mut text).await.unwrap(), 0);
        }
        stop.send(()).unwrap();
        stream.read_to_end(&mut text).await.unwrap();
        assert!(
            text.ends_with(b"0\r\n\r\n"),
            "the body is complete: {}",
            String::from_utf8_lossy(&text)
        );
    };
    let shutdown = async { drop(stopped.await) };
    let both = async { tokio::join!(fixture.gateway.serve(listener, shutdown), client).0 };
    tokio::time::timeout(TIMEOUT, both).await.expect("it waits for its watchers").unwrap();
}

#[tokio::test]
async fn what_machines_use_is_asked_of_their_host_as_often_as_wanted() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    let path = "GET /v1/apps/a/machines/usage";
    let unknown = fixture.call("GET /v1/apps/nope/machines/usage").await;
    assert_eq!(unknown.status, 404);
    for interval in ["0s", "999ms", "61s", "1h", "often", "-1s"] {
        let answer = fixture.call(&format!("{path}?interval={interval}")).await;
        assert_eq!(answer.status, 400, "{interval}: {}", answer.text);
    }
    // The host tells two samples and a broken one, which ends it.
    let sample = concat!(
        r#"{"worker":"W1","machines":[{"id":"148ed193b95389","#,
        r#""cpu_seconds":1.5,"memory_bytes":1024}]}"#
    );
    let told = format!("{sample}\n{sample}\n");
    fixture.worker.state().stream_answer = Some((200, told.clone()));
    let answer = fixture.call(&format!("{path}?interval=1500ms")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text, told);
    let calls = fixture.worker.state().calls.clone();
    assert_eq!(calls.last().unwrap().uri, "/usage?app=a&interval_ms=1500");
    fixture.worker.state().stream_answer =
        Some((503, r#"{"error":"unavailable: it ends"}"#.to_owned()));
    let answer = fixture.call(path).await;
    assert_eq!((answer.status.as_u16(), &*answer.text), (200, ""), "it has nothing to tell");
}
