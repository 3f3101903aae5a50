//! An HTTP/1 connection to a machine over which requests without a body go. The task of the
//! request writes and reads: there is no other one to be told, and what is read for a moment is
//! read to memory that all connections of a thread share, which stays in the processor's cache.
//! Why it is not hyper that does so: docs/measurements.md, "A request through the proxy".

use std::{
    cell::RefCell,
    future::poll_fn,
    io, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{Method, Response};
use hyper::body::Frame;
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::TcpStream,
};
use tokio_util::io::poll_read_buf;

use super::{
    Cut, NoResponse, UpstreamError,
    response::{Body, Head, MAX_HEAD, TOO_LONG, take_head},
};
use crate::{machine::Connected, rare::Rare, request_head::RequestHead};

/// Bytes that are read at once.
const READ: usize = 16 << 10;
/// The same once a read of [`READ`] was not all there was.
const LARGE_READ: usize = 64 << 10;

thread_local! {
    static WRITING: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static READING: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
}

/// See the module's text.
pub(super) struct Direct {
    stream: TcpStream,
    /// What was received and not used yet.
    received: Bytes,
    /// How much of it is known to be part of a head that is not whole.
    searched: usize,
    /// What the socket had no room for.
    unsent: BytesMut,
    method: Method,
    /// Whether it can take another request once this one is over.
    keeps_open: bool,
    /// Whether the last read took as much as it could.
    last_read_was_full: bool,
    cut: Rare<Cut>,
    connected: Connected,
}

impl Direct {
    pub(super) fn new(stream: TcpStream, cut: Cut, connected: Connected) -> Self {
        Self {
            stream,
            received: Bytes::new(),
            searched: 0,
            unsent: BytesMut::new(),
            method: Method::GET,
            keeps_open: true,
            last_read_was_full: false,
            cut: Rare::new(cut),
            connected,
        }
    }

    /// Its parts. Only before a request, or between two.
    pub(super) fn into_parts(self) -> (TcpStream, Cut, Connected) {
        (self.stream, self.cut.into_inner(), self.connected)
    }

    /// Whether no other request can be sent: the machine has closed it, or said what nobody asked,
    /// or it was cut.
    pub(super) fn is_closed(&mut self) -> bool {
        if !self.keeps_open || !self.received.is_empty() || !self.unsent.is_empty() {
            return true;
        }
        if self.cut.peek().is_ready() {
            return true;
        }
        // Asks the socket only if something is known to have come.
        let read = self.stream.try_read(&mut [0]);
        !matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// The response is over: until the next request nobody is to be woken.
    pub(super) fn set_idle(&mut self) {
        self.cut.leave_alone();
    }

    /// Sends a request's head, and waits for the response's.
    pub(super) async fn send(&mut self, head: &RequestHead) -> Result<Response<Body>, NoResponse> {
        self.method.clone_from(&head.method);
        WRITING.with_borrow_mut(|buffer| {
            buffer.clear();
            head.write_to(buffer);
            // What does not fit is written while the response is waited for.
            let written = match self.stream.try_write(buffer) {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(_) => return Err(NoResponse::Unsent),
            };
            self.unsent.extend_from_slice(&buffer[written..]);
            Ok(())
        })?;
        poll_fn(|context| self.poll_head(context)).await.map_err(NoResponse::Broken)
    }

    fn poll_head(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Response<Body>, UpstreamError>> {
        loop {
            self.poll_write(context);
            if ready!(self.poll_read(context))? == 0 {
                return Poll::Ready(Err(UpstreamError::Closed));
            }
            // A machine that sends it byte by byte does not have it read as often.
            let unseen = &self.received[self.searched.saturating_sub(2)..];
            if self.searched > 0 && !may_end_head(unseen) {
                self.searched = self.received.len();
                if self.searched > MAX_HEAD {
                    return Poll::Ready(Err(TOO_LONG.into()));
                }
                continue;
            }
            let head = take_head(&mut self.received, &self.method)?;
            self.searched = if head.is_some() { 0 } else { self.received.len() };
            if let Some(Head { response, keeps_open }) = head {
                // One that comes before all of the request was sent is the last.
                self.keeps_open &= keeps_open && self.unsent.is_empty();
                return Poll::Ready(Ok(response));
            }
        }
    }

    /// The next part of a response's body.
    pub(super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
        body: &mut Body,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        self.poll_write(context);
        loop {
            if let Some(frame) = body.take_frame(&mut self.received)? {
                return Poll::Ready(Some(Ok(frame)));
            }
            if body.is_over() {
                return Poll::Ready(None);
            }
            if ready!(self.poll_read(context))? == 0 {
                if *body != Body::UntilClose {
                    return Poll::Ready(Some(Err(UpstreamError::Closed)));
                }
                *body = Body::Over;
                return Poll::Ready(None);
            }
        }
    }

    /// Writes what is left of the request, as far as there is room. A machine that takes no more of
    /// it may have said why.
    fn poll_write(&mut self, context: &mut Context<'_>) {
        while !self.unsent.is_empty() {
            match Pin::new(&mut self.stream).poll_write(context, &self.unsent) {
                Poll::Ready(Ok(written)) => self.unsent.advance(written),
                Poll::Ready(Err(_)) => {
                    self.keeps_open = false;
                    self.unsent.clear();
                }
                Poll::Pending => break,
            }
        }
    }

    /// Reads what is there. 0: nothing more comes.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<usize, UpstreamError>> {
        if Pin::new(&mut self.cut).poll(context).is_ready() {
            return Poll::Ready(Err(UpstreamError::Cut));
        }
        if self.last_read_was_full && self.received.is_empty() {
            // No memory before there is something for it.
            ready!(self.stream.poll_read_ready(context))?;
            let mut much = BytesMut::with_capacity(LARGE_READ);
            let stream = Pin::new(&mut self.stream);
            let read = ready!(poll_read_buf(stream, context, &mut much))?;
            self.last_read_was_full = read >= READ;
            self.received = much.freeze();
            return Poll::Ready(Ok(read));
        }
        READING.with_borrow_mut(|memory| {
            let mut buffer = ReadBuf::new(memory);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            let read = buffer.filled();
            self.last_read_was_full = read.len() == READ;
            append(&mut self.received, read);
            Poll::Ready(Ok(read.len()))
        })
    }
}

/// Appends to what was received; what there was is copied only where somebody has part of it.
fn append(received: &mut Bytes, read: &[u8]) {
    if received.is_empty() {
        *received = Bytes::copy_from_slice(read);
        return;
    }
    let mut grown = match mem::take(received).try_into_mut() {
        Ok(grown) => grown,
        Err(shared) => BytesMut::from(&shared[..]),
    };
    grown.extend_from_slice(read);
    *received = grown.freeze();
}

/// Whether an empty line ends within these bytes.
fn may_end_head(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|pair| pair == b"\n\n") || bytes.windows(3).any(|end| end == b"\n\r\n")
}
