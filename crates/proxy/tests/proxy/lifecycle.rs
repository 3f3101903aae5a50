//! Begin and end of a proxy, and changes of routes.

use std::{sync::Arc, time::Duration};

use caddis_proxy::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::*;

#[tokio::test]
async fn a_shared_port_that_something_else_has_is_served_once_it_is_free() {
    let upstream = Upstream::http("one").await;
    let other = std::net::TcpListener::bind((address(), 0)).unwrap();
    let taken = other.local_addr().unwrap();
    let config = Config { http: Some(taken), https: None, ..Config::default() };
    let start = |config| {
        Proxy::start(config, Arc::new(FakeMachines::default()), Arc::new(FakeJournal::default()))
    };
    assert!(start(config.clone()).is_err(), "it was asked for by name");
    let proxy = start(Config { may_be_taken: vec![taken], ..config }).unwrap();
    assert_eq!(proxy.http_address(), Some(taken));
    assert!(proxy.listeners()[0].error.is_some());
    let machines = vec![started("a1", upstream.address)];
    proxy.apply("app", Some(AppRoutes { machines, ..AppRoutes::default() }));
    drop(other);
    eventually("the listener", || proxy.listeners()[0].error.is_none()).await;
    let mut client = TcpStream::connect(taken).await.unwrap();
    client.write_all(get("/").as_bytes()).await.unwrap();
    assert!(read_answer(&mut client).await.body.starts_with("one got:"));
}

#[tokio::test]
async fn graceful_shutdown_lets_requests_in_progress_end() {
    let (upstream, open) = gated().await;
    let world = Arc::new(World::new());
    world.apply(vec![started("a1", upstream.address)]);
    let mut kept = TcpStream::connect(world.http).await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: app.localhost\r\n\r\n";
    kept.write_all(request.as_bytes()).await.unwrap();
    eventually("the request", || world.open_streams("a1") == 1).await;
    let shutdown = tokio::spawn({
        let world = world.clone();
        async move { world.proxy.shutdown(DEADLINE).await }
    });
    in_time("no new connections", async {
        while TcpStream::connect(world.http).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!shutdown.is_finished());
    open.send_replace(true);
    let answer = read_answer(&mut kept).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "done"));
    assert_eq!(answer.header("connection"), Some("close"));
    in_time("the end", shutdown).await.unwrap();
}

#[tokio::test]
async fn a_shutdown_cuts_what_is_left_at_its_deadline() {
    let (upstream, _open) = gated().await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let mut client = TcpStream::connect(world.http).await.unwrap();
    client.write_all(get("/").as_bytes()).await.unwrap();
    eventually("the request", || world.open_streams("a1") == 1).await;
    world.proxy.shutdown(Duration::from_millis(10)).await;
    assert_eq!(read_answer(&mut client).await.status, 0);
}

#[tokio::test]
async fn clients_of_http_2_are_told_of_a_shutdown() {
    let (upstream, open) = gated().await;
    let world = Arc::new(World::new());
    world.apply(vec![started("a1", upstream.address)]);
    let stream = TcpStream::connect(world.http).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::get("http://app.localhost/").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    eventually("the request", || world.open_streams("a1") == 1).await;
    let shutdown = tokio::spawn({
        let world = world.clone();
        async move { world.proxy.shutdown(DEADLINE).await }
    });
    open.send_replace(true);
    let response = in_time("the answer", response).await.unwrap();
    assert_eq!(response.status(), 200);
    drop(response);
    drop(client);
    in_time("the connection's end", connection).await.unwrap().unwrap();
    in_time("the end", shutdown).await.unwrap();
}

#[tokio::test]
async fn routes_act_at_once_and_an_app_can_be_forgotten() {
    let (one, two) = (Upstream::http("one").await, Upstream::http("two").await);
    let world = World::new();
    assert_eq!(world.get("/").await.status, 404);
    world.apply(vec![started("a1", one.address)]);
    assert!(world.get("/").await.body.starts_with("one"));
    world.apply(vec![started("a2", two.address)]);
    assert!(world.get("/").await.body.starts_with("two"));
    world.apply(vec![]);
    assert_eq!(world.get("/").await.status, 503);
    world.proxy.apply("app", None);
    assert_eq!(world.get("/").await.status, 404);
    assert!(world.proxy.table().is_empty());
}

#[tokio::test]
async fn machines_share_a_port_and_each_app_has_its_own() {
    let (one, two) = (Upstream::http("one").await, Upstream::http("two").await);
    let world = World::new();
    let routes = |name, upstream: &Upstream| AppRoutes {
        machines: vec![started(name, upstream.address)],
        ..AppRoutes::default()
    };
    world.proxy.apply("app", Some(routes("a1", &one)));
    world.proxy.apply("other", Some(routes("b1", &two)));
    let other = get("/").replace("app.localhost", "OTHER.localhost:8080");
    for _ in 0..4 {
        assert!(world.get("/").await.body.starts_with("one"));
        assert!(send(world.http, &other).await.body.starts_with("two"));
    }
    assert_eq!(world.proxy.table().len(), 2);
}

#[tokio::test]
async fn a_shared_address_that_is_taken_is_a_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = Config { http: Some(address), https: None, ..Config::default() };
    let machines = Arc::new(FakeMachines::default());
    let error = Proxy::start(config, machines, Arc::new(FakeJournal::default())).err().unwrap();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn a_client_that_says_nothing_is_not_kept() {
    let upstream = Upstream::http("one").await;
    let world = World::with(|config| config.headers_read_timeout = Duration::from_millis(50));
    world.apply(vec![started("a1", upstream.address)]);
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let no_settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    for said in [Vec::new(), b"GE".to_vec(), [preface.as_bytes(), &no_settings[..]].concat()] {
        let mut client = TcpStream::connect(world.http).await.unwrap();
        client.write_all(&said).await.unwrap();
        let mut got = Vec::new();
        let end = in_time("the end", client.read_to_end(&mut got)).await;
        assert!(end.is_ok() || !said.is_empty(), "{end:?}");
    }
}

#[tokio::test]
async fn a_client_that_breaks_its_connection_leaves_no_request_behind() {
    let (upstream, _never) = gated().await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let mut client = TcpStream::connect(world.http).await.unwrap();
    client.write_all(get("/").as_bytes()).await.unwrap();
    eventually("the stream", || world.open_streams("a1") == 1).await;
    client.set_zero_linger().unwrap();
    drop(client);
    eventually("its end", || world.open_streams("a1") == 0).await;
}
