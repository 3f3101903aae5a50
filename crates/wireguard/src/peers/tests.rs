use proptest::prelude::*;

use super::*;
use crate::packet::tests::packet;

const NETWORK: &str = "fdaa:1:2::/48";

pub(super) fn ip(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

pub(super) fn socket(text: &str) -> Endpoint {
    Endpoint { remote: text.parse().unwrap(), local: None }
}

/// A computer of a user.
pub(super) struct Client {
    pub(super) protocol: Protocol,
    pub(super) tunnel: Tunnel,
    pub(super) peer: Peer,
    pub(super) at: Endpoint,
    /// What it was told.
    pub(super) received: Vec<Vec<u8>>,
}

pub(super) struct Place {
    pub(super) peers: Peers,
    /// What machines were told.
    pub(super) received: Vec<Vec<u8>>,
}

impl Place {
    pub(super) fn new(clients: &[&Client], key: &PrivateKey) -> Self {
        let peers = Peers::new(key);
        peers.replace(clients.iter().map(|client| client.peer.clone()).collect()).unwrap();
        Self { peers, received: Vec::new() }
    }

    /// Moves datagrams until there are none; all that was sent to elsewhere than the client is
    /// lost, and counted.
    pub(super) fn exchange(&mut self, client: &mut Client, to_server: Vec<Sealed>) -> usize {
        let mut lost = 0;
        let mut to_server: Vec<_> = to_server.into_iter().map(|sealed| sealed.bytes).collect();
        while !to_server.is_empty() {
            let mut effects = Effects::default();
            for datagram in to_server.drain(..) {
                self.peers.take_datagram(datagram, client.at, &mut effects);
            }
            to_server = self.finish(client, effects, &mut lost);
        }
        lost
    }

    fn finish(&mut self, client: &mut Client, effects: Effects, lost: &mut usize) -> Vec<Buffer> {
        self.received.extend(effects.packets.iter().map(|packet| packet.to_vec()));
        let mut answers = Vec::new();
        for (datagram, to) in effects.datagrams {
            if to == client.at {
                answers.extend(client.take(datagram).into_iter().map(|sealed| sealed.bytes));
            } else {
                *lost += 1;
            }
        }
        answers
    }

    /// A machine sends something.
    pub(super) fn send(&mut self, client: &mut Client, packet: &[u8]) -> usize {
        let mut effects = Effects::default();
        self.peers.take_packet(Buffer::copy_from(packet), &mut effects);
        let mut lost = 0;
        let answers = self.finish(client, effects, &mut lost);
        let answers = answers.into_iter().map(|bytes| Sealed { bytes, session: None }).collect();
        lost + self.exchange(client, answers)
    }

    pub(super) fn status(&self, client: &Client) -> PeerStatus {
        self.peers.status(&client.peer.key).unwrap()
    }
}

impl Client {
    pub(super) fn new(server: &PrivateKey, address: &str) -> Self {
        let key = PrivateKey::random();
        let protocol = Protocol::new(&key);
        let tunnel = protocol.tunnel(&server.public());
        let peer =
            Peer { key: key.public(), address: ip(address), network: NETWORK.parse().unwrap() };
        Self { protocol, tunnel, peer, at: socket("192.0.2.1:1000"), received: Vec::new() }
    }

    /// What a datagram from the server brings about.
    fn take(&mut self, datagram: Buffer) -> Vec<Sealed> {
        let message = match self.protocol.open(datagram, socket("192.0.2.9:51820").remote) {
            Opened::From(_, message) | Opened::Of(_, message) => message,
            _ => panic!("no message for it"),
        };
        match self.tunnel.receive(message) {
            Received::Begun(answer) => vec![answer],
            Received::Confirmed(answer) => {
                let mut sealed = vec![answer];
                sealed.extend(self.tunnel.waiting());
                sealed
            }
            Received::Packet(packet) => {
                let length = crate::packet::read(&packet).map_or(0, |header| header.length);
                self.received.extend((length > 0).then(|| packet[..length].to_vec()));
                self.tunnel.waiting()
            }
            Received::Nothing => Vec::new(),
            Received::Rejected => panic!("the server's message was rejected"),
        }
    }

    pub(super) fn send(&mut self, place: &mut Place, packet: &[u8]) -> usize {
        let sealed = self.tunnel.send(Buffer::copy_from(packet));
        place.exchange(self, sealed.into_iter().collect())
    }
}

/// A server with one client that has a session.
pub(super) fn connected() -> (Place, Client) {
    let server = PrivateKey::random();
    let mut client = Client::new(&server, "fdaa:1:2::8:2");
    let mut place = Place::new(&[&client], &server);
    client.send(&mut place, &packet(client.peer.address, ip("fdaa:1:2:9::2"), b"hello"));
    assert_eq!(place.received.len(), 1);
    place.received.clear();
    (place, client)
}

#[test]
fn a_peer_reaches_its_network_and_is_reached_from_it() {
    let (mut place, mut client) = connected();
    let machine = ip("fdaa:1:2:9::2");
    for size in [0, 1, 15, 16, 1380] {
        let (there, back) = (
            packet(client.peer.address, machine, &vec![1; size]),
            packet(machine, client.peer.address, &vec![2; size]),
        );
        client.send(&mut place, &there);
        place.send(&mut client, &back);
        assert_eq!(place.received.pop().unwrap(), there, "{size}");
        assert_eq!(client.received.pop().unwrap(), back, "{size}");
    }
    let status = place.status(&client);
    assert_eq!(status.endpoint, Some(client.at.remote));
    assert!(status.last_handshake.is_some() && status.received > 1380 && status.sent > 1380);
    assert_eq!(status.refused, 0);
}

#[test]
fn what_is_not_from_its_own_address_or_not_for_its_network_is_dropped() {
    let (mut place, mut client) = connected();
    let (own, machine) = (client.peer.address, ip("fdaa:1:2:9::2"));
    let mut version_4 = packet(own, machine, &[]);
    version_4[0] = 0x45;
    let mut too_short = packet(own, machine, &[1; 99]);
    too_short.truncate(44);
    let refused = [
        packet(ip("fdaa:1:2::8:3"), machine, &[]),
        packet(machine, own, &[]),
        packet(ip("fdaa::3"), machine, &[]),
        packet(ip("fe80::1"), machine, &[]),
        packet(own, ip("fdaa:1:3:9::2"), &[]),
        packet(own, ip("fdaa:1:2::9:2"), &[]),
        packet(own, ip("fdaa:1:2:0:1::7"), &[]),
        packet(own, ip("fdaa::2"), &[]),
        packet(own, ip("fdaa::3"), &[]),
        packet(own, ip("2001:db8::1"), &[]),
        packet(own, ip("ff02::1"), &[]),
        version_4,
        too_short,
        b"?".to_vec(),
    ];
    for packet in &refused {
        client.send(&mut place, packet);
    }
    assert!(place.received.is_empty());
    assert_eq!(place.status(&client).refused, refused.len() as u64);
    client.send(&mut place, &packet(own, ip("fdaa:1:2::3"), b"dns"));
    assert_eq!(place.received.len(), 1);
}

#[test]
fn what_is_from_another_network_does_not_reach_a_peer() {
    let (mut place, mut client) = connected();
    let own = client.peer.address;
    for source in ["fdaa:1:3:9::2", "fdaa::2", "fe80::1", "2001:db8::1"] {
        place.send(&mut client, &packet(ip(source), own, &[]));
    }
    assert!(client.received.is_empty() && place.received.is_empty());
}

#[test]
fn who_is_no_peer_gets_no_answer() {
    let server = PrivateKey::random();
    let mut stranger = Client::new(&server, "fdaa:1:2::8:2");
    let known = Client::new(&server, "fdaa:1:2::9:2");
    let place = Place::new(&[&known], &server);
    let first = stranger.tunnel.send(Buffer::copy_from(&b"x"[..])).unwrap();
    let mut effects = Effects::default();
    place.peers.take_datagram(first.bytes, stranger.at, &mut effects);
    assert!(effects.datagrams.is_empty() && effects.packets.is_empty());
    assert!(!place.peers.are_active());
}

#[test]
fn peers_that_could_not_be_told_apart_are_refused_and_nothing_changes() {
    let server = PrivateKey::random();
    let client = Client::new(&server, "fdaa:1:2::8:2");
    let place = Place::new(&[&client], &server);
    let first = client.peer.clone();
    let key = || PrivateKey::random().public();
    let other = |peer: Peer| vec![first.clone(), peer];
    let network = first.network;
    let cases = [
        other(Peer { address: ip("fdaa:1:2::9:2"), ..first.clone() }),
        other(Peer { key: key(), ..first.clone() }),
        other(Peer { key: key(), address: ip("fdaa:1:3::9:2"), network }),
        other(Peer { key: server.public(), address: ip("fdaa:1:2::9:2"), network }),
    ];
    let messages = cases.map(|peers| place.peers.replace(peers).unwrap_err().to_string());
    let expected =
        ["have the public key", "have the address", "not in its network", "the server's own"];
    for (message, expected) in messages.iter().zip(expected) {
        assert!(message.contains(expected), "{message}");
    }
    assert!(place.peers.status(&first.key).is_some());
}

#[test]
fn a_peer_that_is_removed_or_moved_loses_its_session_and_others_keep_theirs() {
    let server = PrivateKey::random();
    let mut stays = Client::new(&server, "fdaa:1:2::8:2");
    let mut goes = Client::new(&server, "fdaa:1:2::9:2");
    let mut place = Place::new(&[&stays, &goes], &server);
    let from = |client: &Client| packet(client.peer.address, ip("fdaa:1:2:9::2"), &[]);
    for client in [&mut stays, &mut goes] {
        client.send(&mut place, &from(client));
    }
    assert_eq!(place.received.len(), 2);
    place.peers.replace(vec![stays.peer.clone()]).unwrap();
    goes.send(&mut place, &from(&goes));
    assert_eq!(place.received.len(), 2);
    assert_eq!(place.peers.status(&goes.peer.key), None);
    let handshake = place.status(&stays).last_handshake;
    stays.send(&mut place, &from(&stays));
    assert_eq!(place.received.len(), 3);
    assert_eq!(place.status(&stays).last_handshake, handshake);

    let moved = Peer { address: ip("fdaa:1:2::7:2"), ..stays.peer.clone() };
    place.peers.replace(vec![moved]).unwrap();
    stays.send(&mut place, &from(&stays));
    assert_eq!(place.received.len(), 3);
    assert!(!place.peers.are_active());
}

#[test]
fn a_peer_is_followed_to_where_it_sends_from_but_not_to_where_a_recording_is_sent_from() {
    let server = PrivateKey::random();
    let mut client = Client::new(&server, "fdaa:1:2::8:2");
    let mut place = Place::new(&[&client], &server);
    let (own, machine) = (client.peer.address, ip("fdaa:1:2:9::2"));
    let first = client.tunnel.send(Buffer::copy_from(&packet(own, machine, &[])[..])).unwrap();
    let recording = first.bytes.to_vec();
    place.exchange(&mut client, vec![first]);
    let home = client.at;
    assert_eq!(place.status(&client).endpoint, Some(home.remote));

    client.at = socket("[2001:db8::7]:9");
    client.send(&mut place, &packet(own, machine, &[]));
    assert_eq!(place.status(&client).endpoint, Some(client.at.remote));
    assert_eq!(place.send(&mut client, &packet(machine, own, b"back")), 0);
    assert_eq!(client.received.len(), 1);

    let mut effects = Effects::default();
    let thief = socket("198.51.100.1:1");
    place.peers.take_datagram(Buffer::copy_from(&recording[..]), thief, &mut effects);
    assert!(effects.datagrams.is_empty(), "not even an answer");
    assert_eq!(place.status(&client).endpoint, Some(client.at.remote));

    // A server that was started again does not know the time of the last handshake.
    place.peers = Peers::new(&server);
    place.peers.replace(vec![client.peer.clone()]).unwrap();
    place.peers.take_datagram(Buffer::copy_from(&recording[..]), thief, &mut effects);
    assert_eq!(place.status(&client).endpoint, None);
}

#[test]
fn machines_are_told_of_peers_that_are_not_there() {
    let server = PrivateKey::random();
    let mut client = Client::new(&server, "fdaa:1:2::8:2");
    let mut place = Place::new(&[&client], &server);
    let (own, machine) = (client.peer.address, ip("fdaa:1:2:9::2"));
    place.send(&mut client, &packet(machine, own, &[]));
    place.send(&mut client, &packet(machine, ip("fdaa:1:2::99:2"), &[]));
    let codes: Vec<_> = place.received.iter().map(|error| error[41]).collect();
    assert_eq!(codes, [3, 0]);
    assert!(!place.peers.are_active());
}

#[test]
fn machines_are_told_of_a_peer_that_has_gone_until_it_is_back() {
    let (mut place, mut client) = connected();
    let (own, machine) = (client.peer.address, ip("fdaa:1:2:9::2"));
    // None arrives. How many datagrams there were, and codes of errors.
    let lose = |place: &Place| {
        let mut effects = Effects::default();
        place.peers.take_packet(Buffer::copy_from(&packet(machine, own, b"x")[..]), &mut effects);
        let codes: Vec<_> = effects.packets.iter().map(|error| error[41]).collect();
        (effects.datagrams.len(), codes)
    };
    let key = client.peer.key;
    let wait = |place: &Place, is_silent: bool| {
        let entry = place.peers.table.read().by_key[&key].clone();
        let mut state = entry.state.lock();
        let earlier = |at: Instant| at.checked_sub(UNANSWERED_TIMEOUT).unwrap();
        let waited = |(since, last)| (earlier(since), if is_silent { earlier(last) } else { last });
        state.unanswered = state.unanswered.map(waited);
    };
    wait(&place, false);
    assert_eq!(lose(&place), (1, vec![]), "it was silent, but nothing was sent to it");
    assert_eq!(lose(&place), (1, vec![]));
    wait(&place, false);
    for _ in 0..2 {
        assert_eq!(lose(&place), (1, vec![3]), "told, and tried again");
    }
    wait(&place, true);
    assert_eq!(lose(&place), (1, vec![]), "after a pause it may be there again");
    wait(&place, false);
    assert_eq!(lose(&place), (1, vec![3]));
    client.send(&mut place, &packet(own, machine, b"back"));
    assert_eq!(lose(&place), (1, vec![]));
}

#[test]
fn peers_that_are_only_configured_have_nothing_to_be_looked_at() {
    let server = PrivateKey::random();
    let network = NETWORK.parse().unwrap();
    let peer = |number: u32| {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        let address = ip("fdaa:1:2::").to_bits() | u128::from(number) << 16 | 2;
        Peer { key: PublicKey(key), address: Ipv6Addr::from_bits(address), network }
    };
    let peers = Peers::new(&server);
    peers.replace((1..=1000).map(peer).collect()).unwrap();
    assert!(!peers.are_active());
    assert!(peers.sessions.read().is_empty());
    let table = peers.table.read();
    assert_eq!(table.by_key.len(), 1000);
    assert!(table.by_key.values().all(|entry| entry.state.lock().tunnel.is_none()));
}

#[test]
fn a_handshake_that_was_changed_on_its_way_leaves_nothing() {
    let server = PrivateKey::random();
    let mut client = Client::new(&server, "fdaa:1:2::8:2");
    let place = Place::new(&[&client], &server);
    let sealed = client.tunnel.send(Buffer::copy_from(&b"x"[..])).unwrap();
    let bytes = sealed.bytes.to_vec();
    let mut effects = Effects::default();
    // The last 16 bytes matter to a server under load only.
    for at in 0..bytes.len() - 16 {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let changed = Buffer::copy_from(&changed[..]);
        place.peers.take_datagram(changed, client.at, &mut effects);
    }
    assert!(effects.datagrams.is_empty() && !place.peers.are_active());
    let entry = place.peers.table.read().by_key[&client.peer.key].clone();
    assert!(entry.state.lock().tunnel.is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_datagram_or_packet_is_taken_without_harm(
        kind in 0_u8..6,
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        length in 0_usize..300,
    ) {
        let (place, client) = connected();
        let mut effects = Effects::default();
        let mut datagram = bytes.clone();
        datagram.truncate(length);
        place.peers.take_packet(Buffer::copy_from(&datagram[..]), &mut effects);
        for size in [datagram.len(), 148, 92, 64] {
            datagram.resize(size, 3);
            if let Some(first) = datagram.first_mut() {
                *first = kind;
                datagram.iter_mut().skip(1).take(3).for_each(|byte| *byte = 0);
            }
            place.peers.take_datagram(Buffer::copy_from(&datagram[..]), client.at, &mut effects);
        }
        prop_assert!(effects.datagrams.is_empty());
    }
}

#[cfg(feature = "moved-clock")]
mod moved_clock {
    use std::time::Duration;

    use mock_instant::thread_local::MockClock;

    use super::*;

    /// Both ends look at the clock every quarter of a second.
    fn pass(place: &mut Place, client: &mut Client, seconds: u64) {
        for _ in 0..seconds * 4 {
            MockClock::advance(Duration::from_millis(250));
            let mut effects = Effects::default();
            place.peers.tick(&mut effects);
            let mut lost = 0;
            let answers = place.finish(client, effects, &mut lost);
            let mut sent: Vec<_> =
                answers.into_iter().map(|bytes| Sealed { bytes, session: None }).collect();
            if let Tick::Send(sealed) = client.tunnel.tick() {
                sent.push(sealed);
            }
            place.exchange(client, sent);
        }
    }

    fn sessions(place: &Place) -> usize {
        let known = place.peers.sessions.read();
        known.keys().filter(|number| place.peers.protocol.has_session(**number)).count()
    }

    #[test]
    fn traffic_goes_on_over_new_sessions_and_none_is_lost() {
        MockClock::advance(Duration::from_secs(1));
        let (mut place, mut client) = connected();
        let (own, machine) = (client.peer.address, ip("fdaa:1:2:9::2"));
        let mut handshakes = std::collections::BTreeSet::new();
        for second in 0..1000_usize {
            client.send(&mut place, &packet(own, machine, &second.to_be_bytes()));
            place.send(&mut client, &packet(machine, own, &second.to_be_bytes()));
            assert_eq!((place.received.len(), client.received.len()), (second + 1, second + 1));
            handshakes.extend(place.status(&client).last_handshake);
            pass(&mut place, &mut client, 1);
        }
        assert!((8..=9).contains(&handshakes.len()), "every 120 s: {}", handshakes.len());
        assert!(sessions(&place) <= 3);
        assert!(place.peers.sessions.read().len() <= 18, "ended ones are forgotten");
    }

    #[test]
    fn a_peer_that_fell_silent_costs_nothing_again_and_both_ends_can_begin_anew() {
        MockClock::advance(Duration::from_secs(1));
        let (mut place, mut client) = connected();
        let (own, machine) = (client.peer.address, ip("fdaa:1:2:9::2"));
        pass(&mut place, &mut client, 181);
        assert!(place.peers.are_active());
        assert_eq!(sessions(&place), 0, "too old to be used");
        pass(&mut place, &mut client, 360);
        assert!(!place.peers.are_active());
        // Nobody looks at the clock now.
        MockClock::advance(Duration::from_secs(5000));
        client.tunnel.tick();
        place.send(&mut client, &packet(machine, own, b"anybody?"));
        assert_eq!(client.received.pop().unwrap()[40..], *b"anybody?");
        assert!(place.peers.are_active());
        pass(&mut place, &mut client, 100);
        place.send(&mut client, &packet(machine, own, b"still?"));
        assert_eq!(client.received.pop().unwrap()[40..], *b"still?", "the session lasts");
        pass(&mut place, &mut client, 600);
        assert!(!place.peers.are_active());

        MockClock::advance(Duration::from_secs(5000));
        client.tunnel.tick();
        client.send(&mut place, &packet(own, machine, b"hello"));
        assert_eq!(place.received.pop().unwrap()[40..], *b"hello");
        pass(&mut place, &mut client, 100);
        client.send(&mut place, &packet(own, machine, b"again"));
        assert_eq!(place.received.pop().unwrap()[40..], *b"again");
    }

    #[test]
    fn a_server_that_gets_no_answer_gives_up_after_a_while() {
        MockClock::advance(Duration::from_secs(1));
        let (mut place, mut client) = connected();
        let (own, machine) = (client.peer.address, ip("fdaa:1:2:9::2"));
        pass(&mut place, &mut client, 600);
        let mut effects = Effects::default();
        place.peers.take_packet(Buffer::copy_from(&packet(machine, own, &[])[..]), &mut effects);
        assert_eq!(effects.datagrams.len(), 1);
        for _ in 0..4 * 100 {
            MockClock::advance(Duration::from_millis(250));
            place.peers.tick(&mut effects);
        }
        assert!(!place.peers.are_active());
        assert!((10..=20).contains(&effects.datagrams.len()), "{}", effects.datagrams.len());
    }
}
