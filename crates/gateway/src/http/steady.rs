//! Bodies of uploads, which may take as long as they like, but not stand still.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::time::Sleep;

/// A body that fails when nothing of it has come for so long.
pub(crate) struct Steady {
    body: Body,
    patience: Duration,
    /// While something is waited for.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Steady {
    pub(crate) fn new(body: Body, patience: Duration) -> Self {
        Self { body, patience, waiting: None }
    }
}

impl HttpBody for Steady {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.waiting = None;
            return Poll::Ready(frame);
        }
        let waiting =
            this.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(this.patience)));
        ready!(waiting.as_mut().poll(context));
        let text = format!("nothing came for {} s", this.patience.as_secs_f32());
        Poll::Ready(Some(Err(axum::Error::new(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            text,
        )))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
