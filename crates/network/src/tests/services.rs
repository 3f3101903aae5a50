//! Who reaches addresses of services within private networks. A pair of virtual cards stands for
//! each machine: one end is its tap, the other is in a namespace of the machine's own.

use std::{
    io::{self, ErrorKind},
    net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use tempfile::TempDir;

use super::{Place, on_a_host, run};
use crate::{
    DNS, GATEWAY_V4, GATEWAY_V6, MachineAddresses, Network, links::Links, namespace::Namespace,
};

/// How long is waited for an answer that must not come.
pub(super) const SILENCE: Duration = Duration::from_millis(300);
/// How long is waited for one that must.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

pub(super) struct Machine {
    pub(super) tap: &'static str,
    pub(super) addresses: MachineAddresses,
    pub(super) inside: Namespace,
}

impl Machine {
    /// One whose network is that of its address.
    pub(super) async fn start(
        network: &Network,
        place: &TempDir,
        tap: &'static str,
        address: &str,
    ) -> Self {
        let ipv6: Ipv6Addr = address.parse().unwrap();
        let number = tap.trim_start_matches("caddis").parse().unwrap();
        let mac = format!("02:00:00:00:00:{number:02}");
        let inside = Namespace::open(&place.path().join(tap)).unwrap();
        let pair = format!("ip link add {tap} type veth peer name {tap}p address {mac}");
        network.run_inside(&pair);
        let links = Links::open_in(&network.namespace).unwrap();
        let end = links.index(&format!("{tap}p")).await.unwrap().unwrap();
        links.move_to(end, inside.descriptor()).await.unwrap();
        let addresses = MachineAddresses {
            ipv4: [10, 201, 3, number].into(),
            ipv6,
            network: ipnet::Ipv6Net::new(ipv6, 48).unwrap().trunc(),
            mac,
        };
        network.adopt(tap, &addresses).await.unwrap();
        let machine = Self { tap, addresses, inside };
        machine.run(&format!(
            "ip link set lo up; ip link set {tap}p name eth0; ip link set eth0 up; \
             ip address add {ipv6}/128 dev eth0 nodad; \
             ip -6 route add default via {GATEWAY_V6} dev eth0; \
             ip address add {}/32 dev eth0; ip route add default via {GATEWAY_V4} dev eth0 onlink",
            machine.addresses.ipv4
        ));
        machine
    }

    pub(super) fn run(&self, command: &str) {
        let command = command.to_owned();
        self.inside.run(move || run(&command)).unwrap();
    }

    /// What becomes of a connection.
    pub(super) fn connect(&self, to: &str, port: u16, patience: Duration) -> io::Result<TcpStream> {
        // Link-local addresses are those of the only card.
        let to: Ipv6Addr = to.parse().unwrap();
        let within = move || {
            let card = nix::net::if_::if_nametoindex("eth0")?;
            let scope = if to.is_unicast_link_local() { card } else { 0 };
            let address = SocketAddr::from(SocketAddrV6::new(to, port, 0, scope));
            TcpStream::connect_timeout(&address, patience)
        };
        self.inside.run(within).unwrap()
    }

    #[track_caller]
    pub(super) fn fails(&self, to: &str, port: u16, expected: ErrorKind) {
        let patience = if expected == ErrorKind::TimedOut { SILENCE } else { TIMEOUT };
        let outcome = self.connect(to, port, patience).map(|_| ()).map_err(|error| error.kind());
        assert_eq!(outcome, Err(expected), "{} to {to}, port {port}", self.tap);
    }
}

/// Listens in the namespace of machines.
fn listen(network: &Network, address: &str, port: u16) -> TcpListener {
    let command = "sysctl -q net.ipv6.ip_nonlocal_bind=1";
    let address: Ipv6Addr = address.parse().unwrap();
    network
        .open_inside(move || {
            // As IPV6_FREEBIND does for a single socket.
            run(command);
            TcpListener::bind((address, port))
        })
        .unwrap()
}

const HERE: &str = "fdaa:0:5:0:1::1";
const THERE: &str = "fdaa:0:6:0:1::1";

#[test]
fn services_are_reached_over_tcp_by_machines_of_their_network_and_nothing_else_is() {
    on_a_host(async || {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&directory);
        let network = place.start().await.unwrap();
        // One was listened to before there was a machine.
        let here = listen(&network, HERE, 80);
        let first = Machine::start(&network, &directory, "caddis1", "fdaa:0:5:7::2").await;
        let second = Machine::start(&network, &directory, "caddis2", "fdaa:0:6:7::2").await;
        let there = listen(&network, THERE, 80);
        // What would answer if it were reached: on every address there.
        let _any = listen(&network, "::", 81);

        for (machine, service, listener) in [(&first, HERE, &here), (&second, THERE, &there)] {
            let client = machine.connect(service, 80, TIMEOUT).unwrap();
            let (_, peer) = listener.accept().unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
            assert_eq!(peer.ip(), machine.addresses.ipv6);
        }
        let no_one = "fdaa:0:5:0:1::2";
        first.fails(no_one, 80, ErrorKind::ConnectionRefused);
        for (machine, service) in [(&first, THERE), (&second, HERE)] {
            machine.fails(service, 80, ErrorKind::ConnectionRefused);
            machine.fails(service, 81, ErrorKind::ConnectionRefused);
        }
        let dns = DNS.to_string();
        for other in [&*dns, "fe80::1"] {
            first.fails(other, 81, ErrorKind::TimedOut);
        }
        // Over UDP it is as if there were none.
        let refused = first.inside.run(|| {
            let socket = UdpSocket::bind("[::]:0")?;
            socket.connect((HERE.parse::<Ipv6Addr>().unwrap(), 80))?;
            socket.set_read_timeout(Some(TIMEOUT))?;
            socket.send(b"x")?;
            socket.recv(&mut [0; 8])
        });
        assert_eq!(refused.unwrap().unwrap_err().kind(), ErrorKind::PermissionDenied);

        // Neither under an address of a machine of the other network, nor of its services.
        let beside = "fdaa:0:6:0:1::2";
        network.run_inside(&format!(
            "nft add table inet test; nft add chain inet test come \
             '{{ type filter hook prerouting priority filter; }}'; \
             nft add rule inet test come ip6 daddr {beside} counter"
        ));
        let has_come = || !network.run_inside("nft list table inet test").contains("packets 0 ");
        for foreign in ["fdaa:0:6:7::2", THERE, "fdaa:0:6:9::2"] {
            first.run(&format!(
                "ip address add {foreign}/128 dev eth0 nodad; \
                 ip -6 route replace default via {GATEWAY_V6} dev eth0 src {foreign}"
            ));
            first.fails(beside, 80, ErrorKind::TimedOut);
            first.run(&format!("ip address del {foreign}/128 dev eth0"));
        }
        assert!(!has_come());
        second.fails(beside, 80, ErrorKind::ConnectionRefused);
        assert!(has_come());
        first.run(&format!("ip -6 route replace default via {GATEWAY_V6} dev eth0"));
        first.connect(HERE, 80, TIMEOUT).unwrap();
        let nobody = SocketAddr::from((HERE.parse::<Ipv6Addr>().unwrap(), 80));
        TcpStream::connect_timeout(&nobody, SILENCE).unwrap_err();
    });
}

#[test]
fn without_a_server_and_without_machines_nobody_reaches_services() {
    on_a_host(async || {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&directory);
        let network = place.start().await.unwrap();
        let first = Machine::start(&network, &directory, "caddis1", "fdaa:0:5:7::2").await;
        let second = Machine::start(&network, &directory, "caddis2", "fdaa:0:6:7::2").await;
        let listener = listen(&network, HERE, 80);
        first.connect(HERE, 80, TIMEOUT).unwrap();
        // A server that was killed.
        drop((network, listener));
        first.fails(HERE, 80, ErrorKind::ConnectionRefused);
        second.fails(HERE, 80, ErrorKind::ConnectionRefused);

        let network = place.start().await.unwrap();
        for machine in [&first, &second] {
            network.adopt(machine.tap, &machine.addresses).await.unwrap();
        }
        let listener = listen(&network, HERE, 80);
        first.connect(HERE, 80, TIMEOUT).unwrap();
        second.fails(HERE, 80, ErrorKind::ConnectionRefused);
        drop(listener);
        let routes = "ip -6 route show table local";
        assert!(network.run_inside(routes).contains("local fdaa:0:5:0:1::/80 dev lo"));
        network.detach(first.tap, &first.addresses).await.unwrap();
        let left = network.run_inside(routes);
        assert!(!left.contains("fdaa:0:5:") && left.contains("fdaa:0:6:0:1::/80"), "{left}");
        // Of a network without machines.
        network.detach(first.tap, &first.addresses).await.unwrap();
    });
}
