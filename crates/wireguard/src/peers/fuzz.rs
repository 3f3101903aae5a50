//! Datagrams that are damaged in all ways, and packets of a peer that means harm.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{tests::*, *};
use crate::packet::tests::packet;

/// Changes bits, bytes or the length.
fn damage(random: &mut StdRng, input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..bytes.len().max(1));
        match random.random_range(0..7) {
            0..3 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (at % 8)),
            3 => bytes.iter_mut().skip(at).take(8).for_each(|byte| *byte = random.random()),
            4 => bytes.truncate(at),
            5 => bytes.iter_mut().take(4).for_each(|byte| *byte = random.random_range(0..6)),
            _ => bytes.resize(random.random_range(0..2000), random.random()),
        }
    }
    bytes
}

fn cases() -> (u32, StdRng) {
    let seed = std::env::var("CADDIS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("CADDIS_SEED={seed}");
    let cases = if std::env::var_os("CADDIS_SOAK").is_some() { 20_000_000 } else { 20_000 };
    (cases, StdRng::seed_from_u64(seed))
}

#[test]
fn of_what_is_damaged_or_comes_again_nothing_passes_and_no_answer_is_larger() {
    let server = PrivateKey::random();
    let mut client = Client::new(&server, "fdaa:1:2::8:2");
    let mut place = Place::new(&[&client], &server);
    let (own, machine) = (client.peer.address, ip("fdaa:1:2:9::2"));
    // One message of each kind that the server may get, all of which it has had.
    let first = client.tunnel.send(Buffer::copy_from(&packet(own, machine, b"1")[..])).unwrap();
    let mut sound = vec![first.bytes.to_vec()];
    place.exchange(&mut client, vec![first]);
    for size in [0, 100, 1380] {
        let sealed =
            client.tunnel.send(Buffer::copy_from(&packet(own, machine, &vec![1; size])[..]));
        let sealed = sealed.unwrap();
        sound.push(sealed.bytes.to_vec());
        place.exchange(&mut client, vec![sealed]);
    }
    // The server begins a session, too, and the client answers.
    let mut other = Client::new(&server, "fdaa:1:2::9:2");
    let begun = other.protocol.tunnel(&server.public()).send(Buffer::copy_from(&b"x"[..]));
    sound.push(begun.unwrap().bytes.to_vec());
    sound.extend([vec![2; 92], vec![3; 64]]);
    for (message, kind) in sound.iter_mut().rev().zip([3, 2]) {
        message[..4].copy_from_slice(&[kind, 0, 0, 0]);
    }
    other.at = socket("[2001:db8::66]:7");

    let (cases, mut random) = cases();
    let (before, count) = (place.status(&client), place.received.len());
    let mut effects = Effects::default();
    for case in 0..cases {
        let input = &sound[random.random_range(0..sound.len())];
        let input = if case % 8 == 0 { input.clone() } else { damage(&mut random, input) };
        let from = if random.random() { client.at } else { other.at };
        place.peers.take_datagram(Buffer::copy_from(&input[..]), from, &mut effects);
        assert!(effects.packets.is_empty(), "{input:?}");
        for (answer, to) in effects.datagrams.drain(..) {
            assert!(answer.len() <= input.len() && to == from, "{input:?}");
        }
        if case % 1000 == 0 {
            assert!(place.peers.sessions.read().len() <= 18);
            client.send(&mut place, &packet(own, machine, b"still here"));
            place.send(&mut client, &packet(machine, own, b"and here"));
        }
    }
    let checks = cases.div_ceil(1000) as usize;
    assert_eq!(place.received.len(), count + checks);
    assert_eq!(client.received.len(), checks);
    let after = place.status(&client);
    assert_eq!((after.endpoint, after.refused), (Some(client.at.remote), 0));
    assert_eq!(after.last_handshake, before.last_handshake);
}

#[test]
fn of_what_a_peer_sends_passes_what_is_its_own_and_for_its_network() {
    let (mut place, mut client) = connected();
    let (own, machine) = (client.peer.address, ip("fdaa:1:2:9::2"));
    let (cases, mut random) = cases();
    for _ in 0..cases {
        let payload = vec![random.random(); random.random_range(0..60)];
        let sent = damage(&mut random, &packet(own, machine, &payload));
        client.send(&mut place, &sent);
        // It is padded before it is sealed.
        let mut padded = sent.clone();
        padded.resize(sent.len().next_multiple_of(16), 0);
        for passed in place.received.drain(..) {
            let header = packet::read(&passed).unwrap();
            assert!(padded.starts_with(&passed) && header.length == passed.len(), "{sent:?}");
            assert_eq!(header.source, own, "{sent:?}");
            assert!(client.peer.network.contains(&header.destination), "{sent:?}");
            assert!(packet::is_reached_by_peers(header.destination), "{sent:?}");
        }
    }
}
