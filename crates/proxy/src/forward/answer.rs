//! The body of an answer, and what is held until it has gone by.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderValue;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::{
    ErrorCode,
    admission::Permit,
    app::App,
    core::Core,
    counters,
    error::Failure,
    machine::Serves,
    pool::{Pool, Upstream},
    replay_body::{BoxError, Source},
};

/// What is held while a response goes by. Dropped, it gives back the place at the machine, and the
/// connection to it where that can take another request.
pub(crate) struct Passing {
    pub core: Arc<Core>,
    pub app: Arc<App>,
    pub request_id: HeaderValue,
    pub permit: Permit,
    pub upstream: Option<Upstream>,
    pub source: Source,
    pub _serves: Serves,
}

impl Passing {
    /// The response went by as a whole.
    fn is_over(&mut self) {
        // A request that was answered before its end leaves a connection that can't be used.
        if let Some(upstream) = self.upstream.take().filter(|_| self.source.is_ended()) {
            Pool::put(&self.core, &self.permit.machine, upstream);
        }
    }

    fn broke(&self, error: &hyper::Error) {
        let id = &self.permit.machine.id;
        let text = format!("the response of machine {id} ended too early: {error}");
        let failure = Failure::of(id, ErrorCode::PC03, text);
        self.core.report(&self.app, &failure, self.request_id.to_str().ok());
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        counters::add(&self.permit.machine.tally.bytes_in, self.source.passed());
        // What the client still sends has nobody to go to.
        if !self.source.is_ended() {
            self.source.abandon();
        }
    }
}

/// The body of an answer.
pub(crate) enum AnswerBody {
    Empty,
    Text(Full<Bytes>),
    Machine { body: Incoming, passing: Option<Box<Passing>> },
}

impl AnswerBody {
    pub(crate) fn machine(body: Incoming, passing: Passing) -> Self {
        Self::Machine { body, passing: Some(Box::new(passing)) }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Text(text) => Pin::new(text).poll_frame(context).map_err(|never| match never {}),
            Self::Machine { body, passing } => {
                let frame = Pin::new(body).poll_frame(context);
                match (&frame, &passing) {
                    (Poll::Ready(Some(Ok(frame))), Some(passing)) => {
                        if let Some(data) = frame.data_ref() {
                            let tally = &passing.permit.machine.tally;
                            counters::add(&tally.bytes_out, data.len() as u64);
                        }
                    }
                    (Poll::Ready(Some(Err(error))), Some(passing)) => passing.broke(error),
                    _ => {}
                }
                frame.map_err(Into::into)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Text(text) => text.is_end_stream(),
            Self::Machine { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Text(text) => text.size_hint(),
            Self::Machine { body, .. } => body.size_hint(),
        }
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        if let Self::Machine { body, passing } = self
            && let Some(mut passing) = passing.take()
            && body.is_end_stream()
        {
            passing.is_over();
        }
    }
}
