//! A client connection in HTTP/1 or HTTP/2, whichever its first bytes say.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::Service,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    connection::Connection,
    core::Core,
    forward::{self, Answer, Answering},
    request_guard::{Guarded, Spoken},
};

/// Requests in progress on one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;
/// Streams that a client may have begun and reset before we saw them, and that we reset.
const MAX_RESETS: usize = 64;
/// Bytes of a request's head.
const MAX_HEAD: usize = 64 << 10;
/// A client with HTTP/2 that says nothing is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Sends requests on.
pub(crate) struct Forward {
    core: Arc<Core>,
    connection: Arc<Connection>,
}

impl Service<Request<Incoming>> for Forward {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let began = self.connection.begin_request(request.version());
        forward::serve(self.core.clone(), self.connection.clone(), began, request)
    }
}

type Http2<S> = http2::Connection<TokioIo<Guarded<S>>, Forward, TokioExecutor>;

/// What reads and writes HTTP. Boxed, as there is none while a connection is parked.
pub(crate) enum Serving<S> {
    Http1(Box<http1::UpgradeableConnection<TokioIo<Guarded<S>>, Forward>>),
    Http2(Pin<Box<Http2<S>>>),
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Serving<S> {
    pub(crate) fn begin(
        core: &Arc<Core>,
        connection: &Arc<Connection>,
        stream: Guarded<S>,
        spoken: Spoken,
    ) -> Self {
        let stream = TokioIo::new(stream);
        let service = Forward { core: core.clone(), connection: connection.clone() };
        match spoken {
            Spoken::Http1 => {
                let mut builder = http1::Builder::new();
                // A client that shuts its writing side still gets its answer. The time for heads
                // is watched by the connection: hyper would make a timer for each request.
                builder.half_close(true).header_read_timeout(None).max_buf_size(MAX_HEAD);
                Self::Http1(Box::new(builder.serve_connection(stream, service).with_upgrades()))
            }
            Spoken::Http2 => {
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder
                    .timer(TokioTimer::new())
                    .enable_connect_protocol()
                    .max_concurrent_streams(MAX_STREAMS)
                    .max_pending_accept_reset_streams(MAX_RESETS)
                    .max_local_error_reset_streams(MAX_RESETS)
                    .max_header_list_size(MAX_HEAD as u32)
                    .keep_alive_interval(KEEPALIVE);
                Self::Http2(Box::pin(builder.serve_connection(stream, service)))
            }
        }
    }

    /// Lets requests in progress end, and then the connection.
    pub(crate) fn end(&mut self) {
        match self {
            Self::Http1(serving) => Pin::new(&mut **serving).graceful_shutdown(),
            Self::Http2(serving) => serving.as_mut().graceful_shutdown(),
        }
    }

    /// Whether the connection, which has ended without an error, did so with an answer over HTTP/1,
    /// and not with an upgrade, after which somebody else has it.
    pub(crate) fn has_answered_last(self) -> bool {
        match self {
            Self::Http1(serving) => serving.into_parts().is_some(),
            Self::Http2(_) => false,
        }
    }

    /// The connection of a request that was refused and that nobody has answered, once it has ended
    /// in an error, and why it was refused.
    pub(crate) fn unanswered(self) -> Option<(Guarded<S>, &'static str)> {
        let Self::Http1(serving) = self else { return None };
        let stream = serving.into_parts()?.io.into_inner();
        let why = stream.unanswered()?;
        Some((stream, why))
    }

    /// The connection alone, without the buffers of what reads and writes. To be called between two
    /// requests; None where something was left over, which must not be taken for a request.
    pub(crate) fn park(self) -> Option<Guarded<S>> {
        let Self::Http1(serving) = self else { return None };
        let parts = serving.into_parts()?;
        parts.read_buf.is_empty().then(|| parts.io.into_inner())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Future for Serving<S> {
    type Output = hyper::Result<()>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        match self.get_mut() {
            Self::Http1(serving) => Pin::new(&mut **serving).poll(context),
            Self::Http2(serving) => serving.as_mut().poll(context),
        }
    }
}
