//! The body of an answer, and what is held until it has gone by.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Version};
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use crate::{
    ErrorCode, MinimumRate,
    admission::Permit,
    app::App,
    connection::{Connection, InProgress},
    core::Core,
    counters,
    error::Failure,
    machine::Serves,
    pool::{Pool, ResponseBody, Upstream, UpstreamError},
    replay_body::{BoxError, Source},
    slow_client::Pace,
};

/// What is held while a response goes by. Dropped, it gives back the place at the machine, and the
/// connection to it where that can take another request.
pub(crate) struct Passing {
    pub core: Arc<Core>,
    pub app: Arc<App>,
    pub connection: Arc<Connection>,
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

    fn broke(&self, error: &UpstreamError) {
        let id = &self.permit.machine.id;
        if self.source.is_too_slow() {
            let failure = super::failures::too_slow(id);
            self.core.report(&self.app, &failure, self.request_id.to_str().ok());
            return;
        }
        let text = format!("the response of machine {id} ended too early: {error}");
        self.report(ErrorCode::PC03, text);
    }

    /// The client was cut off.
    fn is_too_slow(&self) {
        let id = &self.permit.machine.id;
        let text = format!("the client took the response of machine {id} too slowly");
        self.report(ErrorCode::PC04, text);
    }

    fn report(&self, code: ErrorCode, text: String) {
        let failure = Failure::of(&self.permit.machine.id, code, text);
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

/// A response's body on its way from a machine.
pub(crate) struct MachineBody {
    /// Until it has ended.
    body: Option<ResponseBody>,
    /// Until all of it went by.
    passing: Option<Box<Passing>>,
    /// What comes after all that came.
    error: Option<UpstreamError>,
}

impl MachineBody {
    fn new(body: ResponseBody, passing: Passing) -> Self {
        Self { body: Some(body), passing: Some(Box::new(passing)), error: None }
    }

    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(error) = self.error.take() {
            return Poll::Ready(Some(Err(error.into())));
        }
        let (Some(body), Some(passing)) = (&mut self.body, &mut self.passing) else {
            return Poll::Ready(None);
        };
        let Some(upstream) = &mut passing.upstream else { return Poll::Ready(None) };
        let frame = upstream.poll_frame(context, body);
        match frame {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    let tally = &passing.permit.machine.tally;
                    counters::add(&tally.bytes_out, data.len() as u64);
                }
                // Of a response in chunks it is not known before its end is asked for.
                if frame.is_trailers() || body.is_end_stream() {
                    self.is_over();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                passing.broke(&error);
                // hyper drops what it has not sent yet when it is told.
                self.error = Some(error);
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(None) => {
                self.is_over();
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_over(&mut self) {
        // It tells the connection, which can be parked only then.
        drop(self.body.take());
        if let Some(mut passing) = self.passing.take() {
            passing.is_over();
        }
    }

    fn is_end_stream(&self) -> bool {
        self.error.is_none() && self.body.as_ref().is_none_or(ResponseBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), ResponseBody::size_hint)
    }
}

impl Drop for MachineBody {
    fn drop(&mut self) {
        if self.is_end_stream() {
            self.is_over();
        }
        if let Some(passing) = self.passing.take().filter(|passing| passing.connection.is_slow()) {
            passing.is_too_slow();
        }
    }
}

/// A response's body on its way to a client of HTTP/2, who may take each response of a connection
/// at another pace.
pub(crate) struct StreamBody {
    connection: Arc<Connection>,
    taking: Mutex<Taking>,
}

struct Taking {
    /// None: it was cut.
    body: Option<MachineBody>,
    /// Bytes that the client took, or has room for.
    taken: u64,
    /// Whether it has not made room for the bytes after those.
    is_clients_turn: bool,
    pace: Pace,
}

impl StreamBody {
    fn watched(body: MachineBody, connection: Arc<Connection>) -> Arc<Self> {
        let pace = Pace::default();
        let taking = Taking { body: Some(body), taken: 0, is_clients_turn: true, pace };
        let stream = Arc::new(Self { connection: connection.clone(), taking: Mutex::new(taking) });
        connection.watch(&stream);
        stream
    }

    /// Leaves the machine alone if the client takes too little. The client is told once it takes
    /// the next part.
    pub(crate) fn cut_if_slow(&self, limit: &MinimumRate) {
        let mut taking = self.taking.lock();
        let taken = taking.is_clients_turn.then_some(taking.taken);
        if !taking.pace.is_too_slow(limit, taken) {
            return;
        }
        let body = taking.body.take();
        drop(taking);
        if let Some(passing) = body.and_then(|mut body| body.passing.take()) {
            passing.is_too_slow();
        }
    }

    fn poll_frame(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut taking = self.taking.lock();
        let Some(body) = &mut taking.body else {
            return Poll::Ready(Some(Err("the client took too little of it".into())));
        };
        let frame = body.poll_frame(context);
        taking.is_clients_turn = frame.is_ready();
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            taking.taken += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        frame
    }
}

/// The body of an answer to a request that is in progress until it is over.
pub(crate) struct Answer {
    body: AnswerBody,
    _in_progress: InProgress,
}

impl Answer {
    pub(super) fn new(body: AnswerBody, in_progress: InProgress) -> Self {
        Self { body, _in_progress: in_progress }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What an answer says.
pub(super) enum AnswerBody {
    Empty,
    Text(Full<Bytes>),
    Machine(MachineBody),
    Stream(Arc<StreamBody>),
}

impl AnswerBody {
    /// A machine's answer to a client of this version.
    pub(crate) fn machine(version: Version, body: ResponseBody, passing: Passing) -> Self {
        let connection = passing.connection.clone();
        let body = MachineBody::new(body, passing);
        if version == Version::HTTP_2 && !body.is_end_stream() {
            Self::Stream(StreamBody::watched(body, connection))
        } else {
            Self::Machine(body)
        }
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
            Self::Machine(machine) => machine.poll_frame(context),
            Self::Stream(stream) => stream.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Text(text) => text.is_end_stream(),
            Self::Machine(machine) => machine.is_end_stream(),
            Self::Stream(stream) => {
                let taking = stream.taking.lock();
                taking.body.as_ref().is_some_and(MachineBody::is_end_stream)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Text(text) => text.size_hint(),
            Self::Machine(machine) => machine.size_hint(),
            Self::Stream(stream) => {
                let taking = stream.taking.lock();
                taking.body.as_ref().map(MachineBody::size_hint).unwrap_or_default()
            }
        }
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        if let Self::Stream(stream) = self {
            stream.connection.unwatch(stream);
        }
    }
}
