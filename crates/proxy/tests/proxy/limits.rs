//! The choice of machines and their limits.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use caddis_proxy::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};

use crate::support::*;

/// Answers once `gate` is open.
async fn slow(name: &'static str, gate: &watch::Receiver<bool>) -> Upstream {
    slow_on(SocketAddr::new(address(), PORT), name, gate).await
}

async fn slow_on(place: SocketAddr, name: &'static str, gate: &watch::Receiver<bool>) -> Upstream {
    let gate = gate.clone();
    Upstream::serve_on(place, move |mut stream, _| {
        let mut gate = gate.clone();
        async move {
            while read_request(&mut stream).await.is_some() {
                gate.wait_for(|is_open| *is_open).await.unwrap();
                if respond(&mut stream, name).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

fn limited(name: &str, upstream: &Upstream, soft: u32, hard: Option<u32>) -> MachineRoute {
    let mut route = started(name, upstream.address);
    let concurrency = &mut route.services[0].concurrency;
    concurrency.soft_limit = soft;
    concurrency.hard_limit = hard;
    route
}

fn spawn_get(world: &Arc<World>) -> tokio::task::JoinHandle<Answer> {
    let world = world.clone();
    tokio::spawn(async move { world.get("/").await })
}

#[tokio::test]
async fn at_the_hard_limit_requests_queue_until_a_place_is_free() {
    let (open, gate) = watch::channel(false);
    let upstream = slow("one", &gate).await;
    let world = Arc::new(World::new());
    world.apply(vec![limited("a1", &upstream, 1, Some(1))]);
    let requests: Vec<_> = (0..5).map(|_| spawn_get(&world)).collect();
    eventually("four wait", || world.waiting() == 4).await;
    assert_eq!(world.open_streams("a1"), 1);
    // It accepts the connection when its turn comes.
    eventually("the one", || upstream.connections() == 1).await;
    open.send_replace(true);
    for request in requests {
        assert_eq!(in_time("an answer", request).await.unwrap().status, 200);
    }
}

/// Two machines with one place each, which are taken, and what frees those.
struct Two {
    world: Arc<World>,
    _upstreams: [Upstream; 2],
    opens: [watch::Sender<bool>; 2],
    _requests: [tokio::task::JoinHandle<Answer>; 2],
}

impl Two {
    async fn full(second_port: u16) -> Self {
        let ((first, first_gate), (second, second_gate)) =
            (watch::channel(false), watch::channel(false));
        let one = slow("one", &first_gate).await;
        let place = SocketAddr::new(address(), second_port);
        let two = slow_on(place, "two", &second_gate).await;
        let world = Arc::new(World::new());
        let mut other = limited("a2", &two, 1, Some(1));
        other.services[0].internal_port = second_port;
        world.apply(vec![limited("a1", &one, 1, Some(1)), other]);
        let requests = [spawn_get(&world), spawn_get(&world)];
        eventually("both", || world.open_streams("a1") + world.open_streams("a2") == 2).await;
        Self { world, _upstreams: [one, two], opens: [first, second], _requests: requests }
    }
}

#[tokio::test]
async fn a_place_at_any_machine_of_the_port_is_told_to_who_waits() {
    let two = Two::full(PORT + 1).await;
    let request = spawn_get(&two.world);
    eventually("it waits", || two.world.waiting() == 1).await;
    // The machine whose service has another port inside.
    two.opens[1].send_replace(true);
    let answer = in_time("the answer", request).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "two"));
}

#[tokio::test]
async fn a_place_of_services_with_one_port_inside_is_told_at_the_ports_of_both() {
    let (open, gate) = watch::channel(false);
    let upstream = slow("one", &gate).await;
    let world = Arc::new(World::new());
    let mut route = limited("a1", &upstream, 1, Some(1));
    let mut other = route.services[0].clone();
    other.ports = vec![port(5432, Handlers::default())];
    route.services.push(other);
    world.apply(vec![route]);
    let requests = [spawn_get(&world), spawn_get(&world)];
    eventually("one waits", || world.waiting() == 1).await;
    open.send_replace(true);
    for request in requests {
        assert_eq!(in_time("an answer", request).await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn a_place_is_not_lost_on_one_who_asked_for_another_machine() {
    let two = Two::full(PORT).await;
    let world = two.world.clone();
    let forced = tokio::spawn(async move {
        let request = "GET / HTTP/1.1\r\nHost: app.localhost\r\nFly-Force-Instance-Id: a1\r\n\
            Connection: close\r\n\r\n";
        send(world.http, request).await
    });
    eventually("it waits", || two.world.waiting() == 1).await;
    let request = spawn_get(&two.world);
    eventually("both wait", || two.world.waiting() == 2).await;
    two.opens[1].send_replace(true);
    assert_eq!(in_time("the answer", request).await.unwrap().body, "two");
    assert!(!forced.is_finished());
    two.opens[0].send_replace(true);
    assert_eq!(in_time("the answer", forced).await.unwrap().body, "one");
}

#[tokio::test]
async fn a_place_that_does_not_become_free_in_time_is_a_503() {
    let (_open, gate) = watch::channel(false);
    let upstream = slow("one", &gate).await;
    let world = Arc::new(World::with(|config| config.queue_timeout = Duration::from_millis(20)));
    world.apply(vec![limited("a1", &upstream, 1, Some(1))]);
    let _first = spawn_get(&world);
    eventually("the first", || world.open_streams("a1") == 1).await;
    let answer = world.get("/").await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.starts_with("PR04") && answer.header("retry-after").is_some());
}

#[tokio::test]
async fn from_the_soft_limit_on_another_machine_is_preferred() {
    let (_open, gate) = watch::channel(false);
    let (one, two) = (slow("one", &gate).await, slow("two", &gate).await);
    let world = Arc::new(World::new());
    world.apply(vec![limited("a1", &one, 2, None), limited("a2", &two, 2, None)]);
    let _requests: Vec<_> = (0..4).map(|_| spawn_get(&world)).collect();
    eventually("all", || world.open_streams("a1") + world.open_streams("a2") == 4).await;
    assert_eq!((world.open_streams("a1"), world.open_streams("a2")), (2, 2));
}

#[tokio::test]
async fn another_region_is_used_only_at_the_hard_limit() {
    let (_open, gate) = watch::channel(false);
    let (near, far) = (slow("near", &gate).await, slow("far", &gate).await);
    let world = Arc::new(World::new());
    let mut other = limited("a2", &far, 10, None);
    other.region = "far".to_owned();
    world.apply(vec![limited("a1", &near, 1, Some(3)), other]);
    let _requests: Vec<_> = (0..4).map(|_| spawn_get(&world)).collect();
    eventually("all", || world.open_streams("a1") + world.open_streams("a2") == 4).await;
    assert_eq!((world.open_streams("a1"), world.open_streams("a2")), (3, 1));
}

#[tokio::test]
async fn cordoned_and_unhealthy_machines_get_no_traffic() {
    let (one, two) = (Upstream::http("one").await, Upstream::http("two").await);
    let three = Upstream::http("three").await;
    let world = World::new();
    let mut cordoned = started("a1", one.address);
    cordoned.cordoned = true;
    let mut sick = started("a2", two.address);
    sick.services[0].healthy = false;
    world.apply(vec![cordoned, sick, started("a3", three.address)]);
    for _ in 0..8 {
        assert!(world.get("/").await.body.starts_with("three"));
    }
}

#[tokio::test]
async fn why_no_machine_can_be_had_is_told() {
    let world = World::new();
    let mut cordoned = started("a1", address());
    cordoned.cordoned = true;
    let mut sick = started("a2", address());
    sick.services[0].healthy = false;
    let mut off = stopped("a3", address());
    off.services[0].autostart = false;
    for (machines, expected) in [
        (vec![cordoned.clone()], "all machines that take traffic at this port are cordoned"),
        (vec![cordoned, sick], "no healthy machine takes traffic at this port"),
        (
            vec![off],
            "all machines that take traffic at this port are stopped, and not to be started by \
             traffic",
        ),
    ] {
        world.apply(machines);
        assert!(world.get("/").await.body.starts_with("PR01"));
        assert_eq!(world.journal.errors.lock().last().unwrap().text, expected);
    }
}

#[tokio::test]
async fn a_client_may_prefer_or_force_a_machine() {
    let (one, two) = (Upstream::http("one").await, Upstream::http("two").await);
    let world = World::new();
    world.apply(vec![started("a1", one.address), started("a2", two.address)]);
    let asked = async |name: &str, machine: &str| {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: app.localhost\r\nFly-{name}-Instance-Id: {machine}\r\n\
            Connection: close\r\n\r\n"
        );
        send(world.http, &request).await
    };
    for _ in 0..4 {
        assert!(asked("Prefer", "a1").await.body.starts_with("one"));
        assert!(asked("Force", "a2").await.body.starts_with("two"));
    }
    let other = asked("Prefer", "gone").await;
    assert_eq!(other.status, 200);
    assert!(other.body.contains("fly-preferred-instance-unavailable: gone"));
    let forced = asked("Force", "gone").await;
    assert_eq!(forced.status, 404);
    assert!(forced.body.starts_with("PR02"));
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once() {
    let upstream = Upstream::http("one").await;
    let world = World::with(|config| config.max_connections = 2);
    world.apply(vec![started("a1", upstream.address)]);
    let kept = [connect(world.http).await, connect(world.https).await];
    eventually("both are accepted", || world.proxy.connections().open == 2).await;
    let mut third = connect(world.http).await;
    assert!(in_time("the end", third.read_u8()).await.is_err());
    assert_eq!(world.proxy.connections(), ConnectionCounters { open: 2, refused: 1 });
    drop(kept);
    eventually("their places are free", || world.proxy.connections().open == 0).await;
    assert_eq!(world.get("/").await.status, 200);
}

#[tokio::test]
async fn connections_to_an_apps_own_addresses_are_limited_by_app() {
    let upstream = Upstream::serve(|mut stream, _| async move {
        let (mut reader, mut writer) = stream.split();
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await;
    let world = World::with(|config| config.max_connections_per_app = 1);
    let mut route = started("a1", upstream.address);
    route.services = vec![service(vec![port(5432, Handlers::default())])];
    let address = crate::tcp::own(&world, route);
    let mut first = connect(address).await;
    first.write_u8(1).await.unwrap();
    assert_eq!(in_time("the echo", first.read_u8()).await.unwrap(), 1);
    let mut second = connect(address).await;
    assert!(in_time("the end", second.read_u8()).await.is_err());
    let connections = world.proxy.counters("app").unwrap().connections;
    assert_eq!(connections, ConnectionCounters { open: 1, refused: 1 });
    // The shared listeners are for all apps.
    assert_eq!(world.get("/").await.status, 503);
    drop(first);
    eventually("its place is free", || world.proxy.counters("app").unwrap().connections.open == 0)
        .await;
    let mut third = connect(address).await;
    third.write_u8(3).await.unwrap();
    assert_eq!(in_time("the echo", third.read_u8()).await.unwrap(), 3);
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}
