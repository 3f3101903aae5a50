//! Who reaches whom: one table, of a machine and of a WireGuard peer, to everybody there is, with
//! and without policies. And what comes under an address that is not the sender's.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    thread,
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect,
    send, socket,
};
use tempfile::TempDir;

use super::{
    Place, on_a_host,
    policies::{
        LAN, METADATA, Machine, PORT, PROTOCOLS, Protocol, TIMEOUT, WORLD, answer_all, outside, to,
    },
    run,
};
use crate::{
    AllowedPort, DNS, HOST_V4, HOST_V6, MachineAddresses, MachinePolicy, Network, links::Links,
    namespace::Namespace, peers::DEVICE,
};

/// How long is waited for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(250);

const PEERS: [&str; 2] = ["fdaa:0:5::77:2", "fdaa:0:5::78:2"];
/// Addresses that no machine has, from which peers try it over IPv4.
const PEERS_V4: [&str; 2] = ["10.201.3.101", "10.201.3.102"];
/// The name server of their network, which is their way to everywhere.
const DNS_OF_PEERS: &str = "fdaa:0:5::3";

/// What passes over TCP, UDP and ICMP.
type Cell = &'static str;

/// To whom; then without policies and with those of [`policies`], each over IPv4 and IPv6.
const FROM_MACHINE: [(&str, [Cell; 2], [Cell; 2]); 11] = [
    //                    without policies   with policies
    //                     IPv4   IPv6        IPv4   IPv6
    ("same app", /*     */ ["---", "TUI"], ["---", "T--"]),
    ("same network", /* */ ["---", "TUI"], ["---", "T-I"]),
    ("other network", /**/ ["---", "---"], ["---", "---"]),
    ("other organization", ["---", "---"], ["---", "---"]),
    ("host", /*         */ ["---", "---"], ["---", "---"]),
    ("host outside", /* */ ["---", "---"], ["---", "---"]),
    ("LAN", /*          */ ["---", "---"], ["---", "---"]),
    ("metadata", /*     */ ["---", "---"], ["---", "---"]),
    ("internet", /*     */ ["TUI", "TUI"], ["T--", "T--"]),
    ("peer", /*         */ ["---", "TUI"], ["---", "T-I"]),
    ("other peer", /*   */ ["---", "TUI"], ["---", "T-I"]),
];
const FROM_PEER: [(&str, [Cell; 2], [Cell; 2]); 11] = [
    ("machine", /*      */ ["---", "TUI"], ["---", "TUI"]),
    ("same app", /*     */ ["---", "TUI"], ["---", "-U-"]),
    ("same network", /* */ ["---", "TUI"], ["---", "T-I"]),
    ("other network", /**/ ["---", "---"], ["---", "---"]),
    ("other organization", ["---", "---"], ["---", "---"]),
    ("host", /*         */ ["---", "---"], ["---", "---"]),
    ("host outside", /* */ ["---", "---"], ["---", "---"]),
    ("LAN", /*          */ ["---", "---"], ["---", "---"]),
    ("metadata", /*     */ ["---", "---"], ["---", "---"]),
    ("internet", /*     */ ["---", "---"], ["---", "---"]),
    ("other peer", /*   */ ["---", "---"], ["---", "---"]),
];

/// Everybody.
struct Scene {
    network: Network,
    machine: Machine,
    same_app: Machine,
    same_network: Machine,
    other_network: Machine,
    other_organization: Machine,
    peer: Machine,
    other_peer: Machine,
    world: Namespace,
    _tunnel: Namespace,
    _place: Place,
    _directory: TempDir,
}

impl Scene {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&directory);
        let network = place.start().await.unwrap();
        let world = outside(&directory);
        let machine = Machine::start(&network, &directory, 1, "fdaa:0:5:7::2").await;
        let same_app = Machine::start(&network, &directory, 2, "fdaa:0:5:8::2").await;
        let same_network = Machine::start(&network, &directory, 3, "fdaa:0:5:9::2").await;
        let other_network = Machine::start(&network, &directory, 4, "fdaa:0:6:7::2").await;
        let other_organization = Machine::start(&network, &directory, 5, "fdaa:7:5:7::2").await;
        let (_tunnel, [peer, other_peer]) = connected(&network, &directory).await;
        Self {
            network,
            machine,
            same_app,
            same_network,
            other_network,
            other_organization,
            peer,
            other_peer,
            world,
            _tunnel,
            _place: place,
            _directory: directory,
        }
    }

    /// Addresses of both families.
    fn addresses(&self, name: &str) -> [String; 2] {
        let of = |machine: &Machine| [machine.v4(), machine.v6()];
        let both = |addresses: [&str; 2]| addresses.map(str::to_owned);
        match name {
            "machine" => of(&self.machine),
            "same app" => of(&self.same_app),
            "same network" => of(&self.same_network),
            "other network" => of(&self.other_network),
            "other organization" => of(&self.other_organization),
            "peer" => of(&self.peer),
            "other peer" => of(&self.other_peer),
            "host" => [HOST_V4.to_string(), HOST_V6.to_string()],
            "host outside" => both(["203.0.113.1", "2001:db8:1::1"]),
            "LAN" => both(LAN),
            "internet" => both(WORLD),
            "metadata" => both(METADATA),
            other => panic!("{other}"),
        }
    }

    /// The table as it is found now, all of it at once.
    fn found(&self, from: &Machine, rows: &[(&'static str, [Cell; 2])]) -> Vec<String> {
        let tried = |address: String, expected: Cell| {
            let tried = |(protocol, letter): (Protocol, char)| {
                let patience = if expected.contains(letter) { TIMEOUT } else { SILENCE };
                if from.reaches(protocol, &address, PORT, patience) { letter } else { '-' }
            };
            PROTOCOLS.into_iter().zip("TUI".chars()).map(tried).collect::<String>()
        };
        thread::scope(|scope| {
            let trying: Vec<_> = rows
                .iter()
                .map(|(name, expected)| {
                    let cells = self.addresses(name).into_iter().zip(expected);
                    cells.map(|(to, cell)| scope.spawn(move || tried(to, cell))).collect::<Vec<_>>()
                })
                .collect();
            let rows = rows.iter().zip(trying);
            rows.map(|((name, _), cells)| {
                let cells = cells.into_iter().map(|cell| cell.join().unwrap());
                format!("{name}: {}", cells.collect::<Vec<_>>().join(" "))
            })
            .collect()
        })
    }

    fn check(&self, with_policies: bool) {
        let chosen = |rows: &[(&'static str, [Cell; 2], [Cell; 2])]| -> Vec<_> {
            let choose = |row: &(&'static str, [Cell; 2], [Cell; 2])| {
                (row.0, if with_policies { row.2 } else { row.1 })
            };
            rows.iter().map(choose).collect()
        };
        for (from, rows) in
            [(&self.machine, chosen(&FROM_MACHINE)), (&self.peer, chosen(&FROM_PEER))]
        {
            let expected: Vec<_> =
                rows.iter().map(|(name, cells)| format!("{name}: {}", cells.join(" "))).collect();
            assert_eq!(self.found(from, &rows), expected, "from {}", from.v6());
        }
    }

    /// What the machines of the network may do.
    fn policies(&self) -> Vec<MachinePolicy> {
        let (app, network) = ([&*self.machine.v6(), &self.same_app.v6()], ["fdaa:0:5::/48"]);
        let tcp = AllowedPort::Tcp(Some(PORT));
        let egress = vec![to(&[], &[tcp]), to(&network, &[AllowedPort::Icmp])];
        let of_app = vec![to(&app, &[tcp]), to(&["fdaa:0:5::/80"], &[AllowedPort::Udp(None)])];
        let of_network = vec![to(&network, &[tcp, AllowedPort::Icmp])];
        vec![
            MachinePolicy { egress: Some(egress), ..self.machine.policy() },
            MachinePolicy { ingress: Some(of_app), ..self.same_app.policy() },
            MachinePolicy { ingress: Some(of_network), ..self.same_network.policy() },
        ]
    }
}

/// Two computers whose packets come from the device of peers. A bridge stands for their tunnels.
async fn connected(network: &Network, place: &TempDir) -> (Namespace, [Machine; 2]) {
    let device = network.attach_peers(128, |name| {
        run(&format!("ip link add {name} type veth peer name tunnel"));
        std::fs::File::open("/dev/null")
    });
    drop(device.await.unwrap());
    network.route_peers(["fdaa:0:5::/48".parse().unwrap()].into()).await.unwrap();
    let listed = network.run_inside(&format!("ip -o link show {DEVICE}"));
    let way = listed.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned();

    let tunnel = Namespace::open(&place.path().join("tunnel")).unwrap();
    let links = Links::open_in(&network.namespace).unwrap();
    let end = links.index("tunnel").await.unwrap().unwrap();
    links.move_to(end, tunnel.descriptor()).await.unwrap();
    let bridged = tunnel.run(|| {
        run("ip link add br0 type bridge; ip link set br0 up; \
             ip link add peer0 type veth peer name end0; \
             ip link add peer1 type veth peer name end1; \
             for link in tunnel end0 end1; do ip link set $link master br0 up; done")
    });
    bridged.unwrap();
    let links = Links::open_in(&tunnel).unwrap();
    let mut peers = Vec::new();
    for (number, (ipv6, ipv4)) in PEERS.into_iter().zip(PEERS_V4).enumerate() {
        let card = format!("peer{number}");
        let inside = Namespace::open(&place.path().join(&card)).unwrap();
        let index = links.index(&card).await.unwrap().unwrap();
        links.move_to(index, inside.descriptor()).await.unwrap();
        // The real device has no neighbours to be asked for.
        let mac = format!("02:00:00:00:01:0{number}");
        network.run_inside(&format!("ip -6 neigh add {ipv6} lladdr {mac} dev {DEVICE}"));
        let addresses = MachineAddresses {
            ipv4: ipv4.parse().unwrap(),
            ipv6: ipv6.parse().unwrap(),
            ..super::machine()
        };
        let peer = Machine { addresses, inside };
        peer.run(&format!(
            "ip link set lo up; ip link set {card} name eth0 address {mac}; ip link set eth0 up; \
             ip address add {ipv6}/128 dev eth0 nodad; ip address add {ipv4}/32 dev eth0; \
             ip -6 neigh add {DNS_OF_PEERS} lladdr {way} dev eth0; \
             ip -6 route add default via {DNS_OF_PEERS} dev eth0 onlink; \
             ip neigh add 169.254.9.9 lladdr {way} dev eth0; \
             ip route add default via 169.254.9.9 dev eth0 onlink; \
             sysctl -q net.ipv4.ping_group_range='0 0'"
        ));
        answer_all(&peer.inside);
        peers.push(peer);
    }
    (tunnel, peers.try_into().ok().unwrap())
}

#[test]
fn machines_and_peers_reach_what_the_table_says_with_policies_and_without() {
    on_a_host(async || {
        let scene = Scene::new().await;
        // They are there, and answer whoever gets through.
        for address in [LAN, METADATA, WORLD].concat() {
            TcpStream::connect((address, PORT)).unwrap();
        }
        scene.check(false);
        // In force when this ends, and gone when that does.
        scene.network.set_policies(scene.policies()).await.unwrap();
        scene.check(true);
        scene.network.set_policies(Vec::new()).await.unwrap();
        scene.check(false);
    });
}

/// Sends something that begins a connection, and waits for nothing. It is over once what is
/// returned is closed.
fn begin(protocol: Protocol, from: IpAddr, to: IpAddr) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let (kind, of) = match (protocol, to) {
        (Protocol::Tcp, _) => (SockType::Stream, None),
        (Protocol::Udp, _) => (SockType::Datagram, None),
        (Protocol::Icmp, IpAddr::V4(_)) => (SockType::Datagram, Some(SockProtocol::Icmp)),
        (Protocol::Icmp, IpAddr::V6(_)) => (SockType::Datagram, Some(SockProtocol::IcmpV6)),
    };
    let opened = socket(family, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, of)?;
    bind(opened.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    match connect(opened.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, PORT))) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    if protocol != Protocol::Tcp {
        let request = [if to.is_ipv4() { 8 } else { 128 }, 0, 0, 0, 0, 0, 0, 1];
        send(opened.as_raw_fd(), &request, MsgFlags::empty())?;
    }
    Ok(opened)
}

/// Counts what comes in under some addresses, as the first thing that is done with it, where it
/// also fits `which`.
fn count(which: &str, sources: &[IpAddr]) {
    let rules = sources.iter().map(|source| {
        let family = if source.is_ipv4() { "ip" } else { "ip6" };
        format!("nft add rule inet seen come {which} {family} saddr {source} counter; ")
    });
    let made = "nft add table inet seen; nft add chain inet seen come \
                '{ type filter hook prerouting priority -400; }'; ";
    run(&(made.to_owned() + &rules.collect::<String>()));
}

/// The addresses under which something has come.
fn seen() -> Vec<String> {
    let listed = run("nft list table inet seen");
    let rules = listed.lines().filter(|line| line.contains(" counter "));
    let come = rules.filter(|line| !line.contains("packets 0 "));
    let source = |line: &str| line.split("saddr ").nth(1)?.split(' ').next().map(str::to_owned);
    come.filter_map(source).collect()
}

#[test]
fn nothing_comes_from_a_machine_or_a_peer_under_an_address_of_anybody_else() {
    on_a_host(async || {
        let scene = Scene::new().await;
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let of = |name: &str| scene.addresses(name).map(|address| ip(&address));
        let names = ["same network", "other network", "other organization", "host", "internet"];
        let service = ip("fdaa:0:5:0:1::1");
        let mut stolen: Vec<_> = names.into_iter().flat_map(of).collect();
        stolen.extend([ip(LAN[0]), ip(LAN[1]), DNS.into(), service, ip(DNS_OF_PEERS)]);
        let targets: Vec<_> = ["same app", "same network", "peer", "other peer", "internet"]
            .into_iter()
            .flat_map(of)
            .collect();
        for (sender, other) in [(&scene.machine, &scene.peer), (&scene.peer, &scene.machine)] {
            let own = [IpAddr::from(sender.addresses.ipv4), sender.addresses.ipv6.into()];
            let mut stolen = stolen.clone();
            stolen.extend([IpAddr::from(other.addresses.ipv4), other.addresses.ipv6.into()]);
            let counted: Vec<_> = stolen.iter().copied().chain(own).collect();
            // Where it may come to. The bridge in place of tunnels also brings multicast.
            let places = [&scene.same_app.inside, &scene.other_peer.inside, &scene.world];
            for place in places {
                let counted = counted.clone();
                place.run(move || count("meta pkttype host", &counted)).unwrap();
            }
            count("iifname caddis-0", &counted);
            for source in stolen {
                let device = if source.is_ipv4() { "eth0" } else { "eth0 nodad" };
                sender.run(&format!("ip address add {source} dev {device}"));
                for target in targets.iter().filter(|target| target.is_ipv4() == source.is_ipv4()) {
                    for protocol in PROTOCOLS {
                        let target = *target;
                        let begun = sender.inside.run(move || begin(protocol, source, target));
                        drop(begun.unwrap().unwrap());
                    }
                }
                sender.run(&format!("ip address del {source} dev eth0"));
            }
            // It has all come, or not, once this is answered.
            let reached = sender.reaches(Protocol::Udp, &scene.same_app.v6(), PORT, TIMEOUT);
            assert!(reached, "from {}", sender.v6());
            let own_v6 = [sender.v6()];
            let expected: [&[String]; 3] = [&own_v6, &[], &[]];
            for (place, expected) in places.into_iter().zip(expected) {
                let come = place.run(|| (seen(), run("nft delete table inet seen"))).unwrap().0;
                assert_eq!(come, expected, "from {own_v6:?}");
            }
            // Not even to the host.
            assert_eq!(seen(), Vec::<String>::new());
            run("nft delete table inet seen");
        }
    });
}
