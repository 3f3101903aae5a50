//! Asks workers: over the bus what fits it, over their stream endpoints what does not.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use caddis_api::{ApiError, ErrorCode, WorkerId};
use http::Request;
use http_body_util::BodyExt as _;

use crate::{
    Bus, BusError, MAX_MESSAGE_BYTES,
    message::{Envelope, WorkerReply, WorkerRequest, WorkerResult, decode, encode, worker_subject},
    stream::Streams,
};

/// Where a worker's stream endpoint takes requests that do not fit the bus.
const REQUESTS: &str = "/requests";

/// Asks workers. Clones share the ways.
#[derive(Clone)]
pub struct WorkerClient {
    bus: Arc<dyn Bus>,
    streams: Arc<dyn Streams>,
}

/// Why a worker gave no reply.
#[derive(Debug)]
pub enum AskError {
    /// It refused.
    Refused(ApiError),
    /// It may or may not have carried it out, unless the error says that it has not.
    Bus(BusError),
}

impl From<AskError> for ApiError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Refused(error) => error,
            AskError::Bus(error) => error.into(),
        }
    }
}

/// What clients of the API are told.
impl From<BusError> for ApiError {
    fn from(error: BusError) -> Self {
        match &error {
            BusError::Unreadable { .. } | BusError::TooLarge { .. } => Self::internal(error),
            BusError::NotDelivered(_) => Self {
                nothing_done: true,
                ..Self::new(
                    ErrorCode::Unavailable,
                    format!("unavailable: {error}; nothing was done, try again"),
                )
            },
            BusError::TimedOut { .. } => Self::new(
                ErrorCode::Unavailable,
                format!(
                    "unavailable: {error}; the request may still be carried out, look before \
                     trying again"
                ),
            ),
        }
    }
}

impl WorkerClient {
    /// A client over these ways.
    pub fn new(bus: Arc<dyn Bus>, streams: Arc<dyn Streams>) -> Self {
        Self { bus, streams }
    }

    /// Asks a worker, twice when it stays silent for `deadline`: it does nothing twice for the same
    /// request id.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(
        &self,
        worker: &WorkerId,
        request: WorkerRequest,
        deadline: Duration,
    ) -> Result<WorkerReply, AskError> {
        let envelope = Envelope::new(ulid::Ulid::new().to_string(), deadline * 2, request);
        let payload = encode(&envelope);
        if payload.len() > MAX_MESSAGE_BYTES {
            return self.twice(worker, payload, deadline, true).await;
        }
        match self.twice(worker, payload.clone(), deadline, false).await {
            Ok(WorkerReply::TooLarge) => match self.twice(worker, payload, deadline, true).await {
                // It was carried out: only its answer is missing.
                Err(AskError::Bus(BusError::NotDelivered(subject))) => {
                    Err(AskError::Bus(BusError::TimedOut { subject, deadline }))
                }
                answer => answer,
            },
            answer => answer,
        }
    }

    async fn twice(
        &self,
        worker: &WorkerId,
        payload: Bytes,
        deadline: Duration,
        by_stream: bool,
    ) -> Result<WorkerReply, AskError> {
        let subject = worker_subject(worker);
        let once = || async {
            if by_stream {
                return self.stream(worker, payload.clone(), deadline).await;
            }
            self.bus.request(&subject, payload.clone(), deadline).await
        };
        let answer = match once().await {
            Err(timed_out @ BusError::TimedOut { .. }) => match once().await {
                // The first may have arrived.
                Err(BusError::NotDelivered(_)) => Err(timed_out),
                answer => answer,
            },
            answer => answer,
        };
        let answer = answer.map_err(AskError::Bus)?;
        decode::<WorkerResult>(&subject, &answer).map_err(AskError::Bus)?.map_err(AskError::Refused)
    }

    async fn stream(
        &self,
        worker: &WorkerId,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, BusError> {
        let subject = || format!("{REQUESTS} of worker {worker}");
        let unreadable = |reason: String| BusError::Unreadable { subject: subject(), reason };
        let request = Request::post(REQUESTS)
            .body(Body::from(payload))
            .map_err(|e| unreadable(e.to_string()))?;
        let answer = async {
            let body = self.streams.call(worker, request).await?.into_body();
            Ok(body.collect().await.map_err(|e| unreadable(e.to_string()))?.to_bytes())
        };
        let timed_out = |_| BusError::TimedOut { subject: subject(), deadline };
        tokio::time::timeout(deadline, answer).await.map_err(timed_out)?
    }
}
