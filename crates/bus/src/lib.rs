//! Control messages between gateways and workers: request one worker, ask all workers of a region,
//! publish and watch state. Stores nothing and carries no bulk; [`stream`] is the separate way for
//! that.
//!
//! [`Bus`] moves bytes, so that any transport fits; [`message`] says what the bytes mean, and
//! [`WorkerClient`] asks a worker by whichever way its request and answer fit.
#![forbid(unsafe_code)]

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

mod client;
mod in_process;
pub mod message;
pub mod stream;

pub use client::{AskError, WorkerClient};
pub use in_process::{Chaos, InProcessBus};

/// Largest message, bytes: what NATS takes unless it is configured otherwise. What is larger goes
/// over [`stream`].
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Why a message did not get its answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Nobody serves the subject: the request reached no one, and may be sent again.
    #[error("{0} can't be reached")]
    NotDelivered(String),
    /// No answer before the deadline. The request may or may not have been carried out.
    #[error("no answer from {subject} within {deadline:?}")]
    TimedOut {
        /// Who was asked.
        subject: String,
        /// How long we waited.
        deadline: Duration,
    },
    /// The message, or its answer, is larger than [`MAX_MESSAGE_BYTES`]. The request was not
    /// delivered, unless it is the answer that is too large.
    #[error("a message of {bytes} bytes on {subject} exceeds the limit of the bus")]
    TooLarge {
        /// Where it was to go.
        subject: String,
        /// Its size.
        bytes: usize,
    },
    /// A message that can't be read.
    #[error("unreadable message on {subject}: {reason}")]
    Unreadable {
        /// Where it came from.
        subject: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Answers requests on a subject.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// The answer to one request, of at most [`MAX_MESSAGE_BYTES`]. May be called twice with the
    /// same request: the transport may repeat messages.
    async fn handle(&self, request: Bytes) -> Bytes;
}

/// How long a question to all waits for answers: until nobody has answered for `quiet`, at most
/// `deadline` in all.
#[derive(Debug, Clone, Copy)]
pub struct AskWindow {
    /// Ends the wait when there is at least one answer and none came for this long.
    pub quiet: Duration,
    /// Ends the wait in any case.
    pub deadline: Duration,
}

/// A published message.
#[derive(Debug, Clone)]
pub struct Published {
    /// On which subject.
    pub subject: String,
    /// The message, encoded.
    pub payload: Bytes,
}

/// Moves control messages of at most [`MAX_MESSAGE_BYTES`]. Subjects are dot-separated words.
///
/// What every transport must hold is in `tests/transports`: one suite that runs over each.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Sends a request to the one that serves `subject` and waits for its answer.
    async fn request(
        &self,
        subject: &str,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, BusError>;

    /// Sends a question to all that serve `subject` and collects answers. No answers is an empty
    /// list; one that is too large is left out.
    async fn ask_all(
        &self,
        subject: &str,
        payload: Bytes,
        window: AskWindow,
    ) -> Result<Vec<Bytes>, BusError>;

    /// Serves `subject` until the returned guard is dropped.
    async fn serve(&self, subject: &str, handler: Arc<dyn Handler>) -> Result<Serving, BusError>;

    /// Tells all subscribers of `subject`.
    async fn publish(&self, subject: &str, payload: Bytes) -> Result<(), BusError>;

    /// Messages published on `subject` from now on. A receiver that is too slow loses the newest
    /// ones: publishers number what they send, and a subscriber that sees a hole asks for
    /// everything anew.
    async fn subscribe(&self, subject: &str) -> Result<mpsc::Receiver<Published>, BusError>;
}

/// Keeps a handler in place; dropping it ends the service.
pub struct Serving {
    end: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Serving {
    /// A guard that runs `end` when dropped.
    pub fn new(end: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self { end: Some(Box::new(end)) }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            end();
        }
    }
}
