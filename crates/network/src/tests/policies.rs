//! Network policies, over real packets. A pair of virtual cards stands for each machine and for the
//! outside; everybody answers what comes over TCP, UDP and ICMP.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    thread,
    time::Duration,
};

use ipnet::IpNet;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use tempfile::TempDir;

use super::{Place, on_a_host, run};
use crate::{
    Allowance, AllowedPort, DNS, GATEWAY_V4, GATEWAY_V6, HOST_V4, HOST_V6, MachineAddresses,
    MachinePolicy, Network, links::Links, namespace::Namespace,
};

/// How long is waited for an answer that must not come.
pub(super) const SILENCE: Duration = Duration::from_millis(200);
/// How long is waited for one that must.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

pub(super) const PORT: u16 = 7000;
const OTHER_PORT: u16 = 7001;

pub(super) const WORLD: [&str; 2] = ["203.0.113.2", "2001:db8:1::2"];
pub(super) const LAN: [&str; 2] = ["192.168.7.2", "fd07::2"];
pub(super) const METADATA: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

pub(super) const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp];

pub(super) struct Machine {
    pub(super) addresses: MachineAddresses,
    pub(super) inside: Namespace,
}

impl Machine {
    pub(super) async fn start(
        network: &Network,
        place: &TempDir,
        number: u8,
        address: &str,
    ) -> Self {
        let ipv6: Ipv6Addr = address.parse().unwrap();
        let (tap, mac) = (format!("caddis{number}"), format!("02:00:00:00:00:{number:02}"));
        let ipv4 = Ipv4Addr::new(10, 201, 3, number);
        let inside = Namespace::open(&place.path().join(&tap)).unwrap();
        let pair = format!("ip link add {tap} type veth peer name {tap}p address {mac}");
        network.run_inside(&pair);
        let links = Links::open_in(&network.namespace).unwrap();
        let end = links.index(&format!("{tap}p")).await.unwrap().unwrap();
        links.move_to(end, inside.descriptor()).await.unwrap();
        let prefix = ipnet::Ipv6Net::new(ipv6, 48).unwrap().trunc();
        let addresses = MachineAddresses { ipv4, ipv6, network: prefix, mac };
        network.adopt(&tap, &addresses).await.unwrap();
        let machine = Self { addresses, inside };
        machine.run(&format!(
            "ip link set lo up; ip link set {tap}p name eth0; ip link set eth0 up; \
             ip address add {ipv6}/128 dev eth0 nodad; ip address add {ipv4}/32 dev eth0; \
             ip route add {GATEWAY_V4} dev eth0; ip route add default via {GATEWAY_V4}; \
             ip -6 route add default via {GATEWAY_V6} dev eth0; \
             sysctl -q net.ipv4.ping_group_range='0 0'"
        ));
        answer_all(&machine.inside);
        machine
    }

    pub(super) fn run(&self, command: &str) {
        let command = command.to_owned();
        self.inside.run(move || run(&command)).unwrap();
    }

    pub(super) fn v6(&self) -> String {
        self.addresses.ipv6.to_string()
    }

    pub(super) fn v4(&self) -> String {
        self.addresses.ipv4.to_string()
    }

    pub(super) fn policy(&self) -> MachinePolicy {
        let addresses = self.addresses.clone();
        MachinePolicy { addresses, egress: None, ingress: None, dns: true }
    }

    pub(super) fn connect(&self, to: &str, port: u16, patience: Duration) -> io::Result<TcpStream> {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let connect = move || TcpStream::connect_timeout(&to, patience);
        let stream = self.inside.run(connect).unwrap()?;
        stream.set_read_timeout(Some(patience))?;
        Ok(stream)
    }

    /// A flow of UDP or ICMP.
    pub(super) fn flow(&self, protocol: Protocol, to: &str, port: u16) -> io::Result<UdpSocket> {
        let to: IpAddr = to.parse().unwrap();
        let open = move || {
            let flow = if protocol == Protocol::Icmp {
                echo_socket(to)?
            } else if to.is_ipv4() {
                UdpSocket::bind("0.0.0.0:0")?
            } else {
                UdpSocket::bind("[::]:0")?
            };
            flow.connect((to, port))?;
            Ok(flow)
        };
        self.inside.run(open).unwrap()
    }

    /// Whether something that is sent there is answered.
    pub(super) fn reaches(
        &self,
        protocol: Protocol,
        to: &str,
        port: u16,
        patience: Duration,
    ) -> bool {
        match protocol {
            Protocol::Tcp => {
                self.connect(to, port, patience).is_ok_and(|mut stream| is_answered(&mut stream))
            }
            _ => self.flow(protocol, to, port).is_ok_and(|flow| {
                flow.set_read_timeout(Some(patience)).unwrap();
                is_echoed(&flow)
            }),
        }
    }

    #[track_caller]
    fn expect(&self, to: &str, port: u16, expected: [bool; 3]) {
        for (protocol, expected) in PROTOCOLS.into_iter().zip(expected) {
            let patience = if expected { TIMEOUT } else { SILENCE };
            let found = self.reaches(protocol, to, port, patience);
            assert_eq!(found, expected, "{} to {to}, {protocol:?} {port}", self.v4());
        }
    }
}

/// One over which echo requests are sent.
fn echo_socket(to: IpAddr) -> io::Result<UdpSocket> {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let descriptor: OwnedFd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
    Ok(descriptor.into())
}

fn is_answered(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 1];
    stream.write_all(b"x").and_then(|()| stream.read_exact(&mut answer)).is_ok()
}

/// Of UDP the text matters, of ICMP the kind in its first byte.
fn is_echoed(flow: &UdpSocket) -> bool {
    let is_v4 = flow.local_addr().unwrap().is_ipv4();
    let kind = if is_v4 { 8 } else { 128 };
    let request = [kind, 0, 0, 0, 0, 0, 0, 1];
    flow.send(&request).and_then(|_| flow.recv(&mut [0; 64])).is_ok()
}

/// Answers over TCP and UDP in a namespace, as its kernel does over ICMP.
pub(super) fn answer_all(inside: &Namespace) {
    for port in [PORT, OTHER_PORT] {
        let open = move || {
            (TcpListener::bind(("::", port)).unwrap(), UdpSocket::bind(("::", port)).unwrap())
        };
        let (listener, flow) = inside.run(open).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                thread::spawn(move || {
                    let mut byte = [0; 1];
                    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
                });
            }
        });
        thread::spawn(move || {
            let mut bytes = [0; 64];
            loop {
                // What a client has refused is of no interest.
                let Ok((length, from)) = flow.recv_from(&mut bytes) else { continue };
                let _ = flow.send_to(&bytes[..length], from);
            }
        });
    }
}

/// What is behind the host: the internet, and a network that machines may not reach.
pub(super) fn outside(place: &TempDir) -> Namespace {
    let world = Namespace::open(&place.path().join("world")).unwrap();
    run(&format!(
        "ip link add world type veth peer name far; ip link set far netns {}; \
         ip link set world up; sysctl -q net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; \
         ip address add 203.0.113.1/24 dev world; ip address add 192.168.7.1/24 dev world; \
         ip address add 2001:db8:1::1/64 dev world nodad; \
         ip address add fd07::1/64 dev world nodad; \
         ip route add 169.254.169.254 via 203.0.113.2; \
         ip -6 route add fd00:ec2::254 via 2001:db8:1::2",
        place.path().join("world").display()
    ));
    let inside = "ip link set lo up; ip link set far up; ip address add 203.0.113.2/24 dev far; \
                  ip address add 192.168.7.2/24 dev far; ip address add 169.254.169.254/32 dev lo; \
                  ip address add 2001:db8:1::2/64 dev far nodad; \
                  ip address add fd07::2/64 dev far nodad; \
                  ip address add fd00:ec2::254/128 dev lo nodad; \
                  ip route add default via 203.0.113.1; ip -6 route add default via 2001:db8:1::1";
    world.run(move || run(inside)).unwrap();
    answer_all(&world);
    world
}

/// Two machines of a network, one of another one, and the outside.
struct Scene {
    _directory: TempDir,
    place: Place,
    network: Network,
    first: Machine,
    second: Machine,
    foreign: Machine,
    _world: Namespace,
}

impl Scene {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&directory);
        let network = place.start().await.unwrap();
        let world = outside(&directory);
        let first = Machine::start(&network, &directory, 1, "fdaa:0:5:7::2").await;
        let second = Machine::start(&network, &directory, 2, "fdaa:0:5:8::2").await;
        let foreign = Machine::start(&network, &directory, 3, "fdaa:0:6:7::2").await;
        Self { _directory: directory, place, network, first, second, foreign, _world: world }
    }

    async fn set(&self, policies: Vec<MachinePolicy>) {
        self.network.set_policies(policies).await.unwrap();
    }

    /// Where the first machine gets, on a port, as (internet v4, v6; same network v6), and that it
    /// gets nowhere else.
    #[track_caller]
    fn matrix(&self, port: u16, internet: [bool; 3], same_network: [bool; 3]) {
        let never = [false; 3];
        for address in WORLD {
            self.first.expect(address, port, internet);
        }
        self.first.expect(&self.second.v6(), port, same_network);
        let (host_v4, host_v6) = (HOST_V4.to_string(), HOST_V6.to_string());
        let mut others = vec![
            self.second.v4(),
            self.foreign.v4(),
            self.foreign.v6(),
            host_v4,
            host_v6,
            "203.0.113.1".to_owned(),
            "2001:db8:1::1".to_owned(),
        ];
        others.extend([LAN, METADATA].concat().into_iter().map(str::to_owned));
        for address in others {
            self.first.expect(&address, port, never);
        }
    }
}

pub(super) fn to(peers: &[&str], ports: &[AllowedPort]) -> Allowance {
    let peers: Vec<IpNet> = peers
        .iter()
        .map(|text| text.parse().unwrap_or_else(|_| text.parse::<IpAddr>().unwrap().into()))
        .collect();
    Allowance {
        peers: (!peers.is_empty()).then_some(peers),
        ports: (!ports.is_empty()).then(|| ports.to_vec()),
    }
}

const ALL: [bool; 3] = [true; 3];
const NONE: [bool; 3] = [false; 3];
const ONLY_TCP: [bool; 3] = [true, false, false];

#[test]
fn policies_narrow_what_the_filter_lets_pass_and_widen_nothing() {
    on_a_host(async || {
        let scene = Scene::new().await;
        scene.matrix(PORT, ALL, ALL);

        let mut policy = scene.first.policy();
        policy.egress = Some(vec![to(&[], &[AllowedPort::Tcp(Some(PORT))])]);
        scene.set(vec![policy.clone()]).await;
        scene.matrix(PORT, ONLY_TCP, ONLY_TCP);
        scene.matrix(OTHER_PORT, NONE, NONE);
        // It is about connections that the machine makes, and about that machine.
        scene.second.expect(&scene.first.v6(), OTHER_PORT, ALL);
        scene.second.expect(WORLD[0], OTHER_PORT, ALL);

        let icmp = to(&[WORLD[0], "fdaa:0:5::/48"], &[AllowedPort::Icmp]);
        policy.egress = Some(vec![icmp, to(&["fdaa:0:5::/48"], &[AllowedPort::Udp(None)])]);
        scene.set(vec![policy.clone()]).await;
        scene.first.expect(WORLD[0], PORT, [false, false, true]);
        scene.first.expect(WORLD[1], PORT, NONE);
        scene.first.expect(&scene.second.v6(), PORT, [false, true, true]);

        // Everything that can be named, and still what the filter refuses.
        policy.egress = Some(vec![to(&["0.0.0.0/0", "::/0"], &[])]);
        scene.set(vec![policy.clone()]).await;
        scene.matrix(PORT, ALL, ALL);
        policy.egress = Some(Vec::new());
        scene.set(vec![policy]).await;
        scene.matrix(PORT, NONE, NONE);
        scene.set(Vec::new()).await;
        scene.matrix(PORT, ALL, ALL);
    });
}

#[test]
fn who_may_connect_to_a_machine_is_said_by_its_policy_and_the_host_always_may() {
    on_a_host(async || {
        let scene = Scene::new().await;
        let (first, second) = (&scene.first, &scene.second);
        let mut policy = second.policy();
        policy.ingress = Some(vec![to(&["fdaa:0:5:7::/64"], &[AllowedPort::Tcp(Some(PORT))])]);
        scene.set(vec![policy.clone()]).await;
        first.expect(&second.v6(), PORT, ONLY_TCP);
        first.expect(&second.v6(), OTHER_PORT, NONE);
        second.expect(WORLD[1], OTHER_PORT, ALL);
        second.expect(&first.v6(), OTHER_PORT, ALL);
        let from_host = |address: String| {
            let address: IpAddr = address.parse().unwrap();
            TcpStream::connect_timeout(&(address, OTHER_PORT).into(), TIMEOUT).unwrap();
        };
        from_host(second.v4());
        from_host(second.v6());

        policy.ingress = Some(vec![to(&["fdaa:0:6::/48"], &[])]);
        scene.set(vec![policy]).await;
        first.expect(&second.v6(), PORT, NONE);
        scene.foreign.expect(&second.v6(), PORT, NONE);
    });
}

#[test]
fn connections_that_there_are_end_when_they_are_forbidden() {
    on_a_host(async || {
        let scene = Scene::new().await;
        let (first, second) = (&scene.first, &scene.second);
        for address in [WORLD[0].to_owned(), WORLD[1].to_owned(), second.v6()] {
            let mut stream = first.connect(&address, PORT, TIMEOUT).unwrap();
            assert!(is_answered(&mut stream));
            let flows = [Protocol::Udp, Protocol::Icmp].map(|protocol| {
                let flow = first.flow(protocol, &address, PORT).unwrap();
                flow.set_read_timeout(Some(TIMEOUT)).unwrap();
                assert!(is_echoed(&flow));
                flow
            });
            let mut allowed = first.connect(&address, OTHER_PORT, TIMEOUT).unwrap();
            let mut policy = first.policy();
            policy.egress = Some(vec![to(&[], &[AllowedPort::Tcp(Some(OTHER_PORT))])]);
            scene.set(vec![policy]).await;
            // Without waiting for a timeout: the connection is reset.
            stream.write_all(b"x").unwrap();
            let error = stream.read_exact(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{address}");
            for flow in flows {
                flow.set_read_timeout(Some(SILENCE)).unwrap();
                assert!(!is_echoed(&flow), "{address}");
            }
            assert!(is_answered(&mut allowed));
            scene.set(Vec::new()).await;
        }
        // What the other end sends on its own does not come either.
        let (client, server) = {
            let listener = second.inside.run(|| TcpListener::bind("[::]:7002").unwrap()).unwrap();
            let client = first.connect(&second.v6(), 7002, TIMEOUT).unwrap();
            (client, listener.accept().unwrap().0)
        };
        let mut policy = first.policy();
        policy.egress = Some(Vec::new());
        scene.set(vec![policy]).await;
        let mut server = server;
        server.write_all(b"x").unwrap();
        let mut client = client;
        client.set_read_timeout(Some(SILENCE)).unwrap();
        let outcome = client.read_exact(&mut [0; 1]).map_err(|error| error.kind());
        assert_eq!(outcome, Err(io::ErrorKind::WouldBlock));
        let refused = first.connect(WORLD[0], PORT, TIMEOUT).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn policies_hold_without_a_server_and_whatever_becomes_of_the_hosts_firewall() {
    on_a_host(async || {
        let scene = Scene::new().await;
        let mut policy = scene.first.policy();
        policy.egress = Some(vec![to(&[], &[AllowedPort::Tcp(Some(PORT))])]);
        scene.set(vec![policy.clone()]).await;
        let count = 40;
        let flushing = thread::spawn(move || {
            for _ in 0..count {
                run("nft flush ruleset");
            }
        });
        let mut tries = 0;
        while !flushing.is_finished() || tries < 2 {
            for address in [WORLD[0], WORLD[1], &scene.second.v6()] {
                for protocol in PROTOCOLS {
                    let patience = Duration::from_millis(5);
                    let passed = scene.first.reaches(protocol, address, OTHER_PORT, patience);
                    assert!(!passed, "{protocol:?} to {address}");
                }
            }
            tries += 1;
        }
        flushing.join().unwrap();

        // A change forbids nothing in between that both allow, and lets nothing pass that neither
        // does.
        let mut stream = scene.first.connect(&scene.second.v6(), PORT, TIMEOUT).unwrap();
        for number in 0..20 {
            let more = AllowedPort::Udp(Some(9000 + number));
            policy.egress = Some(vec![to(&[], &[AllowedPort::Tcp(Some(PORT)), more])]);
            let machine = policy.addresses.clone();
            let (done, changed) = std::sync::mpsc::channel();
            let change = scene.network.set_policies(vec![policy.clone()]);
            let first = &scene.first;
            let (second, stream) = (scene.second.v6(), &mut stream);
            thread::scope(|scope| {
                scope.spawn(move || {
                    while changed.try_recv().is_err() {
                        assert!(is_answered(stream), "{machine:?}");
                        assert!(!first.reaches(Protocol::Udp, &second, OTHER_PORT, SILENCE / 40));
                    }
                });
                tokio::task::block_in_place(|| {
                    tokio::runtime::Handle::current().block_on(change).unwrap();
                });
                done.send(()).unwrap();
            });
        }

        let Scene { place, network, first, second, .. } = scene;
        // A server that was killed.
        drop(network);
        first.expect(&second.v6(), OTHER_PORT, NONE);
        first.expect(&second.v6(), PORT, ONLY_TCP);
        let network = place.start().await.unwrap();
        first.expect(&second.v6(), OTHER_PORT, NONE);
        network.set_policies(vec![policy]).await.unwrap();
        first.expect(&second.v6(), OTHER_PORT, NONE);
        network.set_policies(Vec::new()).await.unwrap();
        first.expect(&second.v6(), OTHER_PORT, ALL);
        let listing = network.run_inside("nft list table inet caddis-policies");
        assert!(!listing.contains("chain p"), "no chain is left: {listing}");
    });
}

#[test]
fn the_name_server_is_refused_where_a_policy_says_so() {
    on_a_host(async || {
        let scene = Scene::new().await;
        let dns = DNS.to_string();
        let asks =
            |machine: &Machine, patience: Duration| machine.connect(&dns, 53, patience).is_ok();
        let mut policy = scene.first.policy();
        policy.egress = Some(Vec::new());
        scene.set(vec![policy.clone()]).await;
        // It may take its time to listen.
        let begun = std::time::Instant::now();
        while !asks(&scene.first, TIMEOUT) {
            assert!(begun.elapsed() < TIMEOUT);
        }
        policy.dns = false;
        scene.set(vec![policy]).await;
        assert!(!asks(&scene.first, SILENCE));
        assert!(asks(&scene.second, TIMEOUT));
        // Under another address of its own neither.
        let link_local = scene.first.inside.run(move || {
            run("ip address add fe80::7/64 dev eth0 nodad; \
                 ip -6 route replace default via fe80::1 dev eth0 src fe80::7");
            TcpStream::connect_timeout(&SocketAddr::new(DNS.into(), 53), SILENCE).is_ok()
        });
        assert!(!link_local.unwrap());
    });
}
