//! Requests that are refused by a fault of their own: what the client and the app's log are told.

use caddis_proxy::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{support::*, tcp::own};

/// A head that has two meanings.
const TWO_LENGTHS: &str =
    "POST / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab";

fn http_route(upstream: &Upstream, options: HttpOptions) -> MachineRoute {
    let mut route = started("a1", upstream.address);
    let handlers = Handlers { http: true, ..Handlers::default() };
    route.services = vec![service(vec![PortRoute { http: options, ..port(5432, handlers) }])];
    route
}

/// The id that an answer has in its header and in its text.
fn id_of(answer: &Answer) -> String {
    let id = answer.header("fly-request-id").unwrap_or_else(|| panic!("no id: {answer:?}"));
    let told = answer.body.lines().last().and_then(|line| line.strip_prefix("request "));
    let told = told.unwrap_or_else(|| panic!("no id in the text: {answer:?}"));
    // Heads are read in lower case.
    assert_eq!(id, told.to_lowercase());
    told.to_owned()
}

/// What the app's log was told, without codes as it was the client's fault.
fn lines(world: &World) -> Vec<(Option<String>, String)> {
    let errors = std::mem::take(&mut *world.journal.errors.lock());
    assert!(errors.iter().all(|error| error.code.is_none() && &*error.app == "app"), "{errors:?}");
    errors.into_iter().map(|error| (error.request_id, error.text)).collect()
}

#[tokio::test]
async fn refusals_before_an_app_is_known_have_a_request_id_and_a_reason() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    for (request, status, reason) in [
        (TWO_LENGTHS, 400, "the request is malformed: content-length is invalid, repeated"),
        ("GET / HTTP/1.1\nHost: app.localhost\r\n\r\n", 400, "does not end in CR LF"),
        ("\nGET / HTTP/1.1\r\nHost: app.localhost\r\n\r\n", 400, "does not end in CR LF"),
        ("\r\n\nGET / HTTP/1.1\r\nHost: app.localhost\r\n\r\n", 400, "does not end in CR LF"),
        ("GET / HTTP/1.1\r\nHost: app.localhost\r\nA: b\r\n c\r\n\r\n", 400, "in another line"),
        (
            "POST / HTTP/1.1\r\nHost: app.localhost\r\nTransfer-Encoding: x\r\n\r\n",
            400,
            "transfer-encoding is not chunked",
        ),
        ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", 400, "the request names no host"),
        ("GET / HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n", 400, "host is invalid"),
        ("GET / HTTP/1.1\r\nHost: none.localhost\r\nConnection: close\r\n\r\n", 404, "PR02: there"),
    ] {
        let answer = send(world.http, request).await;
        assert_eq!(answer.status, status, "{request:?}: {answer:?}");
        assert!(answer.body.contains(reason), "{request:?}: {answer:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
        assert!(answer.header("server").is_some() && answer.header("date").is_some(), "{answer:?}");
        id_of(&answer);
    }
    assert_eq!(upstream.connections(), 0);
    // Nobody knows whose log it would be.
    assert_eq!(lines(&world), []);
}

#[tokio::test]
async fn refusals_of_an_app_that_is_known_are_in_its_log_with_the_id_that_the_client_has() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    let address = own(&world, http_route(&upstream, HttpOptions::default()));
    let answer = send(address, TWO_LENGTHS).await;
    let why = "it is malformed: content-length is invalid, repeated, or beside transfer-encoding";
    assert_eq!(lines(&world), [(Some(id_of(&answer)), why.to_owned())]);
    let connect = "CONNECT app:80 HTTP/1.1\r\nHost: app:80\r\n\r\n";
    let answer = send(address, connect).await;
    assert_eq!(answer.status, 405);
    assert_eq!(lines(&world), [(Some(id_of(&answer)), "CONNECT is not supported".to_owned())]);
    // hyper answers these, and tells afterwards.
    for (request, status) in [("GE(T / HTTP/1.1\r\n\r\n".to_owned(), 400), (long(), 431)] {
        assert_eq!(send(address, &request).await.status, status);
        eventually("a line", || !world.journal.errors.lock().is_empty()).await;
        assert!(matches!(&lines(&world)[..], [(None, _)]));
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn a_client_that_reads_when_it_has_sent_all_gets_the_answer() {
    let upstream = Upstream::serve(|mut stream, _| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig").await;
        // As servers do it.
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let of_machine = "POST / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 16777216\r\n\r\n";
    let elsewhere = of_machine.replace("app.", "none.");
    for (head, status) in
        [(of_machine, 413), (&elsewhere, 404), (TWO_LENGTHS, 400), ("GE(T / HTTP/1.1\r\n\r\n", 400)]
    {
        let mut stream = TcpStream::connect(world.http).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let body = vec![b'a'; 16 << 20];
        let written = in_time("all to be taken", stream.write_all(&body)).await;
        written.unwrap_or_else(|error| panic!("{head:?}: {error}"));
        let mut answer = String::new();
        let read = in_time("the answer", stream.read_to_string(&mut answer)).await;
        read.unwrap_or_else(|error| panic!("{head:?}: {error}"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head:?}: {answer:?}");
    }
}

#[tokio::test]
async fn a_client_that_sends_on_for_ever_is_cut_after_its_answer() {
    let world = World::new();
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    stream.write_all(TWO_LENGTHS.as_bytes()).await.unwrap();
    in_time("the cut", async { while stream.write_all(&[b'a'; 1024]).await.is_ok() {} }).await;
}

/// More than may be in a head.
fn long() -> String {
    format!("GET / HTTP/1.1\r\nHost: app\r\nA: {}\r\n\r\n", "a".repeat(70 << 10))
}

#[tokio::test]
async fn a_refusal_comes_after_the_answers_to_what_came_before() {
    let (upstream, open) = gated().await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    let good = "GET / HTTP/1.1\r\nHost: app.localhost\r\n\r\n";
    stream.write_all(format!("{good}{TWO_LENGTHS}").as_bytes()).await.unwrap();
    eventually("the first request", || world.open_streams("a1") == 1).await;
    // What else the client says then is not read.
    stream.write_all(good.as_bytes()).await.unwrap();
    open.send_replace(true);
    let mut text = String::new();
    let _ = in_time("the end", stream.read_to_string(&mut text)).await;
    let (first, second) = text.split_once("done").unwrap_or_else(|| panic!("{text}"));
    assert!(first.starts_with("HTTP/1.1 200"), "{text}");
    assert!(second.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{text}");
    assert!(second.contains("\r\n\r\nthe request is malformed"), "{text}");
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn a_port_without_fields_of_the_proxy_has_none_in_refusals_either() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    let options = HttpOptions { pristine: true, ..HttpOptions::default() };
    let address = own(&world, http_route(&upstream, options));
    let answer = send(address, TWO_LENGTHS).await;
    assert_eq!(answer.status, 400);
    assert_eq!((answer.header("fly-request-id"), answer.header("server")), (None, None));
    assert!(answer.body.contains("\nrequest "), "{answer:?}");
}

#[tokio::test]
async fn machines_are_told_of_the_client_before_the_request_where_a_port_has_both_handlers() {
    let upstream = Upstream::serve(|mut stream, _| async move {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(stream.read_u8().await.unwrap());
        }
        while read_request(&mut stream).await.is_some() {
            let _ = respond(&mut stream, &String::from_utf8_lossy(&line)).await;
        }
    })
    .await;
    let world = World::new();
    let mut route = started("a1", upstream.address);
    let protocol = Some(ProxyProtocol::V1);
    let handlers = Handlers { http: true, proxy_protocol: protocol, ..Handlers::default() };
    route.services = vec![service(vec![port(80, handlers)])];
    world.apply(vec![route]);
    let answer = world.get("/").await;
    assert!(answer.status == 200 && answer.body.starts_with("PROXY TCP4 127.0.0.1"), "{answer:?}");
}
