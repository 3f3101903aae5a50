//! Queries that are damaged in all ways, as bytes and on sockets: each gets an answer that can be
//! read, or none, and others are served.

use std::net::Ipv6Addr;

use hickory_proto::rr::{Name, RecordType};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{tests::*, *};

/// Largest answer over UDP, bytes.
const LARGEST: usize = 1232;
/// More memory than this one answer or question does not take, MiB.
const MOST_MEMORY: u64 = 128;

/// What a name may be made of (RFC 1035, section 4.1.4): references to elsewhere, reserved kinds of
/// labels, the end.
const PIECES: [&[u8]; 7] =
    [&[0xc0, 12], &[0xc0, 0], &[0xff, 0xff], &[0x40], &[0x80, 1], &[0], &[63; 64]];

fn sound() -> Vec<Vec<u8>> {
    let mut sound = Vec::new();
    for name in
        ["web.internal.", "many.internal.", "vms.web.internal.", "web.flycast.", "a.b.", "."]
    {
        for kind in [RecordType::AAAA, RecordType::ANY, RecordType::TXT, RecordType::SOA] {
            sound.push(query(name, kind));
            sound.push(extended(name, kind, 4096, 0));
        }
    }
    let mut several = query("web.internal.", RecordType::AAAA);
    several.add_query(several.queries[0].clone());
    sound.push(several);
    sound.iter().map(|message| message.to_vec().unwrap()).collect()
}

fn damage(random: &mut StdRng, input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..random.random_range(1..5) {
        let at = random.random_range(0..bytes.len().max(1));
        match random.random_range(0..8) {
            0 | 1 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (at % 8)),
            2 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = random.random()),
            3 => bytes.truncate(at),
            // The counts of records.
            4 => bytes.iter_mut().skip(4).take(8).for_each(|byte| *byte = random.random()),
            5 => {
                let piece = PIECES[random.random_range(0..PIECES.len())];
                bytes.splice(at.min(bytes.len())..at.min(bytes.len()), piece.iter().copied());
            }
            6 => bytes.extend(input),
            _ => bytes.resize(random.random_range(0..=65_535), random.random()),
        }
    }
    bytes.truncate(65_535);
    bytes
}

fn cases() -> (u32, StdRng) {
    let seed = std::env::var("CADDIS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("CADDIS_SEED={seed}");
    let cases = if std::env::var_os("CADDIS_SOAK").is_some() { 2_000_000 } else { 5_000 };
    (cases, StdRng::seed_from_u64(seed))
}

fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() >> 10
}

#[tokio::test]
async fn what_is_damaged_gets_an_answer_that_fits_or_none() {
    let (server, sound) = (server(), sound());
    let (cases, mut random) = cases();
    let client = IpAddr::from(Ipv6Addr::LOCALHOST);
    let mut first = None;
    for case in 0..cases {
        let of = random.random_range(0..sound.len());
        let input = damage(&mut random, &sound[of]);
        for transport in [Transport::Udp, Transport::Tcp] {
            match server.take(&input, client, transport) {
                Outcome::Ignored => {}
                Outcome::Forwarded(message) => {
                    let asked = message.queries[0].name();
                    let own = ["internal.", "flycast."].map(|zone| Name::from_ascii(zone).unwrap());
                    assert!(!own.iter().any(|zone| zone.zone_of(asked)), "{input:?}");
                }
                Outcome::Answered(answer) => {
                    assert_eq!(answer[..2], input[..2], "{input:?}");
                    assert!(answer[2] & 0x80 != 0, "an answer to {input:?}");
                    Message::from_vec(&answer).unwrap_or_else(|error| panic!("{error}: {input:?}"));
                    if transport == Transport::Udp {
                        assert!(answer.len() <= LARGEST, "{}: {input:?}", answer.len());
                    }
                }
            }
        }
        if case % 1000 == 0 {
            let first = *first.get_or_insert_with(memory);
            assert!(memory() < first + MOST_MEMORY, "{first} MiB, then {}", memory());
        }
    }
}

#[tokio::test]
async fn others_are_answered_while_what_is_damaged_comes() {
    let loopback = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    let (udp, tcp) =
        (UdpSocket::bind(loopback).await.unwrap(), TcpListener::bind(loopback).await.unwrap());
    let (udp_address, tcp_address) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
    let server = server();
    let (over_udp, over_tcp) = (server.clone(), server.clone());
    let serving = [
        tokio::spawn(async move { over_udp.serve_udp(Arc::new(udp)).await }),
        tokio::spawn(async move { over_tcp.serve_tcp(tcp).await }),
    ];
    let (sound, question) = (sound(), query("web.internal.", RecordType::AAAA).to_vec().unwrap());
    let (cases, mut random) = cases();
    let attacker = UdpSocket::bind(loopback).await.unwrap();
    let client = UdpSocket::bind(loopback).await.unwrap();
    client.connect(udp_address).await.unwrap();
    for case in 0..cases.div_ceil(10) {
        let of = random.random_range(0..sound.len());
        let input = damage(&mut random, &sound[of]);
        let input = &input[..input.len().min(65_000)];
        attacker.send_to(input, udp_address).await.unwrap();
        if case % 50 == 0 {
            // Framed rightly, and cut off.
            let mut stream = TcpStream::connect(tcp_address).await.unwrap();
            write_framed(&mut stream, input).await.unwrap();
            stream.write_all(&[0xff, 0xff, 1]).await.unwrap();
            drop(stream);
            // What is lost is asked again, as resolvers do.
            let mut buffer = [0; 4096];
            let length = loop {
                client.send(&question).await.unwrap();
                let answered = timeout(Duration::from_millis(100), client.recv(&mut buffer)).await;
                if let Ok(length) = answered {
                    break length.unwrap();
                }
            };
            assert_eq!(aaaa(&Message::from_vec(&buffer[..length]).unwrap()).len(), 2);
            let mut stream = TcpStream::connect(tcp_address).await.unwrap();
            write_framed(&mut stream, &question).await.unwrap();
            let answer = read_framed(&mut stream).await.unwrap();
            assert_eq!(aaaa(&Message::from_vec(&answer).unwrap()).len(), 2);
        }
    }
    assert!(serving.iter().all(|task| !task.is_finished()));
    serving.iter().for_each(|task| task.abort());
}
