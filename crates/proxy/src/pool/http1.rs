//! An HTTP/1 connection to a machine.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use http::Response;
use hyper::{
    body::{Body as _, Bytes, Frame, Incoming, SizeHint},
    client::conn::{TrySendError, http1},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{
    Cut,
    direct::Direct,
    response::{Body, Invalid},
};
use crate::{
    core::Core,
    machine::Connected,
    rare::Rare,
    replay_body::{ReplayBody, Source},
    request_head::RequestHead,
    socket::MachineSocket,
};

/// Why a machine gave no response, or not all of one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error("{0}")]
    Library(#[from] hyper::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("its connection was closed")]
    Closed,
    #[error("its connection was cut")]
    Cut,
    #[error("{0}")]
    Invalid(#[from] Invalid),
}

impl UpstreamError {
    /// Whether the connection was cut on our side, since the machine ends.
    pub(crate) fn is_cut(&self) -> bool {
        match self {
            Self::Library(error) => error.is_canceled(),
            error => matches!(error, Self::Cut),
        }
    }

    /// Whether the machine said something that is no response.
    pub(crate) fn is_invalid(&self) -> bool {
        match self {
            Self::Library(error) => error.is_parse(),
            error => matches!(error, Self::Invalid(_)),
        }
    }
}

/// Why there is no response to a request.
pub(crate) enum NoResponse {
    /// Nothing of the request was sent.
    Unsent,
    Broken(UpstreamError),
}

/// The body of a response, read from the connection that it comes over.
pub(crate) enum ResponseBody {
    Direct(Body),
    Driven(Incoming),
}

impl ResponseBody {
    pub(crate) fn is_end_stream(&self) -> bool {
        match self {
            Self::Direct(body) => body.is_over(),
            Self::Driven(body) => body.is_end_stream(),
        }
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Direct(body) => body.size_hint(),
            Self::Driven(body) => body.size_hint(),
        }
    }
}

/// What comes of a request.
pub(super) type Sent = Result<Response<ResponseBody>, NoResponse>;

/// See the module's text.
pub(super) enum Http1 {
    /// Sends requests without a body.
    Direct(Box<Direct>),
    /// Sends bodies and upgrades too, driven by a task of its own: what is sent goes on while
    /// nobody asks for the response.
    Driven(http1::SendRequest<ReplayBody>),
}

impl Http1 {
    pub(super) fn new(stream: TcpStream, cut: Cut, connected: Connected) -> Self {
        Self::Direct(Box::new(Direct::new(stream, cut, connected)))
    }

    /// Gives it a task of its own, if it has none yet. Only between requests.
    pub(super) async fn drive(self, core: &Core) -> hyper::Result<Self> {
        let Self::Direct(direct) = self else { return Ok(self) };
        let (stream, cut, connected) = direct.into_parts();
        let stream = TokioIo::new(MachineSocket::new(stream));
        let (sender, connection) = http1::Builder::new().handshake(stream).await?;
        core.tasks.spawn(async move {
            let _connected = connected;
            tokio::select! {
                biased;
                _ = connection.with_upgrades() => {}
                () = Rare::new(cut) => {}
            }
        });
        Ok(Self::Driven(sender))
    }

    /// Whether it takes no further request.
    pub(super) fn is_closed(&mut self) -> bool {
        match self {
            Self::Direct(direct) => direct.is_closed(),
            Self::Driven(sender) => sender.is_closed(),
        }
    }

    /// The response is over: nothing is to be done before the next request.
    pub(super) fn set_idle(&mut self) {
        if let Self::Direct(direct) = self {
            direct.set_idle();
        }
    }

    /// Whether it can take a request now. What went over it before may not have been told so yet.
    pub(super) async fn is_ready(&mut self) -> bool {
        match self {
            Self::Direct(direct) => !direct.is_closed(),
            Self::Driven(sender) => sender.ready().await.is_ok(),
        }
    }

    /// Sends a request, and waits for the response to it. The head is kept if it may be sent again.
    pub(super) async fn send(
        &mut self,
        head: &mut RequestHead,
        may_repeat: bool,
        source: &Source,
    ) -> Sent {
        match self {
            Self::Direct(direct) => {
                let response = direct.send(head).await?;
                Ok(response.map(ResponseBody::Direct))
            }
            Self::Driven(sender) => {
                let sent = sender.try_send_request(head.request(may_repeat, source));
                // Boxed, as most requests have no body.
                sent_by_library(Box::pin(sent).await, head)
            }
        }
    }

    /// The next part of a response's body.
    pub(super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
        body: &mut ResponseBody,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        match (self, body) {
            (Self::Direct(direct), ResponseBody::Direct(body)) => direct.poll_frame(context, body),
            (_, body) => body.poll_driven(context),
        }
    }
}

impl ResponseBody {
    /// The next part of one that comes over a connection with a task of its own.
    pub(super) fn poll_driven(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        match self {
            Self::Driven(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
            // Its connection is another.
            Self::Direct(_) => Poll::Ready(Some(Err(UpstreamError::Closed))),
        }
    }
}

/// What the library says of a request. The head is given back where it was not sent.
pub(super) fn sent_by_library(
    sent: Result<Response<Incoming>, TrySendError<http::Request<ReplayBody>>>,
    head: &mut RequestHead,
) -> Sent {
    match sent {
        Ok(response) => Ok(response.map(ResponseBody::Driven)),
        Err(mut error) => Err(match error.take_message() {
            Some(unsent) => {
                head.headers = unsent.into_parts().0.headers;
                NoResponse::Unsent
            }
            None => NoResponse::Broken(error.into_error().into()),
        }),
    }
}
