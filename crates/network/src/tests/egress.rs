//! What somebody outside sees connections of machines come from. Outside is a namespace that is on
//! one bridge with the host, in the same networks as the egress addresses.

mod exhaustion;
mod many;
mod paths;

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6,
    SockaddrStorage, recvfrom, sendto, setsockopt, socket, sockopt::ReceiveTimeout,
};
use tempfile::TempDir;

use super::{Place, on_a_host, run, services::Machine};
use crate::{Assignment, Assignments, Network, NetworkConfig, links::Links, namespace::Namespace};

const TIMEOUT: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_millis(300);

const HOST: [&str; 2] = ["203.0.113.10", "2001:db8::10"];
const OUTSIDE: [&str; 2] = ["203.0.113.1", "2001:db8::1"];
const OWN: [&str; 2] = ["203.0.113.65", "2001:db8::e:1"];
const SHARED: [&str; 2] = ["203.0.113.66", "2001:db8::e:2"];
const POOLS: [&str; 2] = ["203.0.113.64/28", "2001:db8::e:0/112"];

/// The protocols.
const TCP: &str = "TCP";
const UDP: &str = "UDP";
const ICMP: &str = "ICMP";
const EVERY: [&str; 3] = [TCP, UDP, ICMP];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Who looks at connections from outside.
struct Outside {
    inside: Namespace,
    tcp: [TcpListener; 2],
    udp: [UdpSocket; 2],
    icmp: [OwnedFd; 2],
    /// Each has a number of its own: it would belong to the one before.
    pings: AtomicU16,
}

fn raw(is_v6: bool) -> OwnedFd {
    let (family, protocol) = if is_v6 {
        (AddressFamily::Inet6, SockProtocol::IcmpV6)
    } else {
        (AddressFamily::Inet, SockProtocol::Icmp)
    };
    let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
    let timeout = nix::sys::time::TimeVal::new(30, 0);
    setsockopt(&raw, ReceiveTimeout, &timeout).unwrap();
    raw
}

impl Outside {
    /// With a bridge between it and the host.
    async fn start(place: &TempDir) -> Self {
        let bridge = Namespace::open(&place.path().join("bridge")).unwrap();
        let inside = Namespace::open(&place.path().join("outside")).unwrap();
        run("ip link add eth0 type veth peer name to-host; \
             ip link add out type veth peer name to-outside");
        let links = Links::open().unwrap();
        for (link, to) in [("to-host", &bridge), ("to-outside", &bridge), ("out", &inside)] {
            let index = links.index(link).await.unwrap().unwrap();
            links.move_to(index, to.descriptor()).await.unwrap();
        }
        let bridged = bridge.run(|| {
            run("ip link add br0 type bridge; ip link set br0 up; \
                 for link in to-host to-outside; do ip link set $link master br0 up; done")
        });
        bridged.unwrap();
        let up = |link: &str, [v4, v6]: [&str; 2]| {
            format!(
                "ip link set lo up; ip link set {link} up; ip address add {v4}/24 dev {link}; \
                 ip address add {v6}/64 dev {link} nodad"
            )
        };
        run(&up("eth0", HOST));
        let command = up("out", OUTSIDE);
        let sockets = inside.run(move || {
            run(&command);
            let tcp = OUTSIDE.map(|address| TcpListener::bind((address, 7)).unwrap());
            let udp = OUTSIDE.map(|address| UdpSocket::bind((address, 7)).unwrap());
            for socket in &udp {
                socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            }
            (tcp, udp, [false, true].map(raw))
        });
        let (tcp, udp, icmp) = sockets.unwrap();
        drop(bridge);
        Self { inside, tcp, udp, icmp, pings: AtomicU16::new(0x1234) }
    }

    /// What a new connection of a machine comes from, which is answered; 0 and 1 are IPv4 and IPv6.
    fn sees(&self, machine: &Machine, protocol: &str, family: usize) -> SocketAddr {
        let to = SocketAddr::new(ip(OUTSIDE[family]), 7);
        match protocol {
            TCP => {
                let mut connection = connect(machine, to, TIMEOUT).unwrap();
                let (mut accepted, from) = self.tcp[family].accept().unwrap();
                accepted.write_all(b"x").unwrap();
                connection.read_exact(&mut [0]).unwrap();
                from
            }
            UDP => {
                let sender = udp(machine, to);
                sender.send(b"ask").unwrap();
                let (_, from) = self.udp[family].recv_from(&mut [0; 8]).unwrap();
                self.udp[family].send_to(b"answer", from).unwrap();
                assert_eq!(sender.recv(&mut [0; 8]).unwrap(), 6);
                from
            }
            _ => self.sees_ping(machine, family),
        }
    }

    fn sees_ping(&self, machine: &Machine, family: usize) -> SocketAddr {
        let (request, reply) = if family == 1 { (128, 129) } else { (8, 0) };
        // The kernel fills in that of IPv6.
        let id = self.pings.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let mut echo = [request, 0, 0, 0, id[0], id[1], 0, 1];
        let sum: u32 = echo.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        echo[2..4].copy_from_slice(&sum.to_be_bytes());
        let sender = machine.inside.run(move || raw(family == 1)).unwrap();
        let sent = match ip(OUTSIDE[family]) {
            IpAddr::V4(to) => {
                let to = SockaddrIn::from(std::net::SocketAddrV4::new(to, 0));
                sendto(sender.as_raw_fd(), &echo, &to, MsgFlags::empty())
            }
            IpAddr::V6(to) => {
                let to = SockaddrIn6::from(std::net::SocketAddrV6::new(to, 0, 0, 0));
                sendto(sender.as_raw_fd(), &echo, &to, MsgFlags::empty())
            }
        };
        sent.unwrap();
        let receive = |socket: &OwnedFd, wanted: u8| loop {
            let mut buffer = [0; 128];
            let (_, from) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer).unwrap();
            // That of IPv4 has its header in front.
            let echo = if family == 1 { &buffer[..] } else { &buffer[20..] };
            if echo[0] == wanted {
                let from = from.unwrap();
                let address = from.as_sockaddr_in().map(|from| IpAddr::from(from.ip()));
                let address =
                    address.or_else(|| from.as_sockaddr_in6().map(|from| IpAddr::from(from.ip())));
                let number = u16::from_be_bytes([echo[4], echo[5]]);
                return SocketAddr::new(address.unwrap(), number);
            }
        };
        let from = receive(&self.icmp[family], request);
        // The kernel there answers.
        assert_eq!(receive(&sender, reply).ip(), ip(OUTSIDE[family]));
        from
    }
}

fn connect(machine: &Machine, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let connected =
        machine.inside.run(move || TcpStream::connect_timeout(&to, patience)).unwrap()?;
    connected.set_read_timeout(Some(TIMEOUT)).unwrap();
    Ok(connected)
}

fn udp(machine: &Machine, to: SocketAddr) -> UdpSocket {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = machine.inside.run(move || UdpSocket::bind((any, 0)).unwrap()).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

/// A machine's egress addresses.
fn assigned(machine: &Machine, to: [&str; 2], ports: Option<(u16, u16)>) -> [Assignment; 2] {
    let own = [IpAddr::from(machine.addresses.ipv4), machine.addresses.ipv6.into()];
    [0, 1].map(|family| Assignment { machine: own[family], address: ip(to[family]), ports })
}

async fn start(place: &Place) -> Network {
    let pools = POOLS.map(|pool| pool.parse().unwrap()).to_vec();
    Network::start(NetworkConfig { egress_pools: pools, ..place.config() }).await.unwrap()
}

#[test]
fn connections_come_from_the_egress_address_of_their_machine_from_its_assignment_on() {
    on_a_host(async || {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&directory);
        let outside = Outside::start(&directory).await;
        let network = start(&place).await;
        let first = Machine::start(&network, &directory, "caddis1", "fdaa:0:5:7::2").await;
        let second = Machine::start(&network, &directory, "caddis2", "fdaa:0:5:8::2").await;
        let comes_from = |machine: &Machine, addresses: [&str; 2], ports: (u16, u16)| {
            for family in [0, 1] {
                for protocol in EVERY {
                    let seen = outside.sees(machine, protocol, family);
                    let what = format!("{protocol} to {}", OUTSIDE[family]);
                    assert_eq!(seen.ip(), ip(addresses[family]), "{what}");
                    let (from, to) = ports;
                    assert!((from..=to).contains(&seen.port()), "{what}: {seen}");
                }
            }
        };
        let any = (0, u16::MAX);
        comes_from(&first, HOST, any);
        let block = (2048, 3071);
        let all: Assignments = assigned(&first, OWN, None)
            .into_iter()
            .chain(assigned(&second, SHARED, Some(block)))
            .collect();
        network.set_egress(all.clone()).await.unwrap();
        comes_from(&first, OWN, any);
        comes_from(&second, SHARED, block);
        assert!(run("nft list table inet caddis-0").contains("203.0.113.65"));

        // The next server has them before it is told of any machine.
        drop(network);
        comes_from(&first, OWN, any);
        run("nft delete table inet caddis-0");
        let network = start(&place).await;
        comes_from(&first, OWN, any);
        comes_from(&second, SHARED, block);

        // Another address: what there was goes on, but for connections of one that is taken away.
        let to = SocketAddr::new(ip(OUTSIDE[0]), 7);
        let mut kept = connect(&second, to, TIMEOUT).unwrap();
        let mut to_second = outside.tcp[0].accept().unwrap().0;
        let mut cut = connect(&first, to, TIMEOUT).unwrap();
        let (mut from_first, seen) = outside.tcp[0].accept().unwrap();
        assert_eq!(seen.ip(), ip(OWN[0]));
        network.clear_egress(&first.addresses).await.unwrap();
        comes_from(&first, HOST, any);
        cut.write_all(b"x").unwrap();
        from_first.set_read_timeout(Some(SILENCE)).unwrap();
        assert_eq!(from_first.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(cut.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        kept.write_all(b"x").unwrap();
        to_second.read_exact(&mut [0]).unwrap();
        comes_from(&second, SHARED, block);
        network.set_egress(Assignments::new()).await.unwrap();
        comes_from(&second, HOST, any);
        assert_eq!(run("ip -6 neighbour show proxy"), "", "it answers for nobody");
    });
}

#[test]
fn nothing_passes_under_a_wrong_address_while_another_program_changes_the_filter() {
    on_a_host(async || {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&directory);
        let outside = Outside::start(&directory).await;
        let network = start(&place).await;
        let first = Machine::start(&network, &directory, "caddis1", "fdaa:0:5:7::2").await;
        let second = Machine::start(&network, &directory, "caddis2", "fdaa:0:5:8::2").await;
        let block = (1024, 2047);
        let all = assigned(&first, OWN, None)
            .into_iter()
            .chain(assigned(&second, SHARED, Some(block)))
            .collect();
        network.set_egress(all).await.unwrap();
        for (machine, family) in [(&first, 0), (&first, 1), (&second, 0), (&second, 1)] {
            outside.sees(machine, UDP, family);
        }
        // Each machine sends datagrams from ever new ports.
        let stop = Arc::new(AtomicBool::new(false));
        let senders = [&first, &second].map(|machine| {
            let stop = stop.clone();
            let sending = machine.inside.run(move || {
                thread::spawn(move || {
                    // It is in the namespace of who spawns it.
                    while !stop.load(Ordering::Relaxed) {
                        for (any, to) in [("0.0.0.0", OUTSIDE[0]), ("::", OUTSIDE[1])] {
                            let socket = UdpSocket::bind((any, 0)).unwrap();
                            // It is refused now and then.
                            let _ = socket.send_to(b"ask", (to, 7));
                        }
                        thread::yield_now();
                    }
                })
            });
            sending.unwrap()
        });
        let mut seen = BTreeSet::new();
        let mut look = |until: &mut dyn FnMut() -> bool| {
            let begun = Instant::now();
            while !until() {
                assert!(begun.elapsed() < TIMEOUT);
                for socket in &outside.udp {
                    socket.set_nonblocking(true).unwrap();
                    while let Ok((_, from)) = socket.recv_from(&mut [0; 8]) {
                        seen.insert(from.ip());
                    }
                }
            }
        };
        for change in [
            "nft flush ruleset",
            "nft delete table inet caddis-0",
            "nft flush table inet caddis-0",
            "nft flush map inet caddis-0 machine4; nft flush map inet caddis-0 machine6",
            "nft flush map inet caddis-0 app4; nft flush map inet caddis-0 app6",
            "nft flush set inet caddis-0 fixed4; nft flush set inet caddis-0 fixed6",
            "nft flush chain inet caddis-0 marking",
            "nft flush chain inet caddis-0 leaving",
            "nft delete chain inet caddis-0 leaving",
        ] {
            for _ in 0..10 {
                let before = network.disturbances().borrow().count;
                run(change);
                let told = network.disturbances();
                look(&mut || told.borrow().count > before);
            }
        }
        stop.store(true, Ordering::Relaxed);
        for sender in senders {
            sender.join().unwrap();
        }
        look(&mut || true);
        let right: BTreeSet<_> = [OWN, SHARED].concat().into_iter().map(ip).collect();
        assert_eq!(seen, right);
    });
}

/// Sends until something arrives: of the last ports of a block NAT finds one only now and then.
fn reached(outside: &UdpSocket, sender: &UdpSocket) -> SocketAddr {
    outside.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let begun = Instant::now();
    let own = sender.local_addr().unwrap().port().to_be_bytes();
    loop {
        sender.send(&own).unwrap();
        let mut received = [0; 2];
        while let Ok((_, from)) = outside.recv_from(&mut received) {
            // That of another one may be late.
            if received == own {
                return from;
            }
        }
        assert!(begun.elapsed() < TIMEOUT, "nothing arrives");
    }
}

#[test]
fn nothing_of_the_host_answers_at_an_egress_address_but_ping() {
    on_a_host(async || {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&directory);
        let outside = Outside::start(&directory).await;
        let network = start(&place).await;
        let machine = Machine::start(&network, &directory, "caddis1", "fdaa:0:5:7::2").await;
        network.set_egress(assigned(&machine, OWN, None).into()).await.unwrap();
        let _everywhere = TcpListener::bind("[::]:81").unwrap();
        for family in [0, 1] {
            let to = |address: &str| {
                let to = SocketAddr::new(ip(address), 81);
                let connect = move || TcpStream::connect_timeout(&to, TIMEOUT).map(drop);
                outside.inside.run(connect).unwrap().map_err(|error| error.kind())
            };
            assert_eq!(to(HOST[family]), Ok(()));
            let expected =
                if family == 0 { ErrorKind::HostUnreachable } else { ErrorKind::PermissionDenied };
            assert_eq!(to(OWN[family]), Err(expected));
        }
    });
}

#[test]
fn the_host_answers_again_for_its_addresses_after_a_link_was_down() {
    on_a_host(async || {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&directory);
        let outside = Outside::start(&directory).await;
        let network = start(&place).await;
        let machine = Machine::start(&network, &directory, "caddis1", "fdaa:0:5:7::2").await;
        network.set_egress(assigned(&machine, OWN, None).into()).await.unwrap();
        run("ip link set eth0 down; ip route flush table local proto 203");
        let begun = Instant::now();
        run("ip link set eth0 up; ip address replace 2001:db8::10/64 dev eth0 nodad");
        while !run("ip -6 neighbour show proxy").contains(OWN[1]) {
            assert!(begun.elapsed() < TIMEOUT);
        }
        outside.inside.run(|| run("ip -6 neighbour flush all; ip neighbour flush all")).unwrap();
        for family in [0, 1] {
            assert_eq!(outside.sees(&machine, TCP, family).ip(), ip(OWN[family]));
        }
        place_is_clean(network, machine, &place).await;
    });
}

/// Nothing is left on the host.
async fn place_is_clean(network: Network, machine: Machine, place: &Place) {
    network.detach("caddis1", &machine.addresses).await.unwrap();
    drop((network, machine));
    place.cleaned().await;
    assert_eq!(run("ip route show table local proto 203; ip -6 neighbour show proxy"), "");
}
