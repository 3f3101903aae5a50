//! Requests and responses.

use std::time::Duration;

use bytes::Bytes;
use caddis_proxy::*;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpStream, tcp::OwnedReadHalf},
};

use crate::support::*;

#[tokio::test]
async fn a_request_reaches_a_machine_of_the_app_that_its_host_names() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let answer = world.get("/path?query=1").await;
    assert_eq!(answer.status, 200);
    for expected in [
        "get /path?query=1 http/1.1\r\n",
        "host: app.localhost\r\n",
        "fly-client-ip: 127.0.0.1\r\n",
        "x-forwarded-for: 127.0.0.1, 127.0.0.1\r\n",
        "x-forwarded-proto: http\r\n",
        "x-forwarded-ssl: off\r\n",
        "x-forwarded-port: 80\r\n",
        "fly-forwarded-port: 80\r\n",
        "fly-region: local\r\n",
        "via: 1.1 caddis\r\n",
    ] {
        assert!(answer.body.contains(expected), "{expected} in {}", answer.body);
    }
    let id = answer.header("fly-request-id").unwrap();
    assert!(answer.body.contains(&format!("fly-request-id: {id}")));
    assert!(answer.header("server").unwrap().starts_with("caddis/"));
    let other =
        send(world.http, "GET / HTTP/1.1\r\nHost: b.localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(other.await.status, 404);
    let counters = world.proxy.counters("app").unwrap();
    assert_eq!(counters.machines[0].requests, 1);
    assert!(counters.machines[0].bytes_out > 0);
}

#[tokio::test]
async fn fields_of_one_connection_are_not_passed_on() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let request = "GET / HTTP/1.1\r\nHost: app.localhost\r\nConnection: close, X-Secret\r\n\
        X-Secret: 1\r\nKeep-Alive: 5\r\nFly-Client-IP: 6.6.6.6\r\nX-Kept: yes\r\n\r\n";
    let answer = send(world.http, request).await;
    assert!(answer.body.contains("x-kept: yes"));
    for gone in ["x-secret", "keep-alive", "6.6.6.6", "\nconnection:"] {
        assert!(!answer.body.contains(gone), "{gone} in {}", answer.body);
    }
}

#[tokio::test]
async fn response_options_set_and_delete_fields_and_pristine_adds_none() {
    let upstream = Upstream::serve(|mut stream, _| async move {
        read_request(&mut stream).await;
        let text = "HTTP/1.1 200 OK\r\nX-Old: 1\r\nX-Gone: 1\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(text.as_bytes()).await.unwrap();
    })
    .await;
    let world = World::new();
    let mut route = started("a1", upstream.address);
    let options = &mut route.services[0].ports[0].http;
    options.pristine = true;
    options.response_headers = vec![
        ("x-old".parse().unwrap(), HeaderChange::Set(vec!["2".parse().unwrap()])),
        ("x-gone".parse().unwrap(), HeaderChange::Delete),
    ];
    world.apply(vec![route]);
    let answer = world.get("/").await;
    assert_eq!(answer.header("x-old"), Some("2"));
    for gone in ["x-gone", "server", "via", "fly-request-id"] {
        assert_eq!(answer.header(gone), None, "{gone}");
    }
}

#[tokio::test]
async fn force_https_redirects_to_the_listener_for_tls() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    let mut route = started("a1", upstream.address);
    route.services[0].ports[0].force_https = true;
    world.apply(vec![route]);
    let answer = world.get("/a?b=c").await;
    assert_eq!(answer.status, 301);
    let expected = format!("https://app.localhost:{}/a?b=c", world.https.port());
    assert_eq!(answer.header("location"), Some(expected.as_str()));
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn head_with_100_continue() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: app.localhost\r\nExpect: 100-continue\r\n\
        Content-Length: 5\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (interim, _) = in_time("100", read_head(&mut stream)).await.unwrap();
    assert!(interim.starts_with("http/1.1 100"), "{interim}");
    stream.write_all(b"hello").await.unwrap();
    let answer = read_answer(&mut stream).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.ends_with("hello") && !answer.body.contains("expect"));
}

#[tokio::test]
async fn interim_responses_103_do_not_stand_for_the_response() {
    let upstream = Upstream::serve(|mut stream, _| async move {
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").await.unwrap();
        respond(&mut stream, "final").await.unwrap();
    })
    .await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let answer = world.get("/").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "final"));
}

#[tokio::test]
async fn error_after_headers_cuts_the_response_and_is_logged() {
    let upstream = Upstream::serve(|mut stream, _| async move {
        read_request(&mut stream).await;
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun";
        stream.write_all(text.as_bytes()).await.unwrap();
    })
    .await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let answer = world.get("/").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "begun"));
    eventually("the error", || world.journal.codes() == [ErrorCode::PC03]).await;
    let error = world.journal.errors.lock()[0].clone();
    assert_eq!(error.machine, Some(id("a1")));
    assert_eq!(
        error.request_id.as_deref().map(str::to_lowercase).as_deref(),
        answer.header("fly-request-id")
    );
}

#[tokio::test]
async fn a_connection_that_is_parked_between_requests_and_not_within_them_goes_on() {
    let upstream = Upstream::http("one").await;
    let world = World::with(|config| config.park_after = Duration::ZERO);
    world.apply(vec![started("a1", upstream.address)]);
    let client = TcpStream::connect(world.http).await.unwrap();
    let (reading, mut client) = client.into_split();
    let mut reading = BufReader::new(reading);
    let text = "POST / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 4\r\n\r\nbody";
    for round in 0..8 {
        // In pieces of each size, with time to be parked between them.
        for piece in text.as_bytes().chunks(1 << round) {
            client.write_all(piece).await.unwrap();
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
        }
        assert!(in_time("the answer", next_body(&mut reading)).await.ends_with("body"), "{round}");
    }
    // Two at once.
    client.write_all(text.repeat(2).as_bytes()).await.unwrap();
    for _ in 0..2 {
        assert!(in_time("the answer", next_body(&mut reading)).await.ends_with("body"));
    }
    assert_eq!(upstream.connections(), 1);
}

/// The body of the next response on a connection that is kept.
async fn next_body(stream: &mut BufReader<OwnedReadHalf>) -> String {
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = text.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
        assert!(!line.is_empty(), "the connection was closed");
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    String::from_utf8(body).unwrap()
}

#[tokio::test]
async fn close_on_response_before_downstream_finish() {
    let upstream = Upstream::serve(|mut stream, _| async move {
        read_head(&mut stream).await;
        let text = "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig";
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    })
    .await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let head = "POST / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 100\r\n\r\npart";
    let answer = send(world.http, head).await;
    assert_eq!((answer.status, answer.body.as_str()), (413, "big"));
    eventually("the stream's end", || world.open_streams("a1") == 0).await;
}

#[tokio::test]
async fn duplex_both_bodies_flow_at_once() {
    let upstream = Upstream::serve(|mut stream, _| async move {
        let (_, rest) = read_head(&mut stream).await.unwrap();
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        // Chunks are passed back as they are.
        stream.write_all(&rest).await.unwrap();
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    })
    .await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: app.localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (_, mut got) = in_time("the head", read_head(&mut stream)).await.unwrap();
    for word in ["first", "second", "third"] {
        stream.write_all(format!("{:x}\r\n{word}\r\n", word.len()).as_bytes()).await.unwrap();
        while !String::from_utf8_lossy(&got).contains(word) {
            let mut piece = [0; 100];
            let length = in_time("the echo", stream.read(&mut piece)).await.unwrap();
            assert!(length > 0);
            got.extend_from_slice(&piece[..length]);
        }
    }
}

#[tokio::test]
async fn a_client_that_shuts_its_writing_side_gets_its_answer() {
    let (begin, begun) = tokio::sync::watch::channel(false);
    let upstream = Upstream::serve(move |mut stream, _| {
        let mut begun = begun.clone();
        async move {
            read_request(&mut stream).await;
            begun.wait_for(|is_so| *is_so).await.unwrap();
            respond(&mut stream, "answer").await.unwrap();
        }
    })
    .await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    stream.write_all(get("/").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    eventually("the request", || world.open_streams("a1") == 1).await;
    begin.send_replace(true);
    let answer = read_answer(&mut stream).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "answer"));
}

type H2 = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

async fn h2(world: &World) -> H2 {
    let stream = TokioIo::new(TcpStream::connect(world.http).await.unwrap());
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn h2_request(body: &'static str) -> http::Request<Full<Bytes>> {
    http::Request::post("http://app.localhost/rpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(body)))
        .unwrap()
}

#[tokio::test]
async fn h2_to_h1() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let mut client = h2(&world).await;
    let response = in_time("it", client.send_request(h2_request("hello"))).await.unwrap();
    assert_eq!(response.version(), http::Version::HTTP_2);
    assert_eq!(response.headers()["via"], "2 caddis");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&body);
    assert!(text.contains("post /rpc http/1.1") && text.contains("host: app.localhost"), "{text}");
    assert!(text.contains("via: 2 caddis") && text.ends_with("hello"));
}

/// A machine that speaks HTTP/2 without TLS, and ends with trailers.
async fn h2c_upstream() -> Upstream {
    Upstream::serve(|stream, _| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                let mut body = request.into_body();
                let mut got = Vec::new();
                while let Some(Ok(data)) = body.data().await {
                    got.extend_from_slice(&data);
                    let _ = body.flow_control().release_capacity(data.len());
                }
                let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
                stream.send_data(Bytes::from(got), false).unwrap();
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                stream.send_trailers(trailers).unwrap();
            });
        }
    })
    .await
}

#[tokio::test]
async fn h2c_to_h2c_with_trailers_over_one_connection() {
    let upstream = h2c_upstream().await;
    let world = World::new();
    let mut route = started("a1", upstream.address);
    route.services[0].ports[0].http.h2_backend = true;
    world.apply(vec![route]);
    let mut client = h2(&world).await;
    for _ in 0..3 {
        let response = in_time("it", client.send_request(h2_request("hello"))).await.unwrap();
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(body.to_bytes(), "hello");
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn h1_to_h2c() {
    let upstream = h2c_upstream().await;
    let world = World::new();
    let mut route = started("a1", upstream.address);
    route.services[0].ports[0].http.h2_backend = true;
    world.apply(vec![route]);
    let request = "POST / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 5\r\n\
        Connection: close\r\n\r\nhello";
    let answer = send(world.http, request).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("hello"));
}

#[tokio::test]
async fn h1_on_h2c_port_is_a_bad_gateway() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    let mut route = started("a1", upstream.address);
    route.services[0].ports[0].http.h2_backend = true;
    world.apply(vec![route]);
    assert_eq!(world.get("/").await.status, 502);
}

#[tokio::test]
async fn requests_share_connections_and_connections_do_not() {
    for (kind, expected) in [(ConcurrencyKind::Requests, 1), (ConcurrencyKind::Connections, 3)] {
        let upstream = Upstream::http("one").await;
        let world = World::new();
        let mut route = started("a1", upstream.address);
        route.services[0].concurrency.kind = kind;
        world.apply(vec![route]);
        for _ in 0..3 {
            assert_eq!(world.get("/").await.status, 200);
            eventually("the end", || world.open_streams("a1") == 0).await;
        }
        assert_eq!(upstream.connections(), expected, "{kind:?}");
    }
}

#[tokio::test]
async fn a_response_in_chunks_leaves_its_connection_to_the_next_request() {
    let upstream = Upstream::serve(|mut stream, _| async move {
        while read_request(&mut stream).await.is_some() {
            let text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            let chunks = "5\r\nhello\r\n0\r\n\r\n";
            stream.write_all(format!("{text}{chunks}").as_bytes()).await.unwrap();
        }
    })
    .await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    for _ in 0..3 {
        assert!(world.get("/").await.body.contains("hello"));
        eventually("the end", || world.open_streams("a1") == 0).await;
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn an_access_is_logged_by_choice() {
    let upstream = Upstream::http("one").await;
    let world = World::with(|config| config.access_log = true);
    world.apply(vec![started("a1", upstream.address)]);
    world.get("/path?secret=1").await;
    let accesses = world.journal.accesses.lock();
    let access = &accesses[0];
    assert_eq!((access.path.as_str(), access.status), ("/path", 200));
    assert_eq!(access.machine, Some(id("a1")));
}
