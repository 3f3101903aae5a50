//! Connections for which there is no port, or no room in the kernel's table of them.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr},
    time::Instant,
};

use super::{
    ICMP, Machine, OUTSIDE, Outside, Place, SHARED, TCP, TIMEOUT, UDP, assigned, ip, on_a_host,
    reached, run, start, udp,
};
use crate::netlink::{NESTED, Socket, attribute};

/// Of 1024 ports. NAT looks for a free one at random places, and gives up after some 250: with more
/// connections than these it drops the first packet of one now and then.
const ALWAYS_FOUND: u32 = 700;

#[test]
fn a_machine_without_a_free_port_is_refused_at_once_and_the_server_told() {
    on_a_host(async || {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&directory);
        let outside = Outside::start(&directory).await;
        let network = start(&place).await;
        let machine = Machine::start(&network, &directory, "caddis1", "fdaa:0:5:7::2").await;
        let assignments = assigned(&machine, SHARED, Some((1024, 2047)));
        network.set_egress(assignments.clone().into()).await.unwrap();
        let mut refused = network.refused().unwrap();
        for family in [0, 1] {
            let to = SocketAddr::new(ip(OUTSIDE[family]), 7);
            let mut senders = Vec::new();
            let before = network.tracked().await.unwrap().dropped;
            for number in 0..1023 {
                if number == ALWAYS_FOUND {
                    let dropped = network.tracked().await.unwrap().dropped;
                    assert_eq!(dropped, before, "first packets of {number} connections");
                }
                let sender = udp(&machine, to);
                reached(&outside.udp[family], &sender);
                senders.push(sender);
            }
            let last = udp(&machine, to);
            last.send(b"one more").unwrap();
            let error = last.recv(&mut [0]).unwrap_err();
            let expected =
                if family == 0 { ErrorKind::HostUnreachable } else { ErrorKind::PermissionDenied };
            assert_eq!(error.kind(), expected);
            let own = assignments[family].machine;
            refused.wait_for(|refused| refused.contains_key(&own)).await.unwrap();
            // Elsewhere there are ports, and over another protocol.
            outside.sees(&machine, TCP, family);
            outside.sees(&machine, ICMP, family);
        }
        let counted = run("nft list chain inet caddis-0 exhausted");
        assert!(counted.contains("counter packets 2 "), "{counted}");
    });
}

/// Fills the table of connections of the calling thread's namespace with some that the kernel does
/// not forget to make room.
fn fill(count: u64) {
    const NEW: u16 = 1 << 8;
    /// Seen both ways, assured, in the table.
    const STATUS: u32 = 2 | 4 | 8;
    let tuple = |kind: u16, from: u32, to: u32| {
        let ends = [attribute(1, &from.to_be_bytes()), attribute(2, &to.to_be_bytes())].concat();
        let port = 7_u16.to_be_bytes();
        let ports = [attribute(1, &[17]), attribute(2, &port), attribute(3, &port)].concat();
        let tuple = [attribute(1 | NESTED, &ends), attribute(2 | NESTED, &ports)].concat();
        attribute(kind | NESTED, &tuple)
    };
    let to = u32::from(Ipv4Addr::new(10, 0, 0, 1));
    let mut socket = Socket::open().unwrap();
    for number in 0..count as u32 {
        let from = u32::from(Ipv4Addr::new(11, 0, 0, 0)) + number;
        let body = [
            tuple(1, from, to),
            tuple(2, to, from),
            attribute(3, &STATUS.to_be_bytes()),
            attribute(7, &3600_u32.to_be_bytes()),
        ];
        match socket.make(NEW, libc::AF_INET as u8, &body.concat()).unwrap() {
            0 => {}
            // There were some before.
            code => return assert_eq!(code, libc::ENOMEM),
        }
    }
}

#[test]
fn a_full_table_of_connections_is_told_with_what_the_kernel_drops_for_it() {
    on_a_host(async || {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&directory);
        let outside = Outside::start(&directory).await;
        let network = start(&place).await;
        let machine = Machine::start(&network, &directory, "caddis1", "fdaa:0:5:7::2").await;
        outside.sees(&machine, UDP, 0);
        let before = network.tracked().await.unwrap();
        assert!(!before.is_full() && before.count > 0, "{before:?}");
        fill(before.most);
        let sender = udp(&machine, SocketAddr::new(ip(OUTSIDE[0]), 7));
        let begun = Instant::now();
        loop {
            sender.send(b"lost").unwrap();
            let now = network.tracked().await.unwrap();
            assert!(now.is_full() && now.most == before.most, "{now:?}");
            if now.dropped > before.dropped {
                break;
            }
            assert!(begun.elapsed() < TIMEOUT, "{now:?}");
        }
    });
}
