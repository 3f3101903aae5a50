//! Requests that others may read in another way than we do.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::*;

/// See its first lines.
const TABLE: &str = include_str!("smuggling.txt");

/// Bytes as the table writes them.
fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.chars();
    while let Some(letter) = rest.next() {
        bytes.push(match (letter, letter == '\\') {
            (_, true) => match rest.next().unwrap() {
                'r' => b'\r',
                'n' => b'\n',
                't' => b'\t',
                'x' => {
                    let digits: String = rest.by_ref().take(2).collect();
                    u8::from_str_radix(&digits, 16).unwrap()
                }
                other => panic!("\\{other}"),
            },
            (letter, _) => u8::try_from(letter).unwrap(),
        });
    }
    bytes
}

/// A request as its machine got it, if it has one meaning only.
fn meaning(request: &Request) -> String {
    let lines: Vec<_> = request.head.split("\r\n").collect();
    let fields = &lines[1..lines.len() - 2];
    assert!(!request.head.replace("\r\n", "").contains(['\r', '\n', '\0']), "{:?}", request.head);
    let mut values = HashMap::<_, Vec<_>>::new();
    for field in fields {
        let (name, value) = field.split_once(": ").unwrap();
        assert!(!name.is_empty() && !name.contains([' ', '\t', ':']), "{field:?}");
        values.entry(name).or_default().push(value);
    }
    assert!(values["host"] == ["app.localhost"] || values["host"] == ["app.localhost:80"]);
    let (length, encoding) = (values.get("content-length"), values.get("transfer-encoding"));
    let body = match (length, encoding) {
        (None, None) => String::new(),
        (Some(length), None) => {
            assert_eq!(length.len(), 1);
            assert_eq!(length[0].parse(), Ok(request.body.len()), "{:?}", request.head);
            String::from_utf8(request.body.clone()).unwrap()
        }
        (None, Some(encoding)) => {
            assert_eq!(encoding, &["chunked"]);
            let text = String::from_utf8(request.body.clone()).unwrap();
            let (mut rest, mut body) = (text.as_str(), String::new());
            while let Some((size, after)) = rest.split_once("\r\n") {
                let size = usize::from_str_radix(size, 16).unwrap();
                if size == 0 {
                    assert_eq!(after, "\r\n", "no trailers that count");
                    break;
                }
                body.push_str(&after[..size]);
                rest = after[size..].strip_prefix("\r\n").unwrap();
            }
            body
        }
        both => panic!("{both:?}"),
    };
    let line = lines[0].strip_suffix(" http/1.1").unwrap();
    format!("{line} {body}").trim_end().to_owned()
}

#[tokio::test]
async fn requests_of_two_meanings_are_refused_and_others_reach_a_machine_once() {
    try_all(World::new()).await;
}

#[tokio::test]
async fn requests_mean_the_same_over_connections_that_are_parked_whenever_they_can_be() {
    try_all(World::with(|config| config.park_after = Duration::ZERO)).await;
}

async fn try_all(world: World) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let recorder = seen.clone();
    let upstream = Upstream::serve(move |mut stream, _| {
        let seen = recorder.clone();
        async move {
            while let Some(request) = read_request(&mut stream).await {
                seen.lock().push(meaning(&request));
                if respond(&mut stream, "").await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    world.apply(vec![started("a1", upstream.address)]);
    let mut wrong = Vec::new();
    let rows = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    for row in rows {
        let columns: Vec<_> = row.split(" | ").collect();
        let [what, expected, _, request] = columns[..] else { panic!("{row}") };
        let before = upstream.connections();
        let mut stream = TcpStream::connect(world.http).await.unwrap();
        stream.write_all(&bytes(request)).await.unwrap();
        // Where the head has no end for us, nothing more is waited for.
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = in_time(what, stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        let statuses: Vec<_> =
            answer.split("HTTP/1.").skip(1).filter_map(|rest| rest.get(2..5)).collect();
        let seen = std::mem::take(&mut *seen.lock());
        let got = match (&seen[..], &statuses[..]) {
            // It ended before its machine was sent anything, or after.
            ([], [] | ["400"]) if expected == "cut" => "cut".to_owned(),
            ([], [status]) if upstream.connections() == before => (*status).to_owned(),
            (seen, statuses) => {
                assert_eq!(statuses, vec!["200"; seen.len()], "{what}");
                seen.join(" + ")
            }
        };
        if !got.eq_ignore_ascii_case(expected) {
            wrong.push(format!("{what}: {got} instead of {expected}: {answer}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_spoilt_request_after_a_good_one_is_refused_too() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let request = "POST / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 3\r\n\r\n\n\n\n\
        POST / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na";
    let answer = send(world.http, request).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("HTTP/1.1 400"), "{}", answer.body);
}

#[tokio::test]
async fn a_body_that_claims_to_be_an_upgrade_is_not_tunnelled() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let request = "GET / HTTP/1.1\r\nHost: app.localhost\r\nConnection: Upgrade\r\n\
        Upgrade: websocket\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: app.localhost\r\n\r\n";
    let answer = send(world.http, request).await;
    // The machine did not switch: this is the only request that it may see.
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(!answer.body.contains("smuggled"), "{}", answer.body);
    assert_eq!(upstream.connections(), 1);
}
