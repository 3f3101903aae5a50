//! Clients that take their responses slowly.

use std::time::Duration;

use bytes::Bytes;
use caddis_proxy::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::watch,
};

use crate::support::*;

/// More than sockets and buffers hold.
const MUCH: usize = 32 << 20;
const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// Whoever has to be waited for at all is too slow.
fn world() -> World {
    World::with(|config| {
        config.download_limit = MinimumRate { window: Duration::from_millis(40), bytes: 1 << 40 };
    })
}

async fn send_for_ever(stream: &mut TcpStream) {
    while stream.write_all(&[b'x'; 64 << 10]).await.is_ok() {}
}

/// Sends without an end at `/endless`, and over a WebSocket; at `/events` the second event comes
/// once the gate is open. Its second result counts the connections on which it can't send more.
async fn talkative() -> (Upstream, watch::Receiver<u32>, watch::Sender<bool>) {
    let (ended, endings) = watch::channel(0);
    let (open, gate) = watch::channel(false);
    let upstream = Upstream::serve(move |mut stream, _| {
        let (ended, mut gate) = (ended.clone(), gate.clone());
        async move {
            while let Some((head, _)) = read_head(&mut stream).await {
                if head.starts_with("get /endless") {
                    let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n";
                    stream.write_all(head.as_bytes()).await.unwrap();
                    send_for_ever(&mut stream).await;
                    ended.send_modify(|ended| *ended += 1);
                } else if head.starts_with("get /ws") {
                    stream.write_all(SWITCH.as_bytes()).await.unwrap();
                    send_for_ever(&mut stream).await;
                } else if head.starts_with("get /events") {
                    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                    stream.write_all(format!("{head}5\r\nfirst\r\n").as_bytes()).await.unwrap();
                    gate.wait_for(|is_open| *is_open).await.unwrap();
                    stream.write_all(b"6\r\nsecond\r\n0\r\n\r\n").await.unwrap();
                } else {
                    respond(&mut stream, "short").await.unwrap();
                }
            }
        }
    })
    .await;
    (upstream, endings, open)
}

/// A client that asks, and then reads nothing by itself.
async fn ask(world: &World, request: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(world.http).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn download_timeout_min_rate() {
    let (upstream, mut ended, _open) = talkative().await;
    let world = world();
    world.apply(vec![started("a1", upstream.address)]);
    let mut client = ask(&world, &get("/endless")).await;
    in_time("the machine's end", ended.wait_for(|ended| *ended == 1)).await.unwrap();
    eventually("the stream's end", || world.open_streams("a1") == 0).await;
    assert_eq!(world.journal.codes(), [ErrorCode::PC04]);
    // What was sent before is there, and then the connection ends.
    let mut got = Vec::new();
    let _ = in_time("the end", client.read_to_end(&mut got)).await;
    assert!(got.starts_with(b"HTTP/1.1 200 OK\r\n") && got.len() < MUCH, "{}", got.len());
}

#[tokio::test]
async fn whoever_waits_for_a_machine_or_has_a_websocket_is_not_too_slow() {
    let (upstream, mut ended, open) = talkative().await;
    let world = world();
    world.apply(vec![started("a1", upstream.address)]);
    let mut events = ask(&world, &get("/events")).await;
    let (_, mut got) = in_time("the head", read_head(&mut events)).await.unwrap();
    let upgrade = "GET /ws HTTP/1.1\r\nHost: app.localhost\r\nConnection: Upgrade\r\n\
        Upgrade: websocket\r\n\r\n";
    let mut socket = ask(&world, upgrade).await;
    in_time("101", read_head(&mut socket)).await.unwrap();
    // Each takes a window.
    for number in 1..=3 {
        let _slow = ask(&world, &get("/endless")).await;
        in_time("the machine's end", ended.wait_for(|ended| *ended == number)).await.unwrap();
    }
    open.send_replace(true);
    in_time("the events", events.read_to_end(&mut got)).await.unwrap();
    let text = String::from_utf8_lossy(&got);
    assert!(text.contains("first") && text.ends_with("second\r\n0\r\n\r\n"), "{text}");
    let mut much = vec![0; MUCH];
    in_time("the bytes", socket.read_exact(&mut much)).await.unwrap();
    assert_eq!(world.journal.codes(), [ErrorCode::PC04; 3]);
}

#[tokio::test]
async fn a_slow_stream_of_http_2_ends_without_the_others() {
    let (upstream, mut ended, open) = talkative().await;
    let world = world();
    world.apply(vec![started("a1", upstream.address)]);
    let stream = TcpStream::connect(world.http).await.unwrap();
    let mut client = h2::client::Builder::new();
    client.initial_connection_window_size(1 << 20);
    let (client, connection) = client.handshake::<_, Bytes>(stream).await.unwrap();
    tokio::spawn(connection);
    let get = async |path: &str| {
        let mut client = client.clone().ready().await.unwrap();
        let uri = format!("http://app.localhost{path}");
        let request = http::Request::get(uri).body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        in_time("the response", response).await.unwrap().into_body()
    };
    let mut events = get("/events").await;
    assert_eq!(in_time("it", events.data()).await.unwrap().unwrap(), "first");
    // The client gives no room beyond that of the begin.
    let mut slow = get("/endless").await;
    in_time("the machine's end", ended.wait_for(|ended| *ended == 1)).await.unwrap();
    assert_eq!(world.journal.codes(), [ErrorCode::PC04]);
    assert_eq!(in_time("it", get("/").await.data()).await.unwrap().unwrap(), "short");
    open.send_replace(true);
    assert_eq!(in_time("it", events.data()).await.unwrap().unwrap(), "second");
    assert!(ends(&mut events).await);
    let mut read = async || -> Option<Result<Bytes, h2::Error>> {
        let data = in_time("the rest", slow.data()).await;
        if let Some(Ok(data)) = &data {
            slow.flow_control().release_capacity(data.len()).unwrap();
        }
        data
    };
    let error = loop {
        match read().await.expect("it has no end") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(error.is_reset(), "{error}");
    eventually("the streams' end", || world.open_streams("a1") == 0).await;
}

/// Reads heads, and bodies as far as they come; answers whole requests.
async fn patient() -> Upstream {
    Upstream::serve(|mut stream, _| async move {
        while read_request(&mut stream).await.is_some() {
            respond(&mut stream, "whole").await.unwrap();
        }
    })
    .await
}

fn world_of_uploads() -> World {
    World::with(|config| {
        config.upload_limit = MinimumRate { window: Duration::from_millis(40), bytes: 1 << 40 };
    })
}

#[tokio::test]
async fn upload_timeout_min_rate() {
    let upstream = patient().await;
    let world = world_of_uploads();
    world.apply(vec![started("a1", upstream.address)]);
    let head = "POST / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 100\r\n\r\npart";
    let mut client = ask(&world, head).await;
    let answer = in_time("the answer", read_answer(&mut client)).await;
    assert_eq!(answer.status, 408);
    assert!(answer.body.starts_with("PC04"), "{}", answer.body);
    eventually("the stream's end", || world.open_streams("a1") == 0).await;
    assert_eq!(world.journal.codes(), [ErrorCode::PC04]);
    // Nothing that is sent later is taken for a request.
    let _ = client.write_all(get("/").as_bytes()).await;
    let mut rest = Vec::new();
    let _ = in_time("the end", client.read_to_end(&mut rest)).await;
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn a_slow_upload_of_http_2_ends_without_the_other_streams() {
    let upstream = patient().await;
    let world = world_of_uploads();
    world.apply(vec![started("a1", upstream.address)]);
    let stream = TcpStream::connect(world.http).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut ready = client.clone().ready().await.unwrap();
    let request = http::Request::post("http://app.localhost/").body(()).unwrap();
    // Nothing of the body comes at all.
    let (response, _body) = ready.send_request(request, false).unwrap();
    let response = in_time("the answer", response).await.unwrap();
    assert_eq!(response.status(), 408);
    assert_eq!(world.journal.codes(), [ErrorCode::PC04]);
    let mut ready = client.ready().await.unwrap();
    let request = http::Request::get("http://app.localhost/").body(()).unwrap();
    let (response, _) = ready.send_request(request, true).unwrap();
    assert_eq!(in_time("the answer", response).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_body_that_the_machine_does_not_read_is_not_sent_too_slowly() {
    let (open, gate) = watch::channel(false);
    let upstream = Upstream::serve(move |mut stream, _| {
        let mut gate = gate.clone();
        async move {
            gate.wait_for(|is_open| *is_open).await.unwrap();
            while read_request(&mut stream).await.is_some() {
                respond(&mut stream, "whole").await.unwrap();
            }
        }
    })
    .await;
    // Who sends anything at all in time is quick enough.
    let world = World::with(|config| {
        config.upload_limit = MinimumRate { window: Duration::from_secs(1), bytes: 1 };
    });
    world.apply(vec![started("a1", upstream.address)]);
    let head = format!("POST / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: {MUCH}\r\n\r\n");
    let client = TcpStream::connect(world.http).await.unwrap();
    let (mut reading, mut writing) = client.into_split();
    let sending = tokio::spawn(async move {
        writing.write_all(head.as_bytes()).await.unwrap();
        writing.write_all(&vec![b'x'; MUCH]).await.unwrap();
        writing
    });
    eventually("the request", || world.open_streams("a1") == 1).await;
    // Another one is found to be slow meanwhile.
    let head = "POST / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 100\r\n\r\npart";
    let mut other = ask(&world, head).await;
    assert_eq!(in_time("the answer", read_answer(&mut other)).await.status, 408);
    assert_eq!(world.journal.codes(), [ErrorCode::PC04]);
    open.send_replace(true);
    let mut answer = [0; 12];
    in_time("the answer", reading.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    in_time("the body", sending).await.unwrap();
}
