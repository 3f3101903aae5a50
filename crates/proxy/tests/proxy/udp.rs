//! UDP services on addresses of an app's own.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use caddis_proxy::*;
use tokio::{
    io::AsyncReadExt,
    net::{TcpStream, UdpSocket},
};

use crate::support::*;

const EXTERNAL: u16 = 5353;
/// The longest payload that a datagram of IPv4 can have.
const LONGEST: usize = 65_507;
const IDLE: Duration = Duration::from_secs(60);

/// A program in a machine that sends each datagram back behind its name.
struct Echo {
    address: IpAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Echo {
    async fn named(name: &'static str) -> Self {
        let socket = UdpSocket::bind((address(), EXTERNAL)).await.unwrap();
        let address = socket.local_addr().unwrap().ip();
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 1 << 16];
            loop {
                let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
                let mut answer = name.as_bytes().to_vec();
                answer.extend_from_slice(&buffer[..length]);
                answer.truncate(LONGEST);
                socket.send_to(&answer, client).await.unwrap();
            }
        });
        Self { address, task }
    }

    fn route(&self, name: &str) -> MachineRoute {
        let mut route = started(name, self.address);
        let ports = vec![port(EXTERNAL, Handlers::default())];
        route.services = vec![ServiceRoute {
            protocol: Protocol::Udp,
            internal_port: EXTERNAL,
            autostart: false,
            ..service(ports)
        }];
        route
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The app with these machines at an address of its own.
fn apply(world: &World, own: SocketAddr, machines: Vec<MachineRoute>) {
    let routes = AppRoutes { addresses: vec![own.ip()], machines, ..AppRoutes::default() };
    world.proxy.apply("app", Some(routes));
}

fn own() -> SocketAddr {
    SocketAddr::new(address(), EXTERNAL)
}

/// A client that takes datagrams of this address only.
async fn client(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    socket
}

async fn ask(client: &UdpSocket, text: &str) -> String {
    client.send(text.as_bytes()).await.unwrap();
    receive(client).await
}

async fn receive(client: &UdpSocket) -> String {
    let mut buffer = vec![0; 1 << 16];
    let length = in_time("a reply", client.recv(&mut buffer)).await.unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

fn flows(world: &World) -> usize {
    world.proxy.counters("app").unwrap().udp_flows
}

fn dropped(world: &World) -> u64 {
    world.proxy.counters("app").unwrap().dropped_datagrams
}

async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn datagrams_reach_a_machine_and_replies_come_from_the_apps_address() {
    let echo = Echo::named("one ").await;
    let (world, own) = (World::new(), own());
    apply(&world, own, vec![echo.route("a1")]);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut buffer = [0; 100];
    for text in ["hello", "again"] {
        socket.send_to(text.as_bytes(), own).await.unwrap();
        let (length, from) = in_time("a reply", socket.recv_from(&mut buffer)).await.unwrap();
        assert_eq!(from, own);
        assert_eq!(buffer[..length], *format!("one {text}").as_bytes());
    }
    let counters = world.proxy.counters("app").unwrap();
    let machine = &counters.machines[0];
    assert_eq!((machine.bytes_in, machine.bytes_out, machine.connections), (10, 18, 1));
    assert_eq!((counters.udp_flows, counters.dropped_datagrams), (1, 0));
    assert_eq!(world.open_streams("a1"), 1);
}

#[tokio::test]
async fn datagrams_may_be_empty_and_as_long_as_can_be() {
    let echo = Echo::named("").await;
    let (world, own) = (World::new(), own());
    apply(&world, own, vec![echo.route("a1")]);
    let client = client(own).await;
    assert_eq!(ask(&client, "").await, "");
    let longest = "x".repeat(LONGEST);
    assert_eq!(ask(&client, &longest).await, longest);
}

#[tokio::test]
async fn datagrams_sent_at_once_by_a_new_client_all_arrive() {
    let echo = Echo::named("").await;
    let (world, own) = (World::new(), own());
    apply(&world, own, vec![echo.route("a1")]);
    let client = client(own).await;
    let texts: Vec<_> = (0..20).map(|number| number.to_string()).collect();
    for text in &texts {
        client.send(text.as_bytes()).await.unwrap();
    }
    for text in &texts {
        assert_eq!(receive(&client).await, *text);
    }
}

#[tokio::test]
async fn clients_are_spread_over_machines_and_each_stays_at_its_own() {
    let (one, two) = (Echo::named("one").await, Echo::named("two").await);
    let (world, own) = (World::new(), own());
    apply(&world, own, vec![one.route("a1"), two.route("a2")]);
    let (first, second) = (client(own).await, client(own).await);
    let (a, b) = (ask(&first, "").await, ask(&second, "").await);
    assert_ne!(a, b);
    for _ in 0..5 {
        assert_eq!((ask(&first, "").await, ask(&second, "").await), (a.clone(), b.clone()));
    }
    assert_eq!((world.open_streams("a1"), world.open_streams("a2")), (1, 1));
}

#[tokio::test]
async fn clients_of_a_machine_that_stops_go_on_at_another_one() {
    let (one, two) = (Echo::named("one").await, Echo::named("two").await);
    let (world, own) = (World::new(), own());
    apply(&world, own, vec![one.route("a1")]);
    let client = client(own).await;
    assert_eq!(ask(&client, "").await, "one");
    // A newer machine beside it, or its being cordoned, changes nothing for this client.
    let cordoned = MachineRoute { cordoned: true, ..one.route("a1") };
    apply(&world, own, vec![cordoned, two.route("a2")]);
    assert_eq!(ask(&client, "").await, "one");
    let stopped = MachineRoute { state: MachineState::Stopped, ..one.route("a1") };
    apply(&world, own, vec![stopped, two.route("a2")]);
    assert_eq!(ask(&client, "").await, "two");
    eventually("the flow's end", || world.open_streams("a1") == 0).await;
    assert_eq!(flows(&world), 1);
}

#[tokio::test]
async fn cordoned_and_unhealthy_machines_get_no_new_clients() {
    let (one, two, three) =
        (Echo::named("one").await, Echo::named("two").await, Echo::named("three").await);
    let (world, own) = (World::new(), own());
    let cordoned = MachineRoute { cordoned: true, ..one.route("a1") };
    let mut unhealthy = two.route("a2");
    unhealthy.services[0].healthy = false;
    apply(&world, own, vec![cordoned, unhealthy, three.route("a3")]);
    for _ in 0..4 {
        assert_eq!(ask(&client(own).await, "").await, "three");
    }
}

#[tokio::test]
async fn a_flow_ends_after_the_idle_time_and_not_before() {
    let echo = Echo::named("").await;
    let (world, own) = (World::new(), own());
    apply(&world, own, vec![echo.route("a1")]);
    let client = client(own).await;
    assert_eq!(ask(&client, "a").await, "a");
    tokio::time::pause();
    settle().await;
    tokio::time::advance(IDLE - Duration::from_secs(1)).await;
    settle().await;
    assert_eq!((flows(&world), world.open_streams("a1")), (1, 1));
    tokio::time::resume();
    assert_eq!(ask(&client, "b").await, "b");
    tokio::time::pause();
    settle().await;
    tokio::time::advance(IDLE - Duration::from_secs(1)).await;
    settle().await;
    assert_eq!(flows(&world), 1, "its last datagram counts");
    tokio::time::advance(Duration::from_secs(2)).await;
    tokio::time::resume();
    eventually("the flow's end", || world.open_streams("a1") == 0).await;
    assert_eq!(flows(&world), 0);
    assert_eq!(ask(&client, "c").await, "c");
}

#[tokio::test]
async fn without_a_machine_datagrams_are_dropped_and_told_of_once_in_ten_seconds() {
    let echo = Echo::named("").await;
    let (world, own) = (World::new(), own());
    let stopped = MachineRoute { state: MachineState::Stopped, ..echo.route("a1") };
    apply(&world, own, vec![stopped]);
    for _ in 0..3 {
        client(own).await.send(b"a").await.unwrap();
    }
    eventually("the datagrams", || dropped(&world) == 3).await;
    assert_eq!(world.journal.codes(), [ErrorCode::PR01]);
    assert_eq!((flows(&world), world.machines.wakes()), (0, vec![]));
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    client(own).await.send(b"a").await.unwrap();
    eventually("the datagram", || dropped(&world) == 4).await;
    assert_eq!(world.journal.codes(), [ErrorCode::PR01; 2]);
    apply(&world, own, vec![echo.route("a1")]);
    assert_eq!(ask(&client(own).await, "b").await, "b");
}

#[tokio::test]
async fn beyond_the_bound_new_clients_are_dropped_and_counted() {
    let echo = Echo::named("").await;
    let (world, own) = (World::with(|config| config.max_udp_flows = 1), own());
    apply(&world, own, vec![echo.route("a1")]);
    let (first, second) = (client(own).await, client(own).await);
    assert_eq!(ask(&first, "a").await, "a");
    second.send(b"b").await.unwrap();
    eventually("the datagram", || dropped(&world) == 1).await;
    assert_eq!(ask(&first, "c").await, "c");
    assert_eq!(flows(&world), 1);
}

#[tokio::test]
async fn the_hard_limit_of_a_service_holds_for_clients() {
    let echo = Echo::named("").await;
    let (world, own) = (World::new(), own());
    let mut route = echo.route("a1");
    route.services[0].concurrency.hard_limit = Some(1);
    apply(&world, own, vec![route]);
    assert_eq!(ask(&client(own).await, "a").await, "a");
    client(own).await.send(b"b").await.unwrap();
    eventually("the datagram", || dropped(&world) == 1).await;
    assert_eq!(world.journal.codes(), [ErrorCode::PR04]);
}

#[tokio::test]
async fn a_port_is_left_when_no_service_has_it_any_more() {
    let echo = Echo::named("").await;
    let (world, own) = (World::new(), own());
    apply(&world, own, vec![echo.route("a1")]);
    let listens = |status: &ListenerStatus| {
        status.protocol == Protocol::Udp && status.address == own && status.error.is_none()
    };
    assert!(world.proxy.listeners().iter().any(listens));
    let client = client(own).await;
    assert_eq!(ask(&client, "a").await, "a");
    assert!(std::net::UdpSocket::bind(own).is_err());
    apply(&world, own, vec![MachineRoute { services: vec![], ..echo.route("a1") }]);
    assert!(!world.proxy.listeners().iter().any(listens));
    eventually("the port", || std::net::UdpSocket::bind(own).is_ok()).await;
    eventually("the flow's end", || world.open_streams("a1") == 0).await;
    apply(&world, own, vec![echo.route("a1")]);
    assert_eq!(ask(&client, "b").await, "b");
    world.proxy.apply("app", None);
    eventually("the port", || std::net::UdpSocket::bind(own).is_ok()).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_and_tried_again() {
    let echo = Echo::named("").await;
    let (world, own) = (World::new(), own());
    let taken = std::net::UdpSocket::bind(own).unwrap();
    apply(&world, own, vec![echo.route("a1")]);
    let error = || world.proxy.listeners().pop().unwrap().error;
    assert!(error().is_some());
    drop(taken);
    eventually("the socket", || error().is_none()).await;
    assert_eq!(ask(&client(own).await, "a").await, "a");
}

#[tokio::test]
async fn one_port_may_carry_datagrams_and_streams() {
    let echo = Echo::named("").await;
    let listener = tokio::net::TcpListener::bind((echo.address, EXTERNAL)).await.unwrap();
    let (world, own) = (World::new(), own());
    let mut route = echo.route("a1");
    let stream = ServiceRoute { protocol: Protocol::Tcp, ..route.services[0].clone() };
    route.services.push(stream);
    // Each has a limit of its own.
    for service in &mut route.services {
        service.concurrency.hard_limit = Some(1);
    }
    apply(&world, own, vec![route]);
    assert_eq!(ask(&client(own).await, "a").await, "a");
    let mut stream = TcpStream::connect(own).await.unwrap();
    let (accepted, _) = in_time("the connection", listener.accept()).await.unwrap();
    assert_eq!(world.open_streams("a1"), 2);
    drop(accepted);
    let mut end = Vec::new();
    in_time("the end", stream.read_to_end(&mut end)).await.unwrap();
}

#[tokio::test]
async fn flows_end_before_their_machine_is_suspended() {
    let (one, two) = (Echo::named("one").await, Echo::named("two").await);
    let (world, own) = (World::with(|config| config.udp_idle = IDLE * 100), own());
    let drained = |mut route: MachineRoute| {
        route.services[0].autostop = Autostop::Suspend;
        route.services[0].max_drain = Some(Duration::from_millis(10));
        route
    };
    apply(&world, own, vec![drained(one.route("a1")), drained(two.route("a2"))]);
    let clients = [client(own).await, client(own).await];
    for client in &clients {
        ask(client, "").await;
    }
    assert_eq!((world.open_streams("a1"), world.open_streams("a2")), (1, 1));
    tokio::time::pause();
    settle().await;
    tokio::time::advance(Config::default().autostop_interval).await;
    settle().await;
    tokio::time::resume();
    world.machines.until_asleep(1).await;
    let (slept, how) = world.machines.sleeps().pop().unwrap();
    assert_eq!((world.open_streams(&slept), how), (0, Sleep::Suspend));
    let left = if slept == "a1" { "two" } else { "one" };
    for client in &clients {
        assert_eq!(ask(client, "").await, left);
    }
    assert_eq!(flows(&world), 2);
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_flows() {
    let echo = Echo::named("").await;
    let (world, own) = (World::new(), own());
    apply(&world, own, vec![echo.route("a1")]);
    assert_eq!(ask(&client(own).await, "a").await, "a");
    in_time("the end", world.proxy.shutdown(DEADLINE * 10)).await;
    assert_eq!(world.open_streams("a1"), 0);
}
