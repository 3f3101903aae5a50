use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proptest::prelude::*;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(30);

fn endpoint(remote: SocketAddr) -> Endpoint {
    Endpoint { remote, local: None }
}

/// As many datagrams as are expected, each with its source.
fn received(socket: &Socket, count: usize) -> Vec<(Vec<u8>, Endpoint)> {
    let (mut receiver, mut all, begun) = (Receiver::new(), Vec::new(), Instant::now());
    while all.len() < count {
        assert!(begun.elapsed() < TIMEOUT, "{} of {count}", all.len());
        let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::from(1000_u16)).unwrap();
        let some = receiver.receive(socket).into_iter().flatten();
        all.extend(some.map(|(datagram, from)| (datagram.to_vec(), from)));
    }
    all
}

#[test]
fn what_is_sent_in_one_call_arrives_as_it_was_and_from_where_it_was_sent() {
    for (listen, host) in [("[::]:0", "::1"), ("[::]:0", "127.0.0.1"), ("127.0.0.1:0", "127.0.0.1")]
    {
        let open = || open_socket(listen.parse().unwrap()).unwrap();
        let (from, one, two) = (open(), open(), open());
        let at = |socket: &Socket| {
            let port = socket.socket.local_addr().unwrap().port();
            let host: IpAddr = host.parse().unwrap();
            // As a socket for both families has it.
            let mapped = match host {
                IpAddr::V4(host) if listen.starts_with('[') => host.to_ipv6_mapped().into(),
                host => host,
            };
            SocketAddr::new(mapped, port)
        };
        // More than one call takes, of sizes that end a run, and by turns for two.
        let sizes = [&[1452; 100][..], &[100], &[1452; 3], &[32, 96, 96, 1452, 1, 4000]].concat();
        let mut sent = Vec::new();
        for (number, size) in sizes.iter().enumerate() {
            let to = if number % 40 == 39 { &two } else { &one };
            let mut bytes = vec![number as u8; *size];
            bytes[0] = size.to_le_bytes()[0];
            sent.push((Buffer::copy_from(&bytes[..]), endpoint(at(to))));
        }
        let mut expected = BTreeMap::<u16, Vec<Vec<u8>>>::new();
        for (bytes, to) in &sent {
            expected.entry(to.remote.port()).or_default().push(bytes.to_vec());
        }
        from.send(&mut sent);
        assert!(sent.is_empty());
        for socket in [&one, &two] {
            let expected = &expected[&at(socket).port()];
            let found = received(socket, expected.len());
            assert!(found.iter().all(|(_, from_there)| from_there.remote == at(&from)));
            assert!(found.iter().all(|(_, asked)| asked.local == Some(at(socket).ip())));
            let found: Vec<_> = found.into_iter().map(|(datagram, _)| datagram).collect();
            assert!(found == *expected, "{listen}, {host}");
        }
    }
}

#[test]
fn what_is_larger_than_a_buffer_is_left_out_and_what_follows_is_not() {
    let socket = open_socket("127.0.0.1:0".parse().unwrap()).unwrap();
    let to = socket.socket.local_addr().unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    for size in [65_507, 4097, 0, 4096, 7] {
        client.send_to(&vec![1; size], to).unwrap();
    }
    let sizes: Vec<_> = received(&socket, 2).iter().map(|(bytes, _)| bytes.len()).collect();
    assert_eq!(sizes, [4096, 7]);
}

#[test]
fn datagrams_from_an_address_that_is_gone_leave_from_another() {
    let socket = open_socket("[::]:0".parse().unwrap()).unwrap();
    let other = open_socket("[::]:0".parse().unwrap()).unwrap();
    let port = other.socket.local_addr().unwrap().port();
    for (host, gone) in [("::1", "2001:db8::9"), ("::ffff:127.0.0.1", "::ffff:192.0.2.9")] {
        let remote = SocketAddr::new(host.parse().unwrap(), port);
        let to = Endpoint { remote, local: Some(gone.parse().unwrap()) };
        let mut sent = (0..3).map(|_| (Buffer::copy_from(&[1_u8; 9][..]), to)).collect();
        socket.send(&mut sent);
        assert_eq!(received(&other, 3).len(), 3, "{host}");
    }
}

proptest! {
    #[test]
    fn a_run_is_what_the_kernel_takes_in_one_call(
        datagrams in prop::collection::vec((0..3_u16, prop::sample::select(vec![
            0_usize, 32, 96, 96, 1452, 1452, 1452, 4000,
        ])), 1..200),
    ) {
        let datagrams: Vec<_> = datagrams
            .iter()
            .map(|(port, size)| {
                let remote = SocketAddr::from(([127, 0, 0, 1], 1 + port / 2));
                (Buffer::copy_from(&vec![0_u8; *size][..]), endpoint(remote))
            })
            .collect();
        let (together, rest) = datagrams.split_at(run(&datagrams));
        let (first, to) = &together[0];
        prop_assert!(together.iter().all(|(_, other)| other == to));
        let (last, others) = together.split_last().unwrap();
        prop_assert!(others.iter().all(|(datagram, _)| datagram.len() == first.len()));
        prop_assert!(last.0.len() <= first.len());
        prop_assert!(together.len() <= MOST);
        let bytes: usize = together.iter().map(|(datagram, _)| datagram.len()).sum();
        prop_assert!(bytes <= MOST_BYTES);
        // No shorter than it has to be.
        if let Some((next, other)) = rest.first() {
            let fits = other == to && last.0.len() == first.len() && next.len() <= first.len();
            let has_room = together.len() < MOST && bytes + first.len() <= MOST_BYTES;
            prop_assert!(!(fits && has_room && !next.is_empty()));
        }
    }
}
