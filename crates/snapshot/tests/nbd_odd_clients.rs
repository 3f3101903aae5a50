//! Clients that do not follow the protocol.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod support;

use caddis_snapshot::{Source, nbd::Client};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use crate::support::{Disk, MIB, Server};

/// What a client may send.
#[derive(Debug, Clone)]
enum Piece {
    Noise(Vec<u8>),
    Option { option: u32, claimed: u32, data: Vec<u8> },
    Request { magic: bool, flags: u16, command: u16, offset: u64, length: u32, data: Vec<u8> },
}

impl Piece {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Noise(bytes) => bytes.clone(),
            Self::Option { option, claimed, data } => {
                let mut bytes = b"IHAVEOPT".to_vec();
                bytes.extend(option.to_be_bytes());
                bytes.extend(claimed.to_be_bytes());
                bytes.extend(data);
                bytes
            }
            Self::Request { magic, flags, command, offset, length, data } => {
                let mut bytes = (if *magic { 0x2560_9513_u32 } else { 7 }).to_be_bytes().to_vec();
                bytes.extend(flags.to_be_bytes());
                bytes.extend(command.to_be_bytes());
                bytes.extend(9_u64.to_be_bytes());
                bytes.extend(offset.to_be_bytes());
                bytes.extend(length.to_be_bytes());
                bytes.extend(data);
                bytes
            }
        }
    }
}

/// A name and what follows it, in all the ways in which that may be wrong.
fn data() -> impl Strategy<Value = Vec<u8>> {
    let some = prop::collection::vec(any::<u8>(), 0..24);
    let name = (any::<bool>(), some.clone(), 0_u32..4, 0_u32..3, some.clone());
    let named = name.prop_map(|(is_right, name, off, count, rest)| {
        let length = name.len() as u32 + if is_right { 0 } else { off * 0x3fff_ffff };
        let mut data = length.to_be_bytes().to_vec();
        data.extend(name);
        data.extend(count.to_be_bytes());
        data.extend(15_u32.to_be_bytes());
        data.extend(b"base:allocation");
        data.extend(rest);
        data
    });
    prop_oneof![some, named, Just(Vec::new())]
}

fn piece() -> impl Strategy<Value = Piece> {
    let noise = prop::collection::vec(any::<u8>(), 0..64).prop_map(Piece::Noise);
    let length = prop_oneof![
        Just(None),
        any::<u32>().prop_map(Some),
        (0_u32..70_000).prop_map(Some),
        Just(Some(u32::MAX))
    ];
    let option = (prop_oneof![0_u32..13, any::<u32>()], length, data());
    let option = option.prop_map(|(option, claimed, data)| {
        let claimed = claimed.unwrap_or(data.len() as u32);
        Piece::Option { option, claimed, data }
    });
    let offset = prop_oneof![0..8 * MIB, any::<u64>()];
    let length = prop_oneof![0_u32..100_000, any::<u32>(), Just(33 << 20)];
    let flags = prop_oneof![Just(0_u16), any::<u16>()];
    let request = (prop::bool::weighted(0.9), flags, 0_u16..12, offset, length, data());
    let request = request.prop_map(|(magic, flags, command, offset, length, data)| {
        Piece::Request { magic, flags, command, offset, length, data }
    });
    prop_oneof![1 => noise, 4 => option, 4 => request]
}

/// What brings a client to its requests, so that not all end before.
fn beginning() -> impl Strategy<Value = Vec<u8>> {
    let option = |option: u32, data: &[u8]| {
        Piece::Option { option, claimed: data.len() as u32, data: data.to_vec() }.bytes()
    };
    let context = b"\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation";
    let (go, plain) = (option(7, &[0; 6]), option(1, b"any"));
    let structured = [option(8, &[]), option(10, context), go.clone()].concat();
    let flags = |rest: Vec<u8>| [vec![0, 0, 0, 3], rest].concat();
    prop_oneof![
        Just(Vec::new()),
        Just(flags(Vec::new())),
        Just(flags(go)),
        Just(flags(plain)),
        Just(flags(structured)),
        prop::collection::vec(any::<u8>(), 4),
    ]
}

async fn serves(server: &Server) {
    let mut client = Client::connect(&server.socket(), "", None).await.unwrap();
    let mut buffer = [0; 4096];
    client.read(MIB, &mut buffer).await.unwrap();
    assert_eq!(buffer, [5; 4096]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_client_sends_others_are_served(
        clients in prop::collection::vec((beginning(), prop::collection::vec(piece(), 0..8)), 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let pieces = vec![(MIB, MIB, 5)];
            let server = Server::new(Disk { size: 8 * MIB, pieces, ..Disk::default() });
            let mut open = Vec::new();
            for (beginning, pieces) in &clients {
                let mut stream = UnixStream::connect(server.socket()).await.unwrap();
                let all = pieces.iter().map(Piece::bytes).collect::<Vec<_>>().concat();
                // It may have been cut off.
                let _ = stream.write_all(&[&beginning[..], &all].concat()).await;
                open.push(stream);
                serves(&server).await;
            }
            for mut stream in open {
                stream.shutdown().await.unwrap();
                // To its end: nothing is stuck in it, and no reply is longer than it may be.
                let mut received = Vec::new();
                let _ = (&mut stream).take(512 * MIB).read_to_end(&mut received).await;
                prop_assert!(received.len() < 512 << 20);
            }
            serves(&server).await;
            server.end().await;
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn clients_that_say_nothing_take_no_place_from_others_that_are_fewer_than_it_has() {
    let server =
        Server::new(Disk { size: 8 * MIB, pieces: vec![(MIB, MIB, 5)], ..Disk::default() });
    let mut silent = Vec::new();
    for _ in 0..15 {
        silent.push(UnixStream::connect(server.socket()).await.unwrap());
    }
    serves(&server).await;
    drop(silent);
    for _ in 0..100 {
        serves(&server).await;
    }
}

#[tokio::test]
async fn an_option_that_is_too_long_is_refused_before_it_is_read() {
    let server = Server::new(Disk { size: 8 * MIB, ..Disk::default() });
    let mut stream = UnixStream::connect(server.socket()).await.unwrap();
    let option = Piece::Option { option: 7, claimed: u32::MAX, data: Vec::new() }.bytes();
    stream.write_all(&[&[0, 0, 0, 3], &option[..]].concat()).await.unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.unwrap();
    // NBD_REP_ERR_TOO_BIG, and nothing after it.
    let refusal = [&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &[0, 0, 0, 7, 0x80, 0, 0, 9]];
    assert_eq!(said[18..], [&refusal.concat()[..], &[0; 4]].concat());
}
