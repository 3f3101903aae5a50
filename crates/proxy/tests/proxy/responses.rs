//! What machines answer, byte for byte: passed on as it was meant, or refused, and whether the
//! connection is used again.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::*;

/// Answers each request on a connection with these bytes, `pieces` at a time.
async fn saying(answer: Vec<u8>, pieces: usize, closes: bool) -> Upstream {
    Upstream::serve(move |mut stream, _| {
        let answer = answer.clone();
        async move {
            stream.set_nodelay(true).unwrap();
            while read_request(&mut stream).await.is_some() {
                for piece in answer.chunks(pieces) {
                    if stream.write_all(piece).await.is_err() {
                        return;
                    }
                    if pieces < answer.len() {
                        tokio::task::yield_now().await;
                    }
                }
                if closes {
                    return;
                }
            }
        }
    })
    .await
}

/// The answers to two requests, and connections that were opened for them.
async fn twice(upstream: &Upstream) -> ([Answer; 2], u32) {
    let world = World::new();
    world.apply(vec![started("m", upstream.address)]);
    let first = in_time("the first answer", world.get("/1")).await;
    let second = in_time("the second answer", world.get("/2")).await;
    ([first, second], upstream.connections())
}

/// `get` asks for the connection to be closed, so that a body ends with it, or with its chunks.
fn body(answer: &Answer) -> String {
    match answer.header("transfer-encoding") {
        Some(_) => {
            let mut body = String::new();
            let mut rest = answer.body.as_str();
            while let Some((length, after)) = rest.split_once("\r\n") {
                let length = usize::from_str_radix(length, 16).unwrap();
                if length == 0 {
                    break;
                }
                body.push_str(&after[..length]);
                rest = &after[length + 2..];
            }
            body
        }
        None => answer.body.clone(),
    }
}

#[tokio::test]
async fn a_response_is_the_same_in_whatever_pieces_it_comes() {
    for (response, expected, connections) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello", 1),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "", 1),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
             3\r\nhel\r\n2;x\r\nlo\r\n0\r\n\r\n",
            "hello",
            1,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx: y\r\n\r\n",
            "hello",
            1,
        ),
        (
            "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "hello",
            1,
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", "hello", 2),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello", 2),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello", "hello", 1),
    ] {
        for pieces in [1, 7, response.len()] {
            let upstream = saying(response.into(), pieces, false).await;
            let (answers, opened) = twice(&upstream).await;
            for answer in &answers {
                assert_eq!((answer.status, body(answer).as_str()), (200, expected), "{response}");
            }
            assert_eq!(opened, connections, "{pieces}: {response}");
        }
    }
}

#[tokio::test]
async fn a_body_without_a_length_ends_with_its_connection() {
    for pieces in [1, 1000] {
        let response = "HTTP/1.1 200 OK\r\nX: y\r\n\r\nhello";
        let upstream = saying(response.into(), pieces, true).await;
        let (answers, opened) = twice(&upstream).await;
        for answer in &answers {
            assert_eq!((answer.status, body(answer).as_str()), (200, "hello"));
        }
        assert_eq!(opened, 2);
    }
}

#[tokio::test]
async fn what_is_no_response_is_a_bad_gateway_and_its_connection_is_not_used_again() {
    for response in [
        "SSH-2.0-OpenSSH_9.2p1\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nab",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nBad Name: x\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ] {
        let upstream = saying(response.into(), 1000, false).await;
        let (answers, opened) = twice(&upstream).await;
        assert_eq!(answers.map(|answer| answer.status), [502, 502], "{response}");
        assert_eq!(opened, 2, "{response}");
    }
}

/// Whoever asks next would be given what a machine said beyond its answer.
#[tokio::test]
async fn what_comes_after_a_response_is_nobodys_answer() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none";
    let planted = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad";
    let upstream = saying(format!("{answer}{planted}").into(), 1000, false).await;
    let (answers, opened) = twice(&upstream).await;
    assert_eq!(answers.map(|answer| answer.body), ["one", "one"]);
    assert_eq!(opened, 2);
}

#[tokio::test]
async fn a_machine_may_answer_before_it_has_read_a_long_head() {
    let upstream = Upstream::serve(|mut stream, _| async move {
        // As much as says that it will be too much.
        stream.read_exact(&mut [0; 100]).await.unwrap();
        let answer = b"HTTP/1.1 431 x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig";
        stream.write_all(answer).await.unwrap();
        // It closes in order, as what it has not read would reset the connection.
        stream.shutdown().await.unwrap();
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.unwrap();
    })
    .await;
    let world = World::new();
    world.apply(vec![started("m", upstream.address)]);
    let field = format!("X: {}\r\n", "x".repeat(1000));
    let request = get("/").replace("\r\n\r\n", &format!("\r\n{}\r\n", field.repeat(50)));
    let answer = in_time("the answer", send(world.http, &request)).await;
    assert_eq!((answer.status, answer.body.as_str()), (431, "big"));
}

/// Read by way of large pieces of memory, which must not mix up what came before them.
#[tokio::test]
async fn a_long_response_arrives_whole() {
    let long: String = (0..200_000).map(|number| format!("{number:06}\n")).collect();
    let sized = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{long}", long.len());
    let chunks: String = long
        .as_bytes()
        .chunks(70_001)
        .map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk)))
        .collect();
    let chunked = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n");
    for response in [sized, chunked] {
        let length = response.len();
        let upstream = saying(response.into(), length, false).await;
        let (answers, opened) = twice(&upstream).await;
        assert!(answers.iter().all(|answer| body(answer) == long));
        assert_eq!(opened, 1);
    }
}

/// With a body or without one: they take different ways.
#[tokio::test]
async fn a_target_without_a_path_is_asked_for_at_the_root() {
    let upstream = Upstream::http("m").await;
    let world = World::new();
    world.apply(vec![started("m", upstream.address)]);
    let rest = "HTTP/1.1\r\nHost: app.localhost\r\nConnection: close\r\n";
    for end in ["\r\n", "Content-Length: 1\r\n\r\nx"] {
        for (target, asked) in [("", "/"), ("?x=1", "/?x=1"), ("/?", "/?"), ("/a?b", "/a?b")] {
            let request = format!("GET http://app.localhost{target} {rest}{end}");
            let answer = in_time("an answer", send(world.http, &request)).await;
            let line = format!("m got:\nget {asked} http/1.1\r\n");
            assert!(answer.body.starts_with(&line), "{request}: {}", answer.body);
        }
    }
}

/// A body needs a task of its own for its connection; heads go over it afterwards.
#[tokio::test]
async fn heads_and_bodies_go_over_the_same_connection_in_turn() {
    let upstream = Upstream::http("m").await;
    let world = World::new();
    world.apply(vec![started("m", upstream.address)]);
    for request in ["GET", "POST", "GET", "POST", "GET"] {
        let body = if request == "POST" { "Content-Length: 5\r\n\r\nhello" } else { "\r\n" };
        let head = format!("{request} / HTTP/1.1\r\nHost: app.localhost\r\nConnection: close\r\n");
        let answer = in_time("an answer", send(world.http, &format!("{head}{body}"))).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body.ends_with("hello"), request == "POST", "{}", answer.body);
    }
    assert_eq!(upstream.connections(), 1);
}
