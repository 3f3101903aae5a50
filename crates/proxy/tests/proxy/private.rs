//! Addresses within private networks.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use caddis_proxy::*;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use crate::support::*;

/// Loopback stands for the private networks: it is where machines connect from, too.
const PRIVATE: Ipv6Addr = Ipv6Addr::LOCALHOST;

#[derive(Debug, Default)]
struct Networks {
    opened: AtomicU32,
    client: Mutex<Option<PrivateClient>>,
    fails: Mutex<bool>,
}

impl PrivateNetworks for Networks {
    fn open(
        &self,
        open: Box<dyn FnOnce() -> io::Result<std::net::TcpListener> + Send>,
    ) -> io::Result<std::net::TcpListener> {
        if *self.fails.lock() {
            return Err(io::Error::other("not today"));
        }
        self.opened.fetch_add(1, Ordering::SeqCst);
        open()
    }

    fn machine_at(&self, address: Ipv6Addr) -> Option<PrivateClient> {
        assert_eq!(address, PRIVATE);
        self.client.lock().clone()
    }
}

fn world() -> (World, Arc<Networks>) {
    let networks = Arc::new(Networks::default());
    let given = networks.clone();
    (World::with(|config| config.private_networks = Some(given)), networks)
}

/// A port of the private address that nothing has.
fn free_port() -> u16 {
    let [port] = free_ports();
    port
}

/// Different ones: all are taken before any is released.
fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    let all = [(); COUNT].map(|()| std::net::TcpListener::bind((PRIVATE, 0)).unwrap());
    all.each_ref().map(|one| one.local_addr().unwrap().port())
}

/// Routes of the app with nothing but its private address.
fn routes(mut machine: MachineRoute, ports: Vec<PortRoute>) -> Option<AppRoutes> {
    machine.services = vec![service(ports)];
    let private_addresses = vec![PRIVATE];
    Some(AppRoutes { private_addresses, machines: vec![machine], ..AppRoutes::default() })
}

fn http() -> Handlers {
    Handlers { http: true, ..Handlers::default() }
}

fn listened(world: &World) -> Vec<u16> {
    let listeners = world.proxy.listeners().into_iter().filter(|one| one.app.is_some());
    listeners.map(|one| one.address.port()).collect()
}

#[tokio::test]
async fn a_request_to_a_private_address_wakes_the_machine_and_says_which_machine_asks() {
    let upstream = Upstream::http("one").await;
    let (world, networks) = world();
    let world = Arc::new(world);
    let number = free_port();
    let ports = move || vec![port(number, http())];
    let asleep = stopped("a1", upstream.address);
    let awake = started("a1", upstream.address);
    world.proxy.apply("app", routes(asleep, ports()));
    let waking = Arc::downgrade(&world);
    world.machines.on_wake("a1", move || {
        let (waking, routes) = (waking.upgrade(), routes(awake.clone(), ports()));
        async move {
            if let Some(world) = waking {
                world.proxy.apply("app", routes);
            }
            Ok(())
        }
    });
    let address = SocketAddr::from((PRIVATE, number));
    let request = "GET / HTTP/1.1\r\nHost: app.flycast\r\nConnection: close\r\n\
                   Fly-Src: instance=forged\r\nFly-Client-IP: 192.0.2.1\r\n\r\n";
    let answer = send(address, request).await;
    assert_eq!((answer.status, world.machines.wakes()), (200, vec!["a1".to_owned()]));
    assert!(answer.body.contains("fly-client-ip: ::1\r\n"), "{}", answer.body);
    assert!(!answer.body.contains("fly-src"), "nobody knows who asks: {}", answer.body);

    let client = PrivateClient { machine: id("b2"), app: "other".into() };
    *networks.client.lock() = Some(client);
    let answer = send(address, request).await;
    assert!(answer.body.contains("fly-src: instance=b2;app=other\r\n"), "{}", answer.body);
    assert!(!answer.body.contains("forged"), "{}", answer.body);
    assert_eq!(networks.opened.load(Ordering::SeqCst), 1);
    // Nobody says it at another entrance.
    world.apply(vec![started("a1", upstream.address)]);
    let answer = send(world.http, &request.replace("app.flycast", "app.localhost")).await;
    assert_eq!(answer.status, 200);
    assert!(!answer.body.contains("fly-src"), "{}", answer.body);
}

#[tokio::test]
async fn on_a_private_address_there_is_no_tls_and_nobody_is_sent_to_it() {
    let upstream = Upstream::http("one").await;
    let (world, _) = world();
    let [plain, secure, postgres] = free_ports();
    let mut ports = vec![
        port(plain, http()),
        port(secure, Handlers { tls: true, ..http() }),
        port(postgres, Handlers { pg_tls: true, ..Handlers::default() }),
    ];
    ports[0].force_https = true;
    world.proxy.apply("app", routes(started("a1", upstream.address), ports));
    assert_eq!(listened(&world), [plain]);
    let answer = send((PRIVATE, plain).into(), &get("/")).await;
    assert_eq!(answer.status, 200, "{}", answer.head);
    for closed in [secure, postgres] {
        let refused = TcpStream::connect((PRIVATE, closed)).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}

#[tokio::test]
async fn a_private_address_that_is_released_refuses_and_one_that_fails_is_tried_again() {
    let upstream = Upstream::http("one").await;
    let (world, networks) = world();
    let number = free_port();
    let ports = || vec![port(number, http())];
    let machine = started("a1", upstream.address);
    *networks.fails.lock() = true;
    world.proxy.apply("app", routes(machine.clone(), ports()));
    let own = world.proxy.listeners().into_iter().find(|one| one.app.is_some()).unwrap();
    assert_eq!(own.error.as_deref(), Some("not today"));
    *networks.fails.lock() = false;
    eventually("the listener", || networks.opened.load(Ordering::SeqCst) == 1).await;
    let address = SocketAddr::from((PRIVATE, number));
    in_time("an answer", async {
        while TcpStream::connect(address).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(send(address, &get("/")).await.status, 200);

    let without = AppRoutes { private_addresses: Vec::new(), ..routes(machine, ports()).unwrap() };
    world.proxy.apply("app", Some(without));
    assert_eq!(listened(&world), [0; 0]);
    in_time("a refusal", async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
