//! A client's socket: notes when something went over it, and can be asked whether the client left
//! while something else reads and writes.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    net::Shutdown,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::Instant,
};

use crate::{connections::Admitted, machine::Clock};

/// How often a client that has sent more than was read yet is asked whether it left: nothing tells,
/// as its socket is readable all the time.
const ASK: Duration = Duration::from_millis(250);

/// A peer that says nothing is asked after this time, then every so often, and given up after so
/// many questions: clients vanish, and so do VMs that are killed, without closing connections.
const ALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 4);

/// Options of all connections, of clients and to machines. Errors show when it is used.
pub(crate) fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let (time, interval, retries) = ALIVE;
    let keepalive =
        TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// So many bytes are copied to be written as one piece.
const ONE_PIECE: usize = 4096;

/// So many bytes that nobody wants are read at once.
const DROPPED_AT_ONCE: usize = 16 << 10;

thread_local! {
    static WHOLE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Writes pieces as one where they are few bytes: copying these costs less than the kernel's
/// gathering of them.
fn as_one<T>(
    pieces: &[IoSlice<'_>],
    write: impl FnOnce(&[u8]) -> T,
    write_vectored: impl FnOnce() -> T,
) -> T {
    if let [piece] = pieces {
        return write(piece);
    }
    if pieces.iter().map(|piece| piece.len()).sum::<usize>() > ONE_PIECE {
        return write_vectored();
    }
    WHOLE.with_borrow_mut(|whole| {
        whole.clear();
        pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
        write(whole)
    })
}

/// A socket to a machine.
#[derive(Debug)]
pub(crate) struct MachineSocket(TcpStream);

impl MachineSocket {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(stream)
    }
}

impl AsyncRead for MachineSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(context, buffer)
    }
}

impl AsyncWrite for MachineSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(context, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = &self.get_mut().0;
        loop {
            ready!(stream.poll_write_ready(context))?;
            let write = |data: &[u8]| stream.try_write(data);
            match as_one(data, write, || stream.try_write_vectored(data)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(context)
    }
}

/// What is known of a client's socket apart from reading and writing.
#[derive(Debug)]
pub(crate) struct Monitor {
    /// Stands for the socket: both halves can ask it.
    stream: OwnedWriteHalf,
    clock: Clock,
    last: AtomicU64,
    /// Whether somebody asks for how long it has been idle: else the clock is not read.
    is_timed: AtomicBool,
    /// Bytes written so far.
    written: AtomicU64,
    /// Whether no more can be written until the client has taken some of it.
    is_blocked: AtomicBool,
    /// For as long as the socket is open.
    _admitted: Admitted,
}

impl Monitor {
    fn touch(&self) {
        if self.is_timed.load(Ordering::Relaxed) {
            self.note();
        }
    }

    /// There is one at a time who writes.
    fn wrote(&self, bytes: usize) {
        let written = self.written.load(Ordering::Relaxed) + bytes as u64;
        self.written.store(written, Ordering::Relaxed);
        self.is_blocked.store(false, Ordering::Relaxed);
    }

    fn note(&self) {
        self.last.store(self.clock.now(), Ordering::Relaxed);
    }

    /// The time as the proxy counts it.
    pub(crate) fn now(&self) -> u64 {
        self.clock.now()
    }

    /// Bytes written so far, if more waits for the client to take some of them.
    pub(crate) fn blocked(&self) -> Option<u64> {
        let is_blocked = self.is_blocked.load(Ordering::Relaxed);
        is_blocked.then(|| self.written.load(Ordering::Relaxed))
    }

    /// Ends when the client has closed its side, or the connection broke.
    pub(crate) async fn left(&self) {
        loop {
            match self.stream.as_ref().ready(Interest::READABLE).await {
                Ok(ready) if ready.is_read_closed() || ready.is_error() => return,
                Ok(_) => tokio::time::sleep(ASK).await,
                Err(_) => return,
            }
        }
    }

    /// Ends when the connection broke: the client reset it, or does not answer any more. A client
    /// that closes it is found out by the next keepalive.
    pub(crate) async fn broken(&self) {
        // The error is that the runtime ends.
        let _ = self.stream.as_ref().ready(Interest::ERROR).await;
    }

    /// Reads what the client still sends, and drops it, until it closes its side.
    pub(crate) async fn discard(&self) {
        let stream: &TcpStream = self.stream.as_ref();
        let mut dropped = vec![0; DROPPED_AT_ONCE];
        while stream.readable().await.is_ok() {
            match stream.try_read(&mut dropped) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }

    /// Ends when nothing went over it for so long, from now on.
    pub(crate) async fn idle(&self, timeout: Duration) {
        self.is_timed.store(true, Ordering::Relaxed);
        self.note();
        loop {
            let at = self.clock.instant(self.last.load(Ordering::Relaxed)) + timeout;
            if at <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(at).await;
        }
    }
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct ClientSocket {
    /// Reads like this do not ask the socket again after one that took all there was.
    reader: OwnedReadHalf,
    monitor: Arc<Monitor>,
}

impl ClientSocket {
    pub(crate) fn new(stream: TcpStream, clock: Clock, admitted: Admitted) -> Self {
        tune(&stream);
        let (reader, stream) = stream.into_split();
        let last = AtomicU64::new(clock.now());
        let is_timed = AtomicBool::new(false);
        let (written, is_blocked) = (AtomicU64::new(0), AtomicBool::new(false));
        let monitor =
            Monitor { stream, clock, last, is_timed, written, is_blocked, _admitted: admitted };
        Self { reader, monitor: Arc::new(monitor) }
    }

    pub(crate) fn monitor(&self) -> Arc<Monitor> {
        self.monitor.clone()
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.reader).poll_read(context, buffer))?;
        this.monitor.touch();
        Poll::Ready(Ok(()))
    }
}

impl ClientSocket {
    fn poll_with(
        &self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let stream: &TcpStream = self.monitor.stream.as_ref();
        loop {
            let Poll::Ready(ready) = stream.poll_write_ready(context) else {
                self.monitor.is_blocked.store(true, Ordering::Relaxed);
                return Poll::Pending;
            };
            ready?;
            match write(stream) {
                Ok(written) => {
                    self.monitor.touch();
                    self.monitor.wrote(written);
                    return Poll::Ready(Ok(written));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_with(context, |stream| stream.try_write(data))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_with(context, |stream| {
            as_one(data, |data| stream.try_write(data), || stream.try_write_vectored(data))
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match SockRef::from(self.monitor.stream.as_ref()).shutdown(Shutdown::Write) {
            // The client was quicker.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }
}
