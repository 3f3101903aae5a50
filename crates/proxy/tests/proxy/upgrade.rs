//! WebSockets and other upgrades.

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::*;

const ASK: &str = "GET /ws HTTP/1.1\r\nHost: app.localhost\r\nConnection: keep-alive, Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Accept: y\r\n\r\n";

/// Switches, greets, and sends back what it gets.
async fn echoing() -> Upstream {
    Upstream::serve(|mut stream, _| async move {
        let (head, rest) = read_head(&mut stream).await.unwrap();
        assert!(head.contains("connection: upgrade") && head.contains("upgrade: websocket"));
        assert!(head.contains("sec-websocket-key: ") && rest.is_empty(), "{head}");
        stream.write_all(format!("{SWITCH}greeting").as_bytes()).await.unwrap();
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    })
    .await
}

async fn read(stream: &mut (impl AsyncReadExt + Unpin), length: usize) -> String {
    let mut got = vec![0; length];
    in_time("the bytes", stream.read_exact(&mut got)).await.unwrap();
    String::from_utf8(got).unwrap()
}

#[tokio::test]
async fn upgrade_body_after_101() {
    let upstream = echoing().await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    // Sent before the machine has switched: it gets it after that only.
    stream.write_all(format!("{ASK}early").as_bytes()).await.unwrap();
    let (head, mut rest) = in_time("101", read_head(&mut stream)).await.unwrap();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(head.contains("upgrade: websocket") && head.contains("sec-websocket-accept: y"));
    while rest.len() < "greetingearly".len() {
        let length = in_time("the echo", stream.read_buf(&mut rest)).await.unwrap();
        assert!(length > 0);
    }
    assert_eq!(rest, b"greetingearly");
    stream.write_all(b"later").await.unwrap();
    assert_eq!(read(&mut stream, 5).await, "later");
    assert_eq!(world.open_streams("a1"), 1);
    drop(stream);
    eventually("the end", || world.open_streams("a1") == 0).await;
}

#[tokio::test]
async fn ws_server_ends_conn() {
    let upstream = Upstream::serve(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(format!("{SWITCH}bye").as_bytes()).await.unwrap();
    })
    .await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let answer = send(world.http, ASK).await;
    assert_eq!((answer.status, answer.body.as_str()), (101, "bye"));
    eventually("the end", || world.open_streams("a1") == 0).await;
}

#[tokio::test]
async fn a_refused_upgrade_is_an_answer_like_others() {
    let upstream = Upstream::serve(|mut stream, _| async move {
        read_head(&mut stream).await;
        let text = "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
        stream.write_all(text.as_bytes()).await.unwrap();
    })
    .await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let answer = send(world.http, ASK).await;
    assert_eq!((answer.status, answer.body.as_str()), (403, "no"));
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_a_bad_gateway() {
    let upstream = Upstream::serve(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(SWITCH.as_bytes()).await.unwrap();
    })
    .await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    assert_eq!(world.get("/").await.status, 502);
}

#[tokio::test]
async fn a_websocket_over_http_2_is_one_of_http_1_to_the_machine() {
    let upstream = echoing().await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let stream = TokioIo::new(TcpStream::connect(world.http).await.unwrap());
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    // The server's settings come with the first answer.
    let first = http::Request::get("http://other.localhost/").body(Empty::<Bytes>::new()).unwrap();
    assert_eq!(in_time("it", client.send_request(first)).await.unwrap().status(), 404);
    let request = http::Request::connect("http://app.localhost/ws")
        .extension(hyper::ext::Protocol::from_static("websocket"))
        .body(Empty::<Bytes>::new())
        .unwrap();
    let mut response = in_time("it", client.send_request(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut socket = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    assert_eq!(read(&mut socket, 8).await, "greeting");
    socket.write_all(b"hello").await.unwrap();
    assert_eq!(read(&mut socket, 5).await, "hello");
}

#[tokio::test]
async fn connect_is_not_a_way_out() {
    let world = World::new();
    world.apply(vec![started("a1", address())]);
    let request = "CONNECT app.localhost:80 HTTP/1.1\r\nHost: app.localhost\r\n\r\n";
    assert_eq!(send(world.http, request).await.status, 405);
}
