//! A client's socket: has its place as long as it lives, upgraded or not, and says what was wrong
//! with a head.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::Sleep,
};

use super::{
    activity::Activity,
    refusal::{self, Refusals},
};

/// How long, and how much of, what a refused client still sends is read. One that is cut off while
/// it sends never sees the answer.
const LINGER: (Duration, usize) = (Duration::from_secs(5), 16 << 20);

/// How the answer begins after which a connection is another protocol's.
const UPGRADES: &[u8] = b"HTTP/1.1 101 ";

/// See the module's text.
pub(super) struct Stream {
    socket: TcpStream,
    activity: Arc<Activity>,
    refusals: Refusals,
    /// Our answer in place of hyper's, as far as it is not written.
    substitute: Vec<u8>,
    /// Since an answer was put in another's place.
    lingering: Option<Linger>,
    /// What follows is a session's, and not hyper's.
    upgraded: bool,
    _place: OwnedSemaphorePermit,
}

struct Linger {
    end: Pin<Box<Sleep>>,
    left: usize,
}

impl Stream {
    pub(super) fn new(
        socket: TcpStream,
        activity: Arc<Activity>,
        refusals: Refusals,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            socket,
            activity,
            refusals,
            substitute: Vec::new(),
            lingering: None,
            upgraded: false,
            _place: place,
        }
    }

    /// Whether an answer that is written now may be hyper's own refusal.
    fn may_refuse(&mut self, bytes: &[u8]) -> bool {
        self.upgraded |= bytes.starts_with(UPGRADES);
        !self.upgraded && self.activity.is_idle()
    }

    /// Writes what was put in the place of something else.
    fn poll_substitute(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.substitute.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(context, &self.substitute))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.substitute.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads and throws away.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(linger) = &mut self.lingering else { return Poll::Ready(()) };
        let mut room = [0; 8192];
        loop {
            let mut buffer = ReadBuf::new(&mut room);
            match Pin::new(&mut self.socket).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(()))
                    if !buffer.filled().is_empty() && buffer.filled().len() < linger.left =>
                {
                    linger.left -= buffer.filled().len();
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return linger.end.as_mut().poll(context),
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_substitute(context))?;
        let found = if this.may_refuse(bytes) { refusal::find(bytes) } else { None };
        match found {
            None => Pin::new(&mut this.socket).poll_write(context, bytes),
            Some((0, status)) => {
                this.substitute = this.refusals.instead_of(status);
                this.lingering =
                    Some(Linger { end: Box::pin(tokio::time::sleep(LINGER.0)), left: LINGER.1 });
                match this.poll_substitute(context) {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    _ => Poll::Ready(Ok(bytes.len())),
                }
            }
            // The end of the answer before it.
            Some((at, _)) => Pin::new(&mut this.socket).poll_write(context, &bytes[..at]),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut filled = slices.iter().filter(|slice| !slice.is_empty());
        let first = filled.next();
        let last = filled.next_back().or(first);
        let may_refuse = self.may_refuse(first.map_or(&[], |first| first));
        let refused = may_refuse && last.is_some_and(|last| refusal::find(last).is_some());
        // Head and body of an answer go out as one, unless there is something to put in their
        // place.
        if let Some(first) = first.filter(|_| refused || !self.substitute.is_empty()) {
            return self.poll_write(context, first);
        }
        Pin::new(&mut self.socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_substitute(context))?;
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_substitute(context))?;
        ready!(Pin::new(&mut self.socket).poll_shutdown(context))?;
        ready!(self.poll_linger(context));
        Poll::Ready(Ok(()))
    }
}
