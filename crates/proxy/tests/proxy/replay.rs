//! Connections that end while they are used: what is sent again, and what is not.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::Poll,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::*;

/// Answers the first request of its first connection, ends that connection at the second one
/// without an answer, and answers all others. Tells the bodies that it got.
async fn dropping() -> (Upstream, Arc<Mutex<Vec<Vec<u8>>>>) {
    let got: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let kept = got.clone();
    let upstream = Upstream::serve(move |mut stream, number| {
        let kept = kept.clone();
        async move {
            let mut requests = 0;
            while let Some(request) = read_request(&mut stream).await {
                requests += 1;
                kept.lock().push(request.body);
                if number == 1 && requests == 2 {
                    return;
                }
                respond(&mut stream, "fine").await.unwrap();
            }
        }
    })
    .await;
    (upstream, got)
}

async fn warm(world: &World) {
    assert_eq!(world.get("/").await.status, 200);
    eventually("the end", || world.open_streams("a1") == 0).await;
}

#[tokio::test]
async fn dropped_conn_get() {
    let (upstream, got) = dropping().await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    warm(&world).await;
    let answer = world.get("/").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "fine"));
    assert_eq!((upstream.connections(), got.lock().len()), (2, 3));
}

#[tokio::test]
async fn dropped_conn_post_body_is_not_sent_twice() {
    let (upstream, got) = dropping().await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    warm(&world).await;
    let request = "POST / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 5\r\n\
        Connection: close\r\n\r\nhello";
    let answer = send(world.http, request).await;
    assert_eq!(answer.status, 502);
    assert!(answer.body.starts_with("PU02"), "{}", answer.body);
    let times = got.lock().iter().filter(|body| *body == b"hello").count();
    assert_eq!(times, 1);
}

#[tokio::test]
async fn dropped_conn_post_without_a_body_is_not_sent_twice() {
    let (upstream, got) = dropping().await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    warm(&world).await;
    let request = "POST / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 0\r\n\
        Connection: close\r\n\r\n";
    assert_eq!(send(world.http, request).await.status, 502);
    assert_eq!(got.lock().len(), 2);
}

async fn put(world: &World, body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    let head = format!(
        "PUT / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let _ = stream.write_all(body).await;
    read_answer(&mut stream).await
}

#[tokio::test]
async fn an_idempotent_body_is_sent_again_from_memory_and_from_the_file() {
    for length in [10, 3 << 20] {
        let (upstream, got) = dropping().await;
        let world = World::new();
        world.apply(vec![started("a1", upstream.address)]);
        warm(&world).await;
        let body: Vec<u8> = (0..length).map(|byte: u32| (byte % 251) as u8).collect();
        assert_eq!(put(&world, &body).await.status, 200);
        let got = got.lock();
        assert_eq!(got.len(), 3);
        assert!(got[1] == body && got[2] == body, "{length} bytes");
    }
}

#[tokio::test]
async fn dropped_conn_post_body_over_the_buffer_is_not_sent_again() {
    let (upstream, got) = dropping().await;
    let world = World::with(|config| {
        config.replay_memory = 10;
        config.replay_disk = 20;
    });
    world.apply(vec![started("a1", upstream.address)]);
    warm(&world).await;
    assert_eq!(put(&world, &[1; 1000]).await.status, 502);
    assert_eq!(got.lock().len(), 2);
}

#[tokio::test]
async fn a_first_use_that_fails_is_not_repeated() {
    let times = Arc::new(AtomicU32::new(0));
    let count = times.clone();
    let upstream = Upstream::serve(move |mut stream, _| {
        let count = count.clone();
        async move {
            read_request(&mut stream).await;
            count.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    assert_eq!(world.get("/").await.status, 502);
    assert_eq!(times.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_refused_connection_goes_to_another_machine() {
    let upstream = Upstream::http("two").await;
    let world = World::new();
    let request = "POST / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 5\r\n\
        Connection: close\r\n\r\nhello";
    world.apply(vec![started("a1", address()), started("a2", upstream.address)]);
    for _ in 0..8 {
        let answer = send(world.http, request).await;
        assert_eq!(answer.status, 200);
        assert!(answer.body.starts_with("two") && answer.body.ends_with("hello"));
    }
}

#[tokio::test]
async fn a_machine_that_closes_whatever_it_accepts_is_not_asked_without_end() {
    let address = address();
    let listener = std::net::TcpListener::bind((address, PORT)).unwrap();
    let accepted = Arc::new(AtomicU32::new(0));
    let count = accepted.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(500) {
            count.fetch_add(1, Ordering::SeqCst);
            drop(stream);
        }
    });
    // The runtime is busy, and so sees a connection to be open and closed at the same time.
    let busy = tokio::spawn(std::future::poll_fn(|context| {
        std::thread::sleep(Duration::from_micros(50));
        context.waker().wake_by_ref();
        Poll::<()>::Pending
    }));
    let world = World::new();
    world.apply(vec![started("a1", address)]);
    let answer = world.get("/").await;
    busy.abort();
    assert!(matches!(answer.status, 502 | 503), "{answer:?}");
    let accepted = accepted.load(Ordering::SeqCst);
    assert!(accepted <= 91, "{accepted} connections");
}

#[tokio::test]
async fn a_body_that_its_client_did_not_finish_is_never_sent_as_a_whole_one() {
    let (upstream, got) = dropping().await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    warm(&world).await;
    let mut client = TcpStream::connect(world.http).await.unwrap();
    let part = "PUT / HTTP/1.1\r\nHost: app.localhost\r\nTransfer-Encoding: chunked\r\n\r\n\
        5\r\nhello\r\n";
    client.write_all(part.as_bytes()).await.unwrap();
    eventually("the stream", || world.open_streams("a1") == 1).await;
    drop(client);
    eventually("the end", || world.open_streams("a1") == 0).await;
    // What might have been sent again has come by the time another request has.
    assert_eq!(world.get("/").await.status, 200);
    assert!(got.lock().iter().all(Vec::is_empty), "{:?}", got.lock());
    assert!(world.journal.errors.lock().is_empty(), "{:?}", world.journal.errors.lock());
}

#[tokio::test]
async fn a_machine_that_resets_streams_is_not_asked_without_end() {
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    let upstream = Upstream::serve(move |stream, _| {
        let count = count.clone();
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_request, mut respond))) = connection.accept().await {
                if count.fetch_add(1, Ordering::SeqCst) > 0 {
                    respond.send_reset(h2::Reason::INTERNAL_ERROR);
                    continue;
                }
                respond.send_response(http::Response::new(()), true).unwrap();
            }
        }
    })
    .await;
    let world = World::new();
    let mut route = started("a1", upstream.address);
    route.services[0].ports[0].http.h2_backend = true;
    world.apply(vec![route]);
    warm(&world).await;
    let answer = world.get("/").await;
    assert!(answer.status == 502 && answer.body.starts_with("PU02"), "{answer:?}");
    // Over the connection that had been used, and over one of its own.
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}
