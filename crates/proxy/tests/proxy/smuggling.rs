//! Requests that others may read in another way than we do.

use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::*;

const REFUSED: &[(&str, &str)] = &[
    ("length and encoding", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("encoding and length", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    ("two lengths", "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    ("a repeated length", "Content-Length: 1\r\nContent-Length: 1\r\n\r\na"),
    ("a list of lengths", "Content-Length: 1, 1\r\n\r\na"),
    ("a signed length", "Content-Length: +1\r\n\r\na"),
    ("a negative length", "Content-Length: -1\r\n\r\n"),
    ("a hexadecimal length", "Content-Length: 0x1\r\n\r\na"),
    ("another encoding", "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("an encoding that is none", "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("two encodings", "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n"),
    ("a hidden encoding", "Transfer-Encoding: \u{b}chunked\r\n\r\n0\r\n\r\n"),
    ("a folded encoding", "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    ("a space before the colon", "Content-Length : 1\r\n\r\na"),
    ("a folded field", "X: a\r\n b\r\n\r\n"),
    ("a bare LF", "X: a\nY: b\r\n\r\n"),
    ("a bare LF at the end", "X: a\r\n\n"),
    ("a bare CR", "X: a\rY: b\r\n\r\n"),
    ("a NUL", "X: a\0b\r\n\r\n"),
    ("two hosts", "Host: b.localhost\r\n\r\n"),
];

#[tokio::test]
async fn requests_of_two_meanings_are_refused_and_reach_no_machine() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    for (what, rest) in REFUSED {
        let request = format!("POST / HTTP/1.1\r\nHost: app.localhost\r\n{rest}");
        let mut stream = TcpStream::connect(world.http).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        // Where the head has no end for us, nothing more is waited for.
        stream.shutdown().await.unwrap();
        let answer = read_answer(&mut stream).await;
        assert_eq!(answer.status, 400, "{what}: {answer:?}");
    }
    let old = "POST / HTTP/1.0\r\nHost: app.localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(send(world.http, old).await.status, 400);
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn a_spoilt_request_after_a_good_one_is_refused_too() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let request = "POST / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 3\r\n\r\n\n\n\n\
        POST / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na";
    let answer = send(world.http, request).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("HTTP/1.1 400"), "{}", answer.body);
}

#[tokio::test]
async fn a_body_that_claims_to_be_an_upgrade_is_not_tunnelled() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let request = "GET / HTTP/1.1\r\nHost: app.localhost\r\nConnection: Upgrade\r\n\
        Upgrade: websocket\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: app.localhost\r\n\r\n";
    let answer = send(world.http, request).await;
    // The machine did not switch: this is the only request that it may see.
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(!answer.body.contains("smuggled"), "{}", answer.body);
    assert_eq!(upstream.connections(), 1);
}
