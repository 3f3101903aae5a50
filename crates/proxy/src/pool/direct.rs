//! An HTTP/1 connection to a machine over which requests go that are heads alone. The task of the
//! request writes and reads: there is no other one to be told, and what is read for a moment is
//! read to memory that all connections of a thread share, which stays in the processor's cache.
//! Why it is not hyper that does so: docs/measurements.md, "A request through the proxy".

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
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
    response::{Body, Head, take_head},
};
use crate::{machine::Connected, rare::Rare, request_head::RequestHead};

/// Bytes that are read at once.
const READ: usize = 16 << 10;
/// The same once a read of [`READ`] was not all there was.
const READ_MUCH: usize = 64 << 10;

thread_local! {
    static WRITING: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static READING: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
}

/// See the module's text.
pub(super) struct Direct {
    stream: TcpStream,
    /// What came and was not used yet.
    came: Bytes,
    /// What the socket had no room for.
    unsent: BytesMut,
    method: Method,
    /// Whether it can take another request once this one is over.
    keeps_open: bool,
    /// Whether the last read took as much as it could.
    is_much: bool,
    cut: Rare<Cut>,
    connected: Connected,
}

impl Direct {
    pub(super) fn new(stream: TcpStream, cut: Cut, connected: Connected) -> Self {
        Self {
            stream,
            came: Bytes::new(),
            unsent: BytesMut::new(),
            method: Method::GET,
            keeps_open: true,
            is_much: false,
            cut: Rare::new(cut),
            connected,
        }
    }

    /// Its parts. Only before a request, or between two.
    pub(super) fn into_parts(self) -> (TcpStream, Cut, Connected) {
        (self.stream, self.cut.into_inner(), self.connected)
    }

    /// Whether no other request can be sent: the machine has closed it, or said what nobody asked.
    pub(super) fn is_closed(&self) -> bool {
        if !self.keeps_open || !self.came.is_empty() || !self.unsent.is_empty() {
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
            if let Some(Head { response, keeps_open }) = take_head(&mut self.came, &self.method)? {
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
        loop {
            if let Some(frame) = body.take_frame(&mut self.came)? {
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
        if self.is_much && self.came.is_empty() {
            // No memory before there is something for it.
            ready!(self.stream.poll_read_ready(context))?;
            let mut much = BytesMut::with_capacity(READ_MUCH);
            let stream = Pin::new(&mut self.stream);
            let read = ready!(poll_read_buf(stream, context, &mut much))?;
            self.is_much = read >= READ;
            self.came = much.freeze();
            return Poll::Ready(Ok(read));
        }
        READING.with_borrow_mut(|memory| {
            let mut buffer = ReadBuf::new(memory);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            let came = buffer.filled();
            self.is_much = came.len() == READ;
            self.came = if self.came.is_empty() {
                Bytes::copy_from_slice(came)
            } else {
                [&self.came[..], came].concat().into()
            };
            Poll::Ready(Ok(came.len()))
        })
    }
}
