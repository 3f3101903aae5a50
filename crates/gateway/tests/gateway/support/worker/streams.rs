//! What it answers over its stream endpoint.

use async_trait::async_trait;
use axum::{
    body::Body,
    http::{Method, Request, Response, StatusCode},
};
use caddis_bus::stream::{StreamService, frames::Frame};
use futures::{StreamExt as _, stream::BoxStream};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::FakeWorker;

/// What a stream request looked like.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamCall {
    pub method: String,
    pub uri: String,
    pub nonce: Option<String>,
    pub body: String,
}

/// The worker's end of a session: what the client says, and the way back to it.
pub struct SessionEnd {
    pub(super) heard: BoxStream<'static, Result<Frame, String>>,
    pub(super) say: mpsc::Sender<Frame>,
}

impl SessionEnd {
    /// The client's next message; `None` when it has gone.
    pub async fn heard(&mut self) -> Option<Frame> {
        self.heard.next().await.map(Result::unwrap)
    }

    pub async fn say(&self, frame: Frame) {
        assert!(self.try_say(frame).await);
    }

    /// False when nobody listens any more.
    pub async fn try_say(&self, frame: Frame) -> bool {
        self.say.send(frame).await.is_ok()
    }
}

#[async_trait]
impl StreamService for FakeWorker {
    async fn call(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        if parts.uri.path().ends_with("/session") {
            return self.open_session(body);
        }
        let body = axum::body::to_bytes(body, usize::MAX).await;
        let call = StreamCall {
            method: parts.method.to_string(),
            uri: parts.uri.to_string(),
            nonce: parts
                .headers
                .get("fly-machine-lease-nonce")
                .map(|value| value.to_str().unwrap().to_owned()),
            body: body.map_or_else(
                |e| format!("error: {e}"),
                |body| String::from_utf8(body.to_vec()).unwrap(),
            ),
        };
        let mut state = self.state();
        state.calls.push(call);
        let (media, usual) = usual_answer(&parts.method, parts.uri.path());
        let (status, body) = state.stream_answer.clone().unwrap_or((200, usual.to_string()));
        let response = Response::builder().status(StatusCode::from_u16(status).unwrap());
        response.header("content-type", media).body(Body::from(body)).unwrap()
    }
}

/// What a real worker's streams answer, in short.
fn usual_answer(method: &Method, path: &str) -> (&'static str, Value) {
    let image =
        json!({ "digest": "sha256:0", "names": [], "size": 0, "created_at": "", "machines": 0 });
    let answer = match (method.as_str(), path) {
        ("GET", "/usage") => json!({ "worker": "W1", "machines": [] }),
        ("GET", "/logs") => json!({ "data": [], "meta": { "next_token": "" } }),
        ("GET", "/images") => json!([image]),
        ("POST", "/images") => return ("application/x-ndjson", json!({ "done": image })),
        ("DELETE", "/images") => json!({ "ok": true }),
        _ => json!({ "exit_code": 0, "exit_signal": 0, "stdout": "", "stderr": "" }),
    };
    ("application/json", answer)
}
