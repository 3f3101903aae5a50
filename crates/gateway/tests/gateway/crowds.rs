//! Many connections, slow ones, and heads that are refused before there is a request.

use std::{net::SocketAddr, time::Duration};

use caddis_api::{MachineId, MachineState};
use caddis_bus::stream::frames::Frame;
use caddis_gateway::Settings;
use futures::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use tokio_tungstenite::{
    client_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};

use crate::support::{CONTRACT, Fixture, TIMEOUT, contract::accept};

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
/// Preface and empty settings.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

struct Served {
    fixture: Fixture,
    id: MachineId,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Served {
    async fn with(settings: Settings) -> Self {
        let fixture = Fixture::new().await;
        let id = fixture.started().await;
        let gateway = fixture.restarted_with(settings).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            gateway.serve(listener, stopped).await
        });
        Self { fixture, id, address, stop, serving }
    }

    async fn connect(&self) -> TcpStream {
        within(TcpStream::connect(self.address)).await.unwrap()
    }

    /// Sends this and reads until the server closes the connection.
    async fn exchange(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes.as_ref()).await.unwrap();
        rest(&mut stream).await
    }

    /// A request of `GET` with the token that is in progress.
    async fn begun(&self, path: &str) -> TcpStream {
        let mut stream = self.connect().await;
        let token = &self.fixture.token;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        // What is connected later is answered later.
        self.healthy().await;
        stream
    }

    fn path(&self, rest: &str) -> String {
        format!("/v1/apps/a/machines/{}/{rest}", self.id)
    }

    async fn healthy(&self) {
        let answer = self.exchange(HEALTH).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    async fn idle(&self, count: usize) -> Vec<TcpStream> {
        let mut idle = Vec::new();
        for _ in 0..count {
            idle.push(self.connect().await);
        }
        idle
    }

    /// Has the server stop, which must not take longer for any connection.
    async fn stop(self) {
        self.stop.send(()).unwrap();
        within(self.serving).await.unwrap().unwrap();
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, work).await.unwrap()
}

/// What comes until the end; that may be a reset, where something was sent that was not read.
async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = within(stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Status and text of an error, which must look like all others.
#[track_caller]
fn error(answer: &str) -> (u16, String) {
    let (head, body) =
        answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let lower = head.to_ascii_lowercase();
    assert!(lower.contains("\r\ncontent-type: application/json"), "{head}");
    assert!(lower.contains(&format!("\r\ncontent-length: {}", body.len())), "{head}");
    accept(&CONTRACT.schema("ErrorBody"), body, "the body");
    let body: Value = serde_json::from_str(body).unwrap();
    assert!(head.contains(body["request_id"].as_str().unwrap()), "{head}");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body["error"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn connections_that_are_idle_or_half_sent_are_closed_after_a_time() {
    let served =
        Served::with(Settings { head_timeout: Duration::from_millis(300), ..Settings::default() })
            .await;
    let busy = served.begun(&served.path("wait?state=stopped&timeout=60")).await;
    let mut kept = BufReader::new(served.connect().await);
    kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut line = String::new();
    within(kept.read_line(&mut line)).await.unwrap();
    assert_eq!(line, "HTTP/1.1 200 OK\r\n");
    for (sent, what) in [
        (&b""[..], "nothing"),
        (b"G", "a letter"),
        (&HTTP2[..10], "half a preface"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ", "half a head"),
        (HTTP2, "a preface and no request"),
    ] {
        let answer = served.exchange(sent).await;
        assert!(!answer.contains("200"), "{what}: {answer}");
    }
    let mut answer = Vec::new();
    within(kept.read_to_end(&mut answer)).await.unwrap();
    // A request may take longer than that.
    let mut busy = busy;
    served.fixture.worker.turn(&served.id, MachineState::Stopped, "stop").await;
    let answer = rest(&mut busy).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_client_that_takes_no_answer_and_is_well_otherwise_is_closed_after_a_time() {
    let served =
        Served::with(Settings { head_timeout: Duration::from_millis(300), ..Settings::default() })
            .await;
    let mut client = h2::client::Builder::new();
    let (mut client, connection) = client
        .initial_window_size(0)
        .handshake::<_, bytes::Bytes>(served.connect().await)
        .await
        .unwrap();
    let request = axum::http::Request::get("http://x/v1/apps").body(()).unwrap();
    let (answer, _) = client.send_request(request, true).unwrap();
    // Answers to pings, among others.
    let connection = tokio::spawn(connection);
    let answer = within(answer).await.unwrap();
    assert_eq!(answer.status().as_u16(), 401);
    // Its body would be there, did anybody want it.
    let _: Result<(), h2::Error> = within(connection).await.unwrap();
    drop(answer);
    served.healthy().await;
}

#[tokio::test]
async fn idle_connections_make_room_and_those_with_work_stay() {
    let served = Served::with(Settings { max_connections: 6, ..Settings::default() }).await;
    let mut waits = served.begun(&served.path("wait?state=stopped&timeout=60")).await;
    let mut watches = BufReader::new(served.begun("/v1/apps/a/machines/watch").await);
    let mut line = String::new();
    while !line.contains("\"snapshot\"") {
        line.clear();
        assert!(within(watches.read_line(&mut line)).await.unwrap() > 0, "the watch goes on");
    }
    let mut request =
        format!("ws://{}{}", served.address, served.path("exec/ws")).into_client_request().unwrap();
    let token = format!("Bearer {}", served.fixture.token);
    request.headers_mut().insert("authorization", token.parse().unwrap());
    let (mut socket, _) = within(client_async(request, served.connect().await)).await.unwrap();
    let session = within(served.fixture.worker.session()).await;

    let mut silent = served.idle(50).await;
    let half: Vec<_> = served.idle(50).await;
    for mut stream in half {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n").await.unwrap();
        silent.push(stream);
    }
    for _ in 0..20 {
        served.healthy().await;
    }
    // The latest are still there.
    let mut latest = silent.pop().unwrap();
    latest.write_all(b"Connection: close\r\n\r\n").await.unwrap();
    let answer = rest(&mut latest).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") || answer.is_empty(), "{answer}");
    assert!(rest(&mut silent[0]).await.is_empty(), "the first had to go");

    session.say(Frame::Data(b"\x01still here".to_vec().into())).await;
    assert_eq!(
        within(socket.next()).await.unwrap().unwrap(),
        Message::Binary(b"\x01still here".to_vec().into())
    );
    // Whatever a program writes is passed on as it is, and be it what a refusal looks like.
    let refusal = b"\x01HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    session.say(Frame::Data(refusal.to_vec().into())).await;
    assert_eq!(
        within(socket.next()).await.unwrap().unwrap(),
        Message::Binary(refusal.to_vec().into())
    );
    socket.send(Message::Binary(b"\0input".to_vec().into())).await.unwrap();
    served.fixture.worker.turn(&served.id, MachineState::Stopped, "stop").await;
    assert!(rest(&mut waits).await.starts_with("HTTP/1.1 200 "));
    while !line.contains("\"stopped\"") {
        line.clear();
        assert!(within(watches.read_line(&mut line)).await.unwrap() > 0, "the watch goes on");
    }
    served.healthy().await;
    served.stop().await;
}

#[tokio::test]
async fn when_all_have_work_a_newcomer_waits_and_is_told_in_the_end() {
    let settings = Settings {
        max_connections: 3,
        place_timeout: Duration::from_millis(300),
        ..Settings::default()
    };
    let served = Served::with(settings).await;
    let wait = served.path("wait?state=stopped&timeout=60");
    let first = served.begun(&wait).await;
    let second = served.begun(&wait).await;
    // The third place is taken last: who asks whether it is would wait.
    let mut third = served.connect().await;
    let request =
        format!("GET {wait} HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\n", served.fixture.token);
    third.write_all(format!("{request}Connection: close\r\n\r\n").as_bytes()).await.unwrap();
    let refused = loop {
        let answer = served.exchange(HEALTH).await;
        // As long as the third is idle it makes room.
        if !answer.starts_with("HTTP/1.1 200 ") {
            break answer;
        }
        third = served.connect().await;
        third.write_all(format!("{request}Connection: close\r\n\r\n").as_bytes()).await.unwrap();
    };
    let (status, text) = error(&refused);
    assert!(status == 503 && text.contains("too many connections"), "{refused}");
    assert!(refused.contains("retry-after: "), "{refused}");
    // As soon as one has ended there is room, for those that wait first.
    let mut waiting = served.connect().await;
    waiting.write_all(HEALTH.as_bytes()).await.unwrap();
    served.fixture.worker.turn(&served.id, MachineState::Stopped, "stop").await;
    for mut stream in [first, second, third] {
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    assert!(rest(&mut waiting).await.starts_with("HTTP/1.1 "));
    served.healthy().await;
    served.stop().await;
}

#[tokio::test]
async fn an_upload_that_stands_still_is_given_up() {
    let served =
        Served::with(Settings { body_timeout: Duration::from_millis(300), ..Settings::default() })
            .await;
    let head = format!(
        "POST /v1/images?format=oci-archive HTTP/1.1\r\nHost: x\r\nAuthorization: \
         {}\r\nConnection: close\r\n\
         Content-Length: 1000000\r\n\r\nbegin",
        served.fixture.token
    );
    served.exchange(&head).await;
    let call = served.fixture.worker.state().calls.pop().unwrap();
    assert!(call.body.starts_with("error: "), "{}", call.body);
}

#[tokio::test]
async fn heads_that_are_refused_are_answered_as_all_other_errors_are() {
    let served = Served::with(Settings::default()).await;
    let with = |more: &str| format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{more}\r\n\r\n");
    let fields: Vec<String> = (0..120).map(|number| format!("X-{number}: 1")).collect();
    for (request, expected, says) in [
        (with(&format!("X: {}", "y".repeat(70_000))), 431, "65536 bytes"),
        (with(&format!("X: {}", "y".repeat(3_000_000))), 431, "65536 bytes"),
        (with(&fields.join("\r\n")), 431, "100 fields"),
        (with("a header without a colon"), 400, "not HTTP"),
        (with("Content-Length: many"), 400, "not HTTP"),
        ("no HTTP at all\r\n\r\n".to_owned(), 400, "not HTTP"),
        ("\x16\x03\x01\x02\0\x01\0\x01\x03\x03 a TLS greeting\r\n\r\n".to_owned(), 400, "not HTTP"),
        (format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "y".repeat(70_000)), 431, "65536 bytes"),
    ] {
        let begin: String = request.chars().take(60).collect();
        let mut stream = served.connect().await;
        // Both at once: what is answered must get through while the rest is still sent.
        let (mut reads, mut writes) = stream.split();
        let mut answer = Vec::new();
        let both = async {
            tokio::join!(reads.read_to_end(&mut answer), writes.write_all(request.as_bytes()))
        };
        let (read, _) = within(both).await;
        read.unwrap();
        let (status, text) = error(&String::from_utf8(answer).unwrap());
        assert!(status == expected && text.contains(says), "{begin}: {status} {text}");
    }
    // Also after a request that was answered.
    let mut stream = served.connect().await;
    let two =
        format!("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n{}", with("a header without a colon"));
    stream.write_all(two.as_bytes()).await.unwrap();
    let answer = rest(&mut stream).await;
    let at = answer.rfind("HTTP/1.1 ").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && error(&answer[at..]).0 == 400, "{answer}");
    served.stop().await;
}

#[tokio::test]
async fn heads_that_are_too_large_are_told_over_http_2_as_well() {
    let served = Served::with(Settings::default()).await;
    let stream = TokioIo::new(served.connect().await);
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(stream)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let request = |fields: Vec<(String, String)>| {
        let uri = format!("http://{}/healthz", served.address);
        let request = fields
            .into_iter()
            .fold(hyper::Request::get(uri), |request, (name, value)| request.header(name, value));
        request.body(Empty::<bytes::Bytes>::new()).unwrap()
    };
    let many = (0..120).map(|number| (format!("x-{number}"), "1".to_owned())).collect();
    for fields in [vec![("x".to_owned(), "y".repeat(100_000))], many] {
        let response = within(sender.send_request(request(fields))).await.unwrap();
        assert_eq!(response.status(), 431);
        assert_eq!(response.headers()["content-type"], "application/json");
        let body = within(response.into_body().collect()).await.unwrap().to_bytes();
        accept(&CONTRACT.schema("ErrorBody"), std::str::from_utf8(&body).unwrap(), "the body");
    }
    // The connection goes on.
    assert_eq!(within(sender.send_request(request(Vec::new()))).await.unwrap().status(), 200);
    served.stop().await;
    drop(sender);
    within(connection).await.unwrap().unwrap();
}
