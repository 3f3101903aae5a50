//! What WireGuard peers reach, and who reaches them. A pair of virtual cards stands for the device
//! and the tunnel: one end is the device, the other is in the namespace of a peer.

use std::{
    collections::BTreeSet,
    fs::File,
    io::ErrorKind,
    net::{Ipv6Addr, TcpListener, UdpSocket},
};

use super::{
    Place, on_a_host, run,
    services::{Machine, SILENCE, TIMEOUT},
};
use crate::{Network, links::Links, namespace::Namespace};

const PEER: &str = "fdaa:0:5::77:2";
const DNS_OF_PEERS: &str = "fdaa:0:5::3";

/// Something that answers on port 80 of every address there.
fn listen(machine: &Machine) -> TcpListener {
    machine.inside.run(|| TcpListener::bind("[::]:80").unwrap()).unwrap()
}

/// A computer whose packets come from the device of peers.
async fn connected(network: &Network, place: &tempfile::TempDir) -> Machine {
    let inside = Namespace::open(&place.path().join("peer")).unwrap();
    let device = network.attach_peers(128, |name| {
        run(&format!("ip link add {name} type veth peer name tunnel; ip link set tunnel up"));
        File::open("/dev/null")
    });
    drop(device.await.unwrap());
    let links = Links::open_in(&network.namespace).unwrap();
    let end = links.index("tunnel").await.unwrap().unwrap();
    links.move_to(end, inside.descriptor()).await.unwrap();
    network.route_peers(["fdaa:0:5::/48".parse().unwrap()].into()).await.unwrap();
    let mut addresses = super::machine();
    addresses.ipv6 = PEER.parse().unwrap();
    let peer = Machine { tap: "peer", addresses, inside };
    peer.run(&format!(
        "ip link set lo up; ip link set tunnel name eth0; ip link set eth0 up; \
         ip address add {PEER}/128 dev eth0 nodad; \
         ip -6 route add fdaa::/16 via {DNS_OF_PEERS} dev eth0 onlink"
    ));
    peer
}

#[test]
fn a_peer_reaches_machines_and_the_name_server_of_its_network_and_nothing_else() {
    on_a_host(async || {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&directory);
        let network = place.start().await.unwrap();
        let own = Machine::start(&network, &directory, "caddis1", "fdaa:0:5:7::2").await;
        let foreign = Machine::start(&network, &directory, "caddis2", "fdaa:0:6:7::2").await;
        let peer = connected(&network, &directory).await;
        let listeners = [&own, &foreign, &peer].map(listen);

        let client = peer.connect("fdaa:0:5:7::2", 80, TIMEOUT).unwrap();
        let (_, seen) = listeners[0].accept().unwrap();
        assert_eq!((seen, seen.ip()), (client.local_addr().unwrap(), PEER.parse().unwrap()));
        let client = own.connect(PEER, 80, TIMEOUT).unwrap();
        let (_, seen) = listeners[2].accept().unwrap();
        assert_eq!(seen, client.local_addr().unwrap());

        peer.fails("fdaa:0:6:7::2", 80, ErrorKind::TimedOut);
        peer.fails("fdaa::2", 80, ErrorKind::TimedOut);
        peer.fails(DNS_OF_PEERS, 80, ErrorKind::TimedOut);
        peer.fails("fdaa:0:5:0:1::1", 80, ErrorKind::ConnectionRefused);
        foreign.fails(PEER, 80, ErrorKind::ConnectionRefused);

        // Under the address of a machine, or of a peer of another network.
        for stolen in ["fdaa:0:5:7::9", "fdaa:0:6::77:2"] {
            peer.run(&format!(
                "ip address add {stolen}/128 dev eth0 nodad; \
                 ip -6 route replace fdaa::/16 via {DNS_OF_PEERS} dev eth0 onlink src {stolen}"
            ));
            peer.fails("fdaa:0:5:7::2", 80, ErrorKind::TimedOut);
        }
        peer.run(&format!(
            "ip -6 route replace fdaa::/16 via {DNS_OF_PEERS} dev eth0 onlink src {PEER}"
        ));

        // A query for `a.internal`, of type AAAA.
        let answer = peer.inside.run(|| {
            let query = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x01a\x08internal\0\0\x1c\0\x01";
            let socket = UdpSocket::bind("[::]:0").unwrap();
            socket.connect((DNS_OF_PEERS.parse::<Ipv6Addr>().unwrap(), 53)).unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.send(query).unwrap();
            let mut answer = [0; 512];
            socket.recv(&mut answer).unwrap();
            answer
        });
        let answer = answer.unwrap();
        assert_eq!((answer[..2].to_vec(), answer[3] & 15), (vec![0, 7], 3), "no such name");

        network.route_peers(BTreeSet::new()).await.unwrap();
        peer.fails("fdaa:0:5:7::2", 80, ErrorKind::TimedOut);
        let left = network.run_inside("ip -6 route show table all");
        assert!(!left.contains("fdaa:0:5::/80") && !left.contains(DNS_OF_PEERS), "{left}");
    });
}

#[test]
fn machines_are_told_what_the_end_of_the_tunnels_says_of_peers_that_are_not_there() {
    on_a_host(async || {
        const NOBODY: &str = "fdaa:0:5::99:2";
        let directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&directory);
        let network = place.start().await.unwrap();
        let own = Machine::start(&network, &directory, "caddis1", "fdaa:0:5:7::2").await;
        let peer = connected(&network, &directory).await;
        let mac_in = |listed: String| {
            let mac = listed.split("link/ether ").nth(1).unwrap();
            mac.split(' ').next().unwrap().to_owned()
        };
        let here = mac_in(network.run_inside("ip -o link show peers"));
        let there = mac_in(peer.inside.run(|| run("ip -o link show eth0")).unwrap());
        // It stands for the server, which answers from the name server's address.
        network.run_inside(&format!("ip -6 neigh add {NOBODY} lladdr {there} dev peers"));
        peer.run(&format!(
            "sysctl -q net.ipv6.conf.all.forwarding=1; \
             ip address add {DNS_OF_PEERS}/128 dev eth0 nodad; \
             ip -6 route flush fdaa::/16; \
             ip -6 route add fdaa::/16 dev eth0 src {DNS_OF_PEERS}; \
             ip -6 neigh add fdaa:0:5:7::2 lladdr {here} dev eth0; \
             ip -6 route add unreachable {NOBODY}"
        ));
        own.fails(NOBODY, 80, ErrorKind::NetworkUnreachable);
        // Nothing else comes under that address.
        let sent = peer.inside.run(|| UdpSocket::bind((DNS_OF_PEERS, 0)).unwrap()).unwrap();
        let receiver = own.inside.run(|| UdpSocket::bind("[::]:80").unwrap()).unwrap();
        sent.send_to(b"x", ("fdaa:0:5:7::2", 80)).unwrap();
        receiver.set_read_timeout(Some(SILENCE)).unwrap();
        assert_eq!(receiver.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    });
}
