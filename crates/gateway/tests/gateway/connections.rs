//! The server on a real socket.

use std::time::Duration;

use caddis_gateway::Settings;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

use crate::support::{Fixture, TIMEOUT};

async fn exchange(stream: &mut TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(TIMEOUT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn the_server_answers_limits_heads_and_ends_waits_when_it_stops() {
    let settings = Settings { head_timeout: Duration::from_millis(300), ..Settings::default() };
    let fixture = Fixture::with(settings, |_| {}).await;
    let id = fixture.started().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let token = fixture.token.clone();
    let clients = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let answer =
            exchange(&mut stream, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                .await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.contains("fly-request-id: "),
            "{answer}"
        );

        let mut stream = TcpStream::connect(address).await.unwrap();
        let answer = exchange(&mut stream, "GET /healthz HTTP/1.1\r\nX: ").await;
        assert!(!answer.contains("200"), "a head that never ends is given up: {answer}");

        let mut stream = TcpStream::connect(address).await.unwrap();
        let long = "y".repeat(200_000);
        let request =
            format!("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: {long}\r\n\r\n");
        // The server may end the connection before it has read everything.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut answer)).await.unwrap();
        assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1 200"), "a head is limited");

        let mut stream = TcpStream::connect(address).await.unwrap();
        let wait = format!(
            "GET /v1/apps/a/machines/{id}/wait?state=stopped HTTP/1.1\r\nHost: \
             x\r\nAuthorization: {token}\r\n\r\n"
        );
        stream.write_all(wait.as_bytes()).await.unwrap();
        // A second connection is answered after the first's request was taken in or it was refused
        // at the stop: in both cases the wait must not hold up the end.
        let mut other = TcpStream::connect(address).await.unwrap();
        exchange(&mut other, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        stop.send(()).unwrap();
        let mut answer = String::new();
        tokio::time::timeout(TIMEOUT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.is_empty() || answer.contains("the server is stopping"), "{answer}");
    };
    let shutdown = async {
        // An error means that the clients are done for, too.
        let _ = stopped.await;
    };
    let (served, ()) = tokio::join!(fixture.gateway.serve(listener, shutdown), clients);
    served.unwrap();
}
