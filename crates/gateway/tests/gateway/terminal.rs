//! Interactive sessions over real connections: a scripted worker's end is in the test's hands.

use std::{net::SocketAddr, time::Duration};

use caddis_api::{MachineId, MachineState};
use caddis_bus::stream::frames::Frame;
use caddis_catalog::Access;
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest as _, http::StatusCode},
};

use crate::support::{CONTRACT, Fixture, TIMEOUT, contract::accept, worker::SessionEnd};

struct Served {
    fixture: Fixture,
    id: MachineId,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<std::io::Result<()>>,
}

type Socket = WebSocketStream<TcpStream>;

impl Served {
    async fn new() -> Self {
        let fixture = Fixture::new().await;
        let id = fixture.started().await;
        let gateway = fixture.restarted().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(async move {
            gateway
                .serve(listener, async {
                    let _ = stopped.await;
                })
                .await
        });
        Self { fixture, id, address, stop: Some(stop), serving }
    }

    async fn connect_to(&self, path: &str, token: &str) -> Result<Socket, Error> {
        let mut request = format!("ws://{}{path}", self.address).into_client_request().unwrap();
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let stream = TcpStream::connect(self.address).await.unwrap();
        client_async(request, stream).await.map(|(socket, _)| socket)
    }

    fn path(&self) -> String {
        format!("/v1/apps/a/machines/{}/exec/ws", self.id)
    }

    /// A session, and the worker's end of it.
    async fn session(&self) -> (Socket, SessionEnd) {
        let socket = self.connect_to(&self.path(), &self.fixture.token).await.unwrap();
        (socket, within(self.fixture.worker.session()).await)
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, work).await.unwrap()
}

async fn heard(socket: &mut Socket) -> Message {
    loop {
        match within(socket.next()).await.unwrap().unwrap() {
            Message::Ping(_) | Message::Pong(_) => {}
            other => return other,
        }
    }
}

#[tokio::test]
async fn messages_go_both_ways_as_they_are_and_the_end_is_told() {
    let served = Served::new().await;
    let (mut socket, mut worker) = served.session().await;
    let start =
        json!({ "type": "start", "command": ["sh"], "terminal": { "columns": 80, "rows": 24 } })
            .to_string();
    socket.send(Message::Text(start.clone().into())).await.unwrap();
    socket.send(Message::Binary(b"\0input\xff".to_vec().into())).await.unwrap();
    assert_eq!(within(worker.heard()).await, Some(Frame::Text(start.into())));
    assert_eq!(within(worker.heard()).await, Some(Frame::Data(b"\0input\xff".to_vec().into())));
    worker.say(Frame::Data(b"\x01output".to_vec().into())).await;
    let exit = r#"{"type":"exit","exit_code":3,"exit_signal":0}"#;
    worker.say(Frame::Text(exit.into())).await;
    drop(worker);
    assert_eq!(heard(&mut socket).await, Message::Binary(b"\x01output".to_vec().into()));
    assert_eq!(heard(&mut socket).await, Message::Text(exit.into()));
    assert!(matches!(heard(&mut socket).await, Message::Close(_)));
}

#[tokio::test]
async fn a_client_that_goes_ends_the_session_at_the_worker() {
    let served = Served::new().await;
    let (mut socket, mut worker) = served.session().await;
    socket.close(None).await.unwrap();
    assert_eq!(within(worker.heard()).await, None, "after a farewell");
    let (socket, mut worker) = served.session().await;
    drop(socket);
    assert_eq!(within(worker.heard()).await, None, "and without one");
    // Also when it has gone while it is flooded.
    let (socket, worker) = served.session().await;
    let flood = async { while worker.try_say(Frame::Data(vec![1; 60_000].into())).await {} };
    tokio::join!(within(flood), async { drop(socket) });
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_the_worker_and_nobody_else() {
    let served = Served::new().await;
    let (slow, worker) = served.session().await;
    let mut taken = 0;
    let chunk = vec![1; 60_000];
    // Until nothing is taken any more: what lies between are buffers of a fixed size.
    while tokio::time::timeout(
        Duration::from_millis(500),
        worker.say(Frame::Data(chunk.clone().into())),
    )
    .await
    .is_ok()
    {
        taken += chunk.len();
        assert!(taken < 200 << 20, "the worker is never held up");
    }
    let (mut quick, other) = served.session().await;
    other.say(Frame::Data(b"\x01quick".to_vec().into())).await;
    assert_eq!(heard(&mut quick).await, Message::Binary(b"\x01quick".to_vec().into()));
    // The slow one's own words get through all the while.
    let (mut sink, _source) = slow.split();
    sink.send(Message::Binary(b"\0\x03".to_vec().into())).await.unwrap();
    let mut worker = worker;
    assert_eq!(within(worker.heard()).await, Some(Frame::Data(b"\0\x03".to_vec().into())));
}

#[tokio::test]
async fn a_token_of_one_app_opens_sessions_in_its_machines_only() {
    let served = Served::new().await;
    served.fixture.accept("own", "a", Access::Write);
    served.fixture.accept("reader", "a", Access::Read);
    served.fixture.accept("other", "b", Access::Write);
    let mut socket = served.connect_to(&served.path(), "own").await.unwrap();
    drop(within(served.fixture.worker.session()).await);
    assert!(matches!(heard(&mut socket).await, Message::Close(_)));
    for (token, status, expected) in [
        ("reader", StatusCode::FORBIDDEN, "permission_denied"),
        ("other", StatusCode::NOT_FOUND, "Could not find App"),
    ] {
        match served.connect_to(&served.path(), token).await {
            Err(Error::Http(response)) => {
                let body = String::from_utf8_lossy(response.body().as_ref().unwrap()).into_owned();
                assert!(response.status() == status && body.contains(expected), "{token}: {body}");
            }
            other => panic!("{token}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_wrong_is_said_before_the_session_begins() {
    let served = Served::new().await;
    let (id, token) = (&served.id, &served.fixture.token);
    let refused = async |path: String, token: &str| match served.connect_to(&path, token).await {
        Err(Error::Http(response)) => {
            let body: Value = serde_json::from_slice(response.body().as_ref().unwrap()).unwrap();
            (response.status(), body["error"].as_str().unwrap().to_owned())
        }
        other => panic!("{other:?}"),
    };
    let (status, _) = refused(served.path(), "wrong").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let (status, error) =
        refused("/v1/apps/a/machines/00000000000000/exec/ws".to_owned(), token).await;
    assert!(
        status == StatusCode::NOT_FOUND && error.contains("machine not found"),
        "{status} {error}"
    );
    let (status, error) = refused(format!("/v1/apps/b/machines/{id}/exec/ws"), token).await;
    assert!(
        status == StatusCode::NOT_FOUND && error.contains("Could not find App"),
        "{status} {error}"
    );
    let (status, _) = refused(format!("{}?remove_app=maybe", served.path()), token).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let refusal = json!({ "error": "machine is stopped", "code": "failed_precondition" });
    served.fixture.worker.state().stream_answer = Some((412, refusal.to_string()));
    let (status, error) = refused(served.path(), token).await;
    assert!(
        status == StatusCode::PRECONDITION_FAILED && error == "machine is stopped",
        "{status} {error}"
    );

    // Without an upgrade.
    let answer = served.fixture.call(&format!("GET {}", served.path())).await;
    assert_eq!(answer.status, 426, "{}", answer.text);
    assert!(answer.error().contains("WebSocket"));
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nConnection: close\r\n\r\n",
        served.path()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
}

#[tokio::test]
async fn a_message_that_is_too_long_ends_the_session() {
    let served = Served::new().await;
    let (mut socket, mut worker) = served.session().await;
    // The server may end the connection before it has read everything.
    let _ = socket.send(Message::Binary(vec![0; 2 << 20].into())).await;
    assert_eq!(within(worker.heard()).await, None);
}

#[tokio::test]
async fn a_server_that_stops_says_so() {
    let mut served = Served::new().await;
    let (mut socket, _worker) = served.session().await;
    served.stop.take().unwrap().send(()).unwrap();
    let Message::Text(text) = heard(&mut socket).await else { panic!() };
    assert!(text.contains("the server is stopping"), "{text}");
    assert!(matches!(heard(&mut socket).await, Message::Close(_)));
    drop(socket);
    within(served.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_app_made_for_a_session_goes_with_it_unless_it_has_another_machine() {
    let served = Served::new().await;
    let worker = &served.fixture.worker;
    let other = served.fixture.machine("a", "other").await;
    let path = format!("{}?remove_app=true", served.path());
    let socket = served.connect_to(&path, &served.fixture.token).await.unwrap();
    let mut end = within(worker.session()).await;
    drop(socket);
    assert_eq!(within(end.heard()).await, None);
    assert_eq!(served.fixture.call("GET /v1/apps/a").await.status, 200, "it has another machine");
    worker.turn(&other, MachineState::Destroyed, "destroy").await;
    served
        .fixture
        .call(&format!("GET /v1/apps/a/machines/{other}/wait?state=destroyed"))
        .await
        .ok();
    let socket = served.connect_to(&path, &served.fixture.token).await.unwrap();
    within(worker.session()).await;
    drop(socket);
    served.fixture.until_gone("a").await;
}

#[test]
fn messages_are_as_documented() {
    let schemas = [
        (
            "ClientMessage",
            r#"{"type": "start", "command": ["sh"], "terminal": {"columns": 80, "rows": 24}}"#,
        ),
        ("ClientMessage", r#"{"type": "resize", "columns": 1, "rows": 1}"#),
        ("ClientMessage", r#"{"type": "signal", "signal": "SIGINT"}"#),
        ("ClientMessage", r#"{"type": "eof"}"#),
        ("ServerMessage", r#"{"type": "credit", "bytes": 5}"#),
        ("ServerMessage", r#"{"type": "exit", "exit_code": 1, "exit_signal": 0}"#),
        ("ServerMessage", r#"{"type": "error", "code": "not_found", "error": "x"}"#),
    ];
    for (name, message) in schemas {
        accept(&CONTRACT.schema(name), message, name);
    }
}
