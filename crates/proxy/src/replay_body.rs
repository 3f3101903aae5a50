//! A request's body on its way to a machine, kept as far as it may have to be sent again.
//!
//! What has gone by is kept in memory, then in a file that has no name, up to a limit. Reads and
//! writes of that file go to the page cache, in the pieces in which the body came.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;

use crate::{MinimumRate, slow_client::Pace};

/// Bytes read from the file at once.
const PIECE: u64 = 64 << 10;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of an attempt that is over. Its source is what a machine with HTTP/2 is told.
#[derive(Debug, thiserror::Error)]
#[error("nobody waits for the response any more")]
struct Abandoned(#[source] h2::Error);

/// The body that the client sends, and what was kept of it. None: there is nothing to send.
#[derive(Debug, Default)]
pub(crate) struct Source(Option<Arc<Mutex<Inner>>>);

#[derive(Debug)]
struct Inner {
    incoming: Option<Incoming>,
    hint: SizeHint,
    /// Attempts so far: only the newest one may read.
    attempt: u32,
    kept: Kept,
    trailers: Option<HeaderMap>,
    is_ended: bool,
    /// The client left before its end.
    is_broken: bool,
    passed: u64,
    /// Whoever waits for more of it.
    waker: Option<Waker>,
    /// Whether it is the client that is waited for.
    is_clients_turn: bool,
    pace: Pace,
    /// The client sent too little of it, and it was given up.
    is_too_slow: bool,
}

/// See [`Source::upload`].
#[derive(Debug, Clone)]
pub(crate) struct Upload(Weak<Mutex<Inner>>);

impl Upload {
    pub(crate) fn is_over(&self) -> bool {
        self.0.upgrade().is_none_or(|inner| inner.lock().incoming.is_none())
    }

    /// Gives it up if the client sends too little of it: whoever sends it on is told.
    pub(crate) fn cut_if_slow(&self, limit: &MinimumRate) {
        let Some(inner) = self.0.upgrade() else { return };
        let is_too_slow = {
            let inner = &mut *inner.lock();
            let sent = (inner.is_clients_turn && inner.incoming.is_some()).then_some(inner.passed);
            inner.is_too_slow |= inner.pace.is_too_slow(limit, sent);
            inner.is_too_slow
        };
        if is_too_slow {
            Source(Some(inner)).abandon();
        }
    }
}

#[derive(Debug, Default)]
struct Kept {
    memory_limit: usize,
    disk_limit: u64,
    is_keeping: bool,
    memory: Vec<Bytes>,
    in_memory: usize,
    file: Option<File>,
    in_file: u64,
    /// Something was not kept.
    is_incomplete: bool,
}

impl Kept {
    fn keep(&mut self, data: &Bytes) {
        if !self.is_keeping || self.is_incomplete {
            self.is_incomplete = true;
            return;
        }
        if self.file.is_none() && self.in_memory + data.len() <= self.memory_limit {
            self.in_memory += data.len();
            self.memory.push(data.clone());
            return;
        }
        if let Err(error) = self.spill(data) {
            tracing::debug!(%error, "a body can't be kept to be sent again");
            self.forget();
        }
    }

    fn spill(&mut self, data: &Bytes) -> io::Result<()> {
        let end = self.in_file + data.len() as u64;
        if end + self.in_memory as u64 > self.disk_limit {
            return Err(io::Error::other("it is too long"));
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile()?),
        };
        file.write_all_at(data, self.in_file)?;
        self.in_file = end;
        Ok(())
    }

    fn forget(&mut self) {
        self.is_keeping = false;
        self.is_incomplete |= self.in_memory > 0 || self.in_file > 0;
        self.memory = Vec::new();
        self.in_memory = 0;
        self.file = None;
        self.in_file = 0;
    }
}

impl Source {
    /// Limits are in bytes: of what is kept in memory, and in all.
    pub(crate) fn new(incoming: Incoming, memory_limit: usize, disk_limit: u64) -> Self {
        if incoming.is_end_stream() {
            return Self(None);
        }
        let inner = Inner {
            hint: incoming.size_hint(),
            incoming: Some(incoming),
            attempt: 0,
            kept: Kept { memory_limit, disk_limit, ..Kept::default() },
            trailers: None,
            is_ended: false,
            is_broken: false,
            passed: 0,
            waker: None,
            is_clients_turn: false,
            pace: Pace::default(),
            is_too_slow: false,
        };
        Self(Some(Arc::new(Mutex::new(inner))))
    }

    /// What is asked of a body, or the answer for one that is empty.
    fn ask<T>(&self, of_empty: T, ask: impl FnOnce(&Inner) -> T) -> T {
        self.0.as_ref().map_or(of_empty, |inner| ask(&inner.lock()))
    }

    /// Whether it was known from the head that there is nothing to send.
    pub(crate) fn is_nothing(&self) -> bool {
        self.0.is_none()
    }

    /// Whether there is nothing to send at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.ask(true, |inner| inner.is_ended && inner.passed == 0 && inner.trailers.is_none())
    }

    /// Whether all of it went by.
    pub(crate) fn is_ended(&self) -> bool {
        self.ask(true, |inner| inner.is_ended)
    }

    /// Whether the client left before its end. What came of it must not be sent again: it would
    /// end like a whole body.
    pub(crate) fn is_broken(&self) -> bool {
        self.ask(false, |inner| inner.is_broken)
    }

    /// Whether the client sent too little of it, and it was given up for that.
    pub(crate) fn is_too_slow(&self) -> bool {
        self.ask(false, |inner| inner.is_too_slow)
    }

    /// The body as something that the client may send too slowly, if there is one.
    pub(crate) fn upload(&self) -> Option<Upload> {
        self.0.as_ref().map(|inner| Upload(Arc::downgrade(inner)))
    }

    /// Whether no byte went by yet.
    pub(crate) fn is_untouched(&self) -> bool {
        self.ask(true, |inner| inner.passed == 0)
    }

    /// Whether it can be sent from its begin.
    pub(crate) fn can_repeat(&self) -> bool {
        self.ask(true, |inner| !inner.kept.is_incomplete)
    }

    /// Bytes that went by.
    pub(crate) fn passed(&self) -> u64 {
        self.ask(0, |inner| inner.passed)
    }

    /// No other attempt will be made: what is kept is dropped.
    pub(crate) fn settle(&self) {
        if let Some(inner) = &self.0 {
            inner.lock().kept.forget();
        }
    }

    /// No more of it is read. An attempt that has not sent all of it fails.
    pub(crate) fn abandon(&self) {
        let Some(inner) = &self.0 else { return };
        let mut inner = inner.lock();
        inner.attempt += 1;
        inner.kept.forget();
        let (incoming, waker) = (inner.incoming.take(), inner.waker.take());
        drop(inner);
        drop(incoming);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The body for one more attempt, from its begin. Bodies of earlier attempts end. `is_kept`
    /// says whether it may have to be sent again after this one.
    pub(crate) fn attempt(&self, is_kept: bool) -> ReplayBody {
        let attempt = self.0.as_ref().map_or(0, |inner| {
            let mut inner = inner.lock();
            inner.attempt += 1;
            inner.kept.is_keeping |= is_kept && inner.passed == 0;
            inner.attempt
        });
        ReplayBody {
            attempt,
            position: 0,
            next_in_memory: 0,
            has_sent_trailers: false,
            inner: self.0.clone(),
        }
    }
}

/// See [`Source::attempt`].
#[derive(Debug)]
pub(crate) struct ReplayBody {
    inner: Option<Arc<Mutex<Inner>>>,
    attempt: u32,
    /// Bytes sent in this attempt.
    position: u64,
    next_in_memory: usize,
    has_sent_trailers: bool,
}

impl ReplayBody {
    /// What was kept and not sent yet in this attempt.
    fn next_kept(&mut self, inner: &Inner) -> io::Result<Option<Bytes>> {
        if self.position >= inner.passed {
            return Ok(None);
        }
        let kept = &inner.kept;
        if let Some(data) = kept.memory.get(self.next_in_memory) {
            self.next_in_memory += 1;
            return Ok(Some(data.clone()));
        }
        let offset = self.position.saturating_sub(kept.in_memory as u64);
        let rest = kept.in_file.saturating_sub(offset);
        match (&kept.file, rest) {
            (Some(file), 1..) => {
                let mut piece = vec![0; rest.min(PIECE) as usize];
                file.read_exact_at(&mut piece, offset)?;
                Ok(Some(piece.into()))
            }
            _ => Err(io::Error::other("the body was not kept")),
        }
    }
}

impl Body for ReplayBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let Some(shared) = this.inner.clone() else { return Poll::Ready(None) };
        let mut inner = shared.lock();
        let inner = &mut *inner;
        if inner.attempt != this.attempt {
            return Poll::Ready(Some(Err(Box::new(Abandoned(h2::Reason::CANCEL.into())))));
        }
        match this.next_kept(inner) {
            Ok(Some(data)) => {
                this.position += data.len() as u64;
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            Ok(None) => {}
            Err(error) => return Poll::Ready(Some(Err(error.into()))),
        }
        let Some(incoming) = &mut inner.incoming else {
            let trailers = inner.trailers.clone().filter(|_| !this.has_sent_trailers);
            this.has_sent_trailers = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        };
        let frame = Pin::new(&mut *incoming).poll_frame(context);
        inner.is_clients_turn = frame.is_pending();
        let frame = match frame {
            Poll::Pending => {
                inner.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(None) => {
                inner.incoming = None;
                inner.is_ended = true;
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(error))) => {
                inner.is_broken = true;
                return Poll::Ready(Some(Err(error.into())));
            }
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        if let Some(data) = frame.data_ref() {
            inner.passed += data.len() as u64;
            this.position = inner.passed;
            inner.kept.keep(data);
            this.next_in_memory = inner.kept.memory.len();
            if incoming.is_end_stream() {
                inner.incoming = None;
                inner.is_ended = true;
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            inner.trailers = Some(trailers.clone());
            this.has_sent_trailers = true;
            inner.incoming = None;
            inner.is_ended = true;
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        let Some(inner) = &self.inner else { return true };
        let inner = inner.lock();
        inner.is_ended
            && self.position >= inner.passed
            && (self.has_sent_trailers || inner.trailers.is_none())
    }

    fn size_hint(&self) -> SizeHint {
        let Some(inner) = &self.inner else { return SizeHint::with_exact(0) };
        let inner = inner.lock();
        if inner.is_ended && inner.passed == 0 {
            return SizeHint::with_exact(0);
        }
        inner.hint
    }
}
