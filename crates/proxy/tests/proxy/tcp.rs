//! Connections whose bytes are passed on as they are.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use caddis_proxy::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::*;

const EXTERNAL: u16 = 5432;

fn tcp_route(upstream: &Upstream, handlers: Handlers) -> MachineRoute {
    let mut route = started("a1", upstream.address);
    route.services = vec![service(vec![port(EXTERNAL, handlers)])];
    route
}

/// An app with an address of its own.
pub fn own(world: &World, route: MachineRoute) -> SocketAddr {
    let own = address();
    let routes = AppRoutes { addresses: vec![own], machines: vec![route], ..AppRoutes::default() };
    world.proxy.apply("app", Some(routes));
    SocketAddr::new(own, EXTERNAL)
}

/// Tells all that it got once the client has ended, and ends.
async fn telling() -> Upstream {
    telling_at(address()).await
}

async fn telling_at(address: IpAddr) -> Upstream {
    Upstream::serve_at(address, |mut stream, _| async move {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        stream.write_all(b"got ").await.unwrap();
        stream.write_all(&got).await.unwrap();
    })
    .await
}

async fn talk(address: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    in_time("the answer", stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn half_close_is_carried_from_client_to_machine() {
    let upstream = telling().await;
    let world = World::new();
    let address = own(&world, tcp_route(&upstream, Handlers::default()));
    assert_eq!(talk(address, "hello").await, "got hello");
    eventually("the end", || world.open_streams("a1") == 0).await;
    let counters = world.proxy.counters("app").unwrap();
    assert_eq!((counters.machines[0].bytes_in, counters.machines[0].bytes_out), (5, 9));
}

#[tokio::test]
async fn a_client_that_has_said_all_it_has_to_say_waits_for_its_machine() {
    let world = World::new();
    let address = address();
    world.machines.on_wake("a1", || async { Ok(()) });
    let mut route = stopped("a1", address);
    route.services = vec![service(vec![port(EXTERNAL, Handlers::default())])];
    let mut client = TcpStream::connect(own(&world, route)).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    eventually("the start", || world.machines.wakes().len() == 1).await;
    // Whether a client has left is asked now and then.
    tokio::time::pause();
    for _ in 0..100 {
        tokio::time::advance(Duration::from_millis(5)).await;
    }
    tokio::time::resume();
    let _upstream = telling_at(address).await;
    let mut answer = String::new();
    in_time("the answer", client.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "got hello");
}

#[tokio::test]
async fn half_close_is_carried_from_machine_to_client() {
    let upstream = Upstream::serve(|mut stream, _| async move {
        stream.write_all(b"greeting").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "late");
    })
    .await;
    let world = World::new();
    let address = own(&world, tcp_route(&upstream, Handlers::default()));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut greeting = String::new();
    in_time("the greeting", stream.read_to_string(&mut greeting)).await.unwrap();
    assert_eq!((greeting.as_str(), world.open_streams("a1")), ("greeting", 1));
    stream.write_all(b"late").await.unwrap();
    stream.shutdown().await.unwrap();
    eventually("the end", || world.open_streams("a1") == 0).await;
    assert_eq!(world.proxy.counters("app").unwrap().machines[0].bytes_in, 4);
}

#[tokio::test]
async fn each_port_of_a_range_is_the_services() {
    let upstream = telling().await;
    let world = World::new();
    let mut route = tcp_route(&upstream, Handlers::default());
    route.services[0].ports[0].end = EXTERNAL + 2;
    let address = own(&world, route);
    assert_eq!(world.proxy.listeners().len(), 2 + 3);
    for port in EXTERNAL..=EXTERNAL + 2 {
        let text = port.to_string();
        assert_eq!(talk((address.ip(), port).into(), &text).await, format!("got {text}"));
    }
}

#[tokio::test]
async fn a_proxy_header_goes_before_the_bytes() {
    let upstream = telling().await;
    let world = World::new();
    let handlers = Handlers { proxy_protocol: Some(ProxyProtocol::V1), ..Handlers::default() };
    let address = own(&world, tcp_route(&upstream, handlers));
    let answer = talk(address, "hello").await;
    assert!(answer.starts_with("got PROXY TCP4 127.0.0.1 "), "{answer}");
    assert!(answer.ends_with(&format!(" {EXTERNAL}\r\nhello")), "{answer}");
}

#[tokio::test]
async fn a_connection_to_a_stopped_machine_starts_it() {
    let world = World::new();
    let inside = address();
    let (send, mut upstreams) = tokio::sync::mpsc::unbounded_channel();
    world.machines.on_wake("a1", move || {
        let send = send.clone();
        async move {
            let upstream = Upstream::serve_at(inside, |mut stream, _| async move {
                stream.write_all(b"banner").await.unwrap();
            })
            .await;
            send.send(upstream).unwrap();
            Ok(())
        }
    });
    let mut route = stopped("a1", inside);
    route.services = vec![service(vec![port(EXTERNAL, Handlers::default())])];
    let address = own(&world, route);
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut answer = String::new();
    in_time("the banner", stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "banner");
    // The connection that found the port to be open was the client's.
    assert_eq!(upstreams.recv().await.unwrap().connections(), 1);
}

#[tokio::test]
async fn an_address_of_the_app_serves_its_ports_while_it_has_them() {
    let upstream = telling().await;
    let world = World::new();
    let address = own(&world, tcp_route(&upstream, Handlers::default()));
    let status = world.proxy.listeners().pop().unwrap();
    let expected =
        ListenerStatus { app: Some("app".into()), protocol: Protocol::Tcp, address, error: None };
    assert_eq!(status, expected);
    world.proxy.apply("app", None);
    assert_eq!(world.proxy.listeners().len(), 2);
    let mut connections = 0;
    in_time("the listener's end", async {
        while TcpStream::connect(address).await.is_ok() {
            connections += 1;
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(world.proxy.counters("app").is_none(), "after {connections} connections");
}

#[tokio::test]
async fn an_address_that_cannot_be_listened_to_is_told_and_tried_again() {
    let upstream = telling().await;
    let world = World::new();
    let taken = tokio::net::TcpListener::bind((address(), EXTERNAL)).await.unwrap();
    let address = taken.local_addr().unwrap();
    let routes = AppRoutes {
        addresses: vec![address.ip()],
        machines: vec![tcp_route(&upstream, Handlers::default())],
        ..AppRoutes::default()
    };
    world.proxy.apply("app", Some(routes));
    let error = || world.proxy.listeners().pop().unwrap().error;
    assert!(error().is_some());
    drop(taken);
    eventually("the listener", || error().is_none()).await;
    assert_eq!(talk(address, "hello").await, "got hello");
}
