//! Calls of gRPC that stream both ways: HTTP/2 from end to end, trailers, either side giving up.

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client, server};
use http::{HeaderMap, Request, Response};
use tokio::{net::TcpStream, sync::mpsc};

use crate::support::*;

/// A call as a machine has it.
struct Call {
    request: RecvStream,
    respond: server::SendResponse<Bytes>,
}

/// A machine that speaks HTTP/2 without TLS, and the calls that it gets.
async fn machine() -> (Upstream, mpsc::UnboundedReceiver<Call>) {
    let (sender, calls) = mpsc::unbounded_channel();
    let upstream = Upstream::serve(move |stream, _| {
        let sender = sender.clone();
        async move {
            let mut connection = server::handshake(stream).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                assert_eq!(request.headers()["te"], "trailers");
                assert_eq!(request.headers()["content-type"], "application/grpc");
                let _ = sender.send(Call { request: request.into_body(), respond });
            }
        }
    })
    .await;
    (upstream, calls)
}

impl Call {
    fn answer(&mut self) -> SendStream<Bytes> {
        let head = Response::builder().header("content-type", "application/grpc");
        self.respond.send_response(head.body(()).unwrap(), false).unwrap()
    }
}

/// Both ends of a call.
struct Both {
    world: World,
    upstream: Upstream,
    call: Call,
    response: client::ResponseFuture,
    request: SendStream<Bytes>,
}

async fn begin() -> Both {
    let (upstream, mut calls) = machine().await;
    let world = World::new();
    let mut route = started("a1", upstream.address);
    route.services[0].ports[0].http.h2_backend = true;
    world.apply(vec![route]);
    let stream = TcpStream::connect(world.http).await.unwrap();
    let (client, connection) = client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://app.localhost/chat.Chat/Talk")
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let mut client = client.ready().await.unwrap();
    let (response, request) = client.send_request(request, false).unwrap();
    let call = in_time("the call", calls.recv()).await.unwrap();
    Both { world, upstream, call, response, request }
}

async fn next(stream: &mut RecvStream) -> Bytes {
    let data = in_time("a message", stream.data()).await.unwrap().unwrap();
    stream.flow_control().release_capacity(data.len()).unwrap();
    data
}

fn status(code: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        http::HeaderValue::from_static(code),
    )])
}

#[tokio::test]
async fn messages_go_both_ways_while_both_sides_are_open_and_trailers_end_it() {
    let Both { world, upstream: _upstream, mut call, response, mut request } = begin().await;
    // Before any message of the client.
    let mut answer = call.answer();
    let response = in_time("the head", response).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/grpc");
    let mut response = response.into_body();
    for message in ["first", "second", "third"] {
        request.send_data(message.into(), false).unwrap();
        assert_eq!(next(&mut call.request).await, message);
        answer.send_data(message.to_uppercase().into(), false).unwrap();
        assert_eq!(next(&mut response).await, message.to_uppercase());
    }
    request.send_data(Bytes::new(), true).unwrap();
    assert!(ends(&mut call.request).await);
    // The machine has more to say after that.
    answer.send_data("last".into(), false).unwrap();
    assert_eq!(next(&mut response).await, "last");
    answer.send_trailers(status("0")).unwrap();
    assert!(ends(&mut response).await);
    let trailers = in_time("trailers", response.trailers()).await.unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    eventually("the stream's end", || world.open_streams("a1") == 0).await;
    assert!(world.journal.codes().is_empty());
}

#[tokio::test]
async fn a_machine_may_end_a_call_before_its_client() {
    let Both { world, upstream: _upstream, mut call, response, mut request } = begin().await;
    let mut answer = call.answer();
    answer.send_trailers(status("7")).unwrap();
    let mut response = in_time("the head", response).await.unwrap().into_body();
    assert!(ends(&mut response).await);
    let trailers = in_time("trailers", response.trailers()).await.unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "7");
    eventually("the stream's end", || world.open_streams("a1") == 0).await;
    // The client is told that nobody reads what it says.
    let reason = std::future::poll_fn(|context| request.poll_reset(context));
    assert_eq!(in_time("the reset", reason).await.unwrap(), Reason::NO_ERROR);
}

#[tokio::test]
async fn a_machine_learns_that_its_client_gave_up() {
    let Both { world, upstream: _upstream, mut call, response, mut request } = begin().await;
    let _answer = call.answer();
    in_time("the head", response).await.unwrap();
    request.send_data("first".into(), false).unwrap();
    assert_eq!(next(&mut call.request).await, "first");
    request.send_reset(Reason::CANCEL);
    let error = in_time("the reset", call.request.data()).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    eventually("the stream's end", || world.open_streams("a1") == 0).await;
}

#[tokio::test]
async fn a_client_learns_that_its_machine_gave_up() {
    let both = begin().await;
    let Both { world, upstream: _upstream, mut call, response, request: _request } = both;
    let mut answer = call.answer();
    let mut response = in_time("the head", response).await.unwrap().into_body();
    answer.send_data("first".into(), false).unwrap();
    assert_eq!(next(&mut response).await, "first");
    answer.send_reset(Reason::ENHANCE_YOUR_CALM);
    let error = in_time("the reset", response.data()).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
    eventually("the stream's end", || world.open_streams("a1") == 0).await;
}
