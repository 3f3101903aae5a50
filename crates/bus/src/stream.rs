//! The way for everything that is not small: exec, logs, image import. HTTP semantics; between
//! hosts it is HTTP/2, in one process the request is handed over as it is.
//!
//! What a worker serves:
//!
//! - `POST /machines/{id}/exec`, body [`caddis_api::exec::ExecRequest`], header
//!   `fly-machine-lease-nonce`. Answer: [`caddis_api::exec::ExecReply`].
//! - `POST /machines/{id}/session`, body [`frames`] of a client as it types, header
//!   `fly-machine-lease-nonce`. Answer: [`frames`] for the client; see [`caddis_api::terminal`].
//! - `POST /requests`, body [`crate::message::Envelope`]. Answer: [`crate::message::WorkerResult`],
//!   what the worker's subject on the bus answers, of any size.
//! - `GET /logs?app=&instance=&region=&next_token=&limit=&wait_seconds=&since_ns=&until_ns=`.
//!   Answer: [`caddis_api::logs::LogsReply`]; waits up to `wait_seconds` for the first entry.
//! - `GET /images`. Answer: [`crate::message::ImageSummary`] list.
//! - `POST /images?format=docker-archive|oci-archive&image=&name=`, body the archive. Answer:
//!   NDJSON of [`crate::message::ImportUpdate`].
//! - `DELETE /images?name=`. Answer: `{"ok": true}`.
//!
//! Errors are [`caddis_api::error::ErrorBody`] with the status of their code.

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use caddis_api::WorkerId;

use crate::BusError;

pub mod frames;

/// Reaches the stream endpoint of a worker.
#[async_trait]
pub trait Streams: Send + Sync + 'static {
    /// One request. The body of the answer may go on for as long as the request's purpose takes.
    async fn call(
        &self,
        worker: &WorkerId,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, BusError>;
}

/// Answers stream requests: what a worker gives to the process that wires it.
#[async_trait]
pub trait StreamService: Send + Sync + 'static {
    /// The answer to one request.
    async fn call(&self, request: http::Request<Body>) -> http::Response<Body>;
}

/// Streams to the one worker of this process.
#[derive(Clone)]
pub struct InProcessStreams {
    worker: WorkerId,
    service: Arc<dyn StreamService>,
}

impl InProcessStreams {
    /// Streams to `worker`, served by `service`.
    pub fn new(worker: WorkerId, service: Arc<dyn StreamService>) -> Self {
        Self { worker, service }
    }
}

#[async_trait]
impl Streams for InProcessStreams {
    async fn call(
        &self,
        worker: &WorkerId,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, BusError> {
        if *worker != self.worker {
            return Err(BusError::NotDelivered(format!("streams of worker {worker}")));
        }
        Ok(self.service.call(request).await)
    }
}
