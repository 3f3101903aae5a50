//! Packets of every size, and errors about them, on ways that are smaller than the machines' links.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use super::{
    HOST, Machine, OUTSIDE, OWN, Outside, Place, SHARED, TIMEOUT, assigned, connect, ip, on_a_host,
    run, start, udp,
};
use crate::{Assignments, MTU, Network, links::Links, namespace::Namespace};

/// Behind two routers with a smaller link between them.
const FAR: [&str; 2] = ["192.0.2.2", "2001:db8:2::2"];
/// That link's MTU, or that of the host's own, bytes.
const SMALL: u32 = 1300;
const PORT: u16 = 7;
/// What goes through a connection in each direction, bytes.
const BULK: usize = 256 << 10;
/// More than a packet holds on any link here.
const LARGE: usize = 3000;

/// A machine with an address of its own, one that shares one, and one without.
async fn machines(
    network: &Network,
    directory: &tempfile::TempDir,
) -> [(Machine, [&'static str; 2]); 3] {
    let own = Machine::start(network, directory, "caddis1", "fdaa:0:5:7::2").await;
    let shared = Machine::start(network, directory, "caddis2", "fdaa:0:5:8::2").await;
    let plain = Machine::start(network, directory, "caddis3", "fdaa:0:5:9::2").await;
    for machine in [&own, &shared, &plain] {
        machine.run(&format!("ip link set eth0 mtu {MTU}"));
    }
    let mut all = Assignments::new();
    all.extend(assigned(&own, OWN, None));
    all.extend(assigned(&shared, SHARED, Some((2048, 3071))));
    network.set_egress(all).await.unwrap();
    [(own, OWN), (shared, SHARED), (plain, HOST)]
}

/// Makes the way from the outside to [`FAR`], which answers there.
async fn beyond(outside: &Outside, directory: &tempfile::TempDir) -> [Namespace; 2] {
    let [edge, far] =
        ["edge", "far"].map(|name| Namespace::open(&directory.path().join(name)).unwrap());
    run("ip link add small type veth peer name small2; ip link add wide type veth peer name wide2");
    let links = Links::open().unwrap();
    for (link, to) in
        [("small", &outside.inside), ("small2", &edge), ("wide", &edge), ("wide2", &far)]
    {
        let index = links.index(link).await.unwrap().unwrap();
        links.move_to(index, to.descriptor()).await.unwrap();
    }
    // Under it a router asks for its neighbours.
    let local = |link: &str| format!("ip address add fe80::1/64 dev {link} nodad; ");
    let up = |link: &str, mtu: u32, v4: &str, v6: &str| {
        format!(
            "ip link set {link} mtu {mtu} up; ip address add {v4}/24 dev {link}; \
             ip address add {v6}/64 dev {link} nodad; {}",
            local(link)
        )
    };
    let forward = "sysctl -q net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; ";
    let routes = |to: [&str; 2], via: [&str; 2]| {
        format!("ip route add {} via {}; ip -6 route add {} via {}; ", to[0], via[0], to[1], via[1])
    };
    let networks = ["192.0.2.0/24", "2001:db8:2::/64"];
    let (first, second) = (["198.51.100.1", "2001:db8:1::1"], ["198.51.100.2", "2001:db8:1::2"]);
    let default = ["default", "default"];
    let inside = |namespace: &Namespace, command: String| {
        namespace.run(move || run(&command)).unwrap();
    };
    inside(
        &outside.inside,
        local("out")
            + &up("small", SMALL, first[0], first[1])
            + forward
            + &routes(networks, second),
    );
    inside(
        &edge,
        up("small2", SMALL, second[0], second[1])
            + &up("wide", 1500, "192.0.2.1", "2001:db8:2::1")
            + forward
            + &routes(default, first),
    );
    inside(
        &far,
        up("wide2", 1500, FAR[0], FAR[1]) + &routes(default, ["192.0.2.1", "2001:db8:2::1"]),
    );
    run(&routes(networks, OUTSIDE));
    [edge, far]
}

/// Answers in a namespace: over TCP with as much as came, over UDP with the same.
fn echo(inside: &Namespace, address: IpAddr) {
    let open = move || {
        (TcpListener::bind((address, PORT)).unwrap(), UdpSocket::bind((address, PORT)).unwrap())
    };
    let (listener, datagrams) = inside.run(open).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut bytes = vec![0; BULK];
            if stream.read_exact(&mut bytes).is_ok() {
                let _ = stream.write_all(&bytes);
            }
        }
    });
    thread::spawn(move || {
        let mut bytes = [0; LARGE];
        loop {
            // A packet may have been too large for the way back.
            let Ok((length, from)) = datagrams.recv_from(&mut bytes) else { continue };
            let _ = datagrams.send_to(&bytes[..length], from);
        }
    });
}

/// Whether much comes back over TCP as it was sent.
fn exchanges(mut stream: TcpStream) {
    let sent: Vec<u8> = (0..BULK).map(|number| (number % 251) as u8).collect();
    stream.write_all(&sent).unwrap();
    let mut received = vec![0; BULK];
    stream.read_exact(&mut received).unwrap();
    assert!(received == sent);
}

/// Sends a datagram in fragments until all of it comes back: the first ones find out how large
/// packets may be.
fn echoed(machine: &Machine, to: SocketAddr) {
    let socket = udp(machine, to);
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let sent: Vec<u8> = (0..LARGE).map(|number| (number % 251) as u8).collect();
    let begun = Instant::now();
    let mut received = [0; LARGE + 1];
    loop {
        // It is refused where the kernel has just learnt of a smaller way.
        let _ = socket.send(&sent);
        if let Ok(length) = socket.recv(&mut received) {
            return assert!(received[..length] == sent);
        }
        assert!(begun.elapsed() < TIMEOUT, "no datagram of {LARGE} bytes comes back from {to}");
    }
}

#[test]
fn a_smaller_link_on_the_way_is_found_in_both_directions() {
    on_a_host(async || {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&directory);
        let outside = Outside::start(&directory).await;
        let network = start(&place).await;
        let machines = machines(&network, &directory).await;
        let [_edge, far] = beyond(&outside, &directory).await;
        for family in [0, 1] {
            let to = SocketAddr::new(ip(FAR[family]), PORT);
            echo(&far, to.ip());
            for (machine, _) in &machines {
                exchanges(connect(machine, to, TIMEOUT).unwrap());
                echoed(machine, to);
                // The router's error came to the machine, whatever its address is outside.
                let route = format!("ip route get {}", FAR[family]);
                let route = machine.inside.run(move || run(&route)).unwrap();
                assert!(route.contains(&format!("mtu {SMALL}")), "{}: {route}", machine.tap);
            }
        }
    });
}

#[test]
fn segments_fit_through_a_smaller_link_of_the_host_itself_and_fragments_pass() {
    on_a_host(async || {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&directory);
        let outside = Outside::start(&directory).await;
        let network = start(&place).await;
        let machines = machines(&network, &directory).await;
        // What is larger is dropped in front of it without a word.
        run(&format!("ip link set eth0 mtu {SMALL}"));
        let count = |inside: &Namespace| {
            let rules = [("ip", SMALL - 40), ("ip6", SMALL - 60)].map(|(family, size)| {
                format!(
                    "nft add rule inet test come meta nfproto {} tcp flags syn / syn,rst \
                     tcp option maxseg size {size} counter; ",
                    if family == "ip" { "ipv4" } else { "ipv6" }
                )
            });
            let command = "nft add table inet test; nft add chain inet test come \
                           '{ type filter hook input priority filter; }'; "
                .to_owned()
                + &rules.concat();
            inside.run(move || run(&command)).unwrap();
        };
        count(&outside.inside);
        // Of both families; one that was lost has come again.
        let counted = |inside: &Namespace, least: usize| {
            let listed = inside.run(|| run("nft list table inet test")).unwrap();
            let counts = listed.split("counter packets ").skip(1);
            let counts: Vec<usize> =
                counts.map(|rest| rest.split(' ').next().unwrap().parse().unwrap()).collect();
            assert!(counts.len() == 2 && counts.iter().all(|count| *count >= least), "{listed}");
        };
        for (machine, _) in &machines {
            count(&machine.inside);
        }
        for family in [0, 1] {
            let to = SocketAddr::new(ip(OUTSIDE[family]), PORT);
            for (machine, from) in &machines {
                let stream = connect(machine, to, TIMEOUT).unwrap();
                let (mut accepted, seen) = outside.tcp[family].accept().unwrap();
                assert_eq!(seen.ip(), ip(from[family]));
                let answering = thread::spawn(move || {
                    let mut bytes = vec![0; BULK];
                    accepted.read_exact(&mut bytes).unwrap();
                    accepted.write_all(&bytes).unwrap();
                });
                exchanges(stream);
                answering.join().unwrap();
                // In fragments, as they fit.
                let socket = udp(machine, to);
                outside.udp[family].set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                let begun = Instant::now();
                let mut bytes = [0; LARGE + 1];
                let (length, seen) = loop {
                    let _ = socket.send(&[7; LARGE]);
                    if let Ok(received) = outside.udp[family].recv_from(&mut bytes) {
                        break received;
                    }
                    assert!(begun.elapsed() < TIMEOUT);
                };
                assert_eq!((length, seen.ip()), (LARGE, ip(from[family])));
                while outside.udp[family].recv_from(&mut bytes).is_ok() {}
            }
        }
        counted(&outside.inside, machines.len());
        for (machine, _) in &machines {
            counted(&machine.inside, 1);
        }
    });
}

#[test]
fn errors_about_packets_come_to_who_has_sent_them_in_both_directions() {
    on_a_host(async || {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&directory);
        let outside = Outside::start(&directory).await;
        let network = start(&place).await;
        let machines = machines(&network, &directory).await;
        for family in [0, 1] {
            for (machine, from) in &machines {
                // Nobody listens there.
                let socket = udp(machine, SocketAddr::new(ip(OUTSIDE[family]), 9));
                socket.send(b"x").unwrap();
                let error = socket.recv(&mut [0]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{}", machine.tap);

                // Here nobody does any more once the answer comes.
                let to = SocketAddr::new(ip(OUTSIDE[family]), 10);
                let asked = outside.inside.run(move || UdpSocket::bind(to).unwrap()).unwrap();
                asked.set_read_timeout(Some(TIMEOUT)).unwrap();
                let asking = udp(machine, to);
                asking.send(b"ask").unwrap();
                let (_, seen) = asked.recv_from(&mut [0; 8]).unwrap();
                assert_eq!(seen.ip(), ip(from[family]));
                drop(asking);
                asked.connect(seen).unwrap();
                asked.send(b"answer").unwrap();
                let error = asked.recv(&mut [0]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{}", machine.tap);
            }
        }
    });
}
