//! HTTP connections to a machine: opened, kept for the next request, closed.

mod direct;
mod http1;
mod response;

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    body::{Bytes, Frame},
    client::conn::http2,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::Instant};
use tokio_util::sync::CancellationToken;

use self::http1::{Http1, Sent, sent_by_library};
pub(crate) use self::http1::{NoResponse, ResponseBody, UpstreamError};
use crate::{
    ErrorCode,
    app::Candidate,
    core::Core,
    error::Failure,
    machine::Machine,
    rare::Rare,
    replay_body::{ReplayBody, Source},
    request_head::RequestHead,
    socket,
};

/// Unused connections to one machine; more are closed.
const MAX_IDLE: usize = 256;
/// A request that may not be sent twice goes over a connection that was used within this time, or
/// over a new one: the machine is unlikely to be closing it at this moment.
pub(crate) const CERTAIN: Duration = Duration::from_secs(1);

/// Which connections may be used for a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub is_h2: bool,
    /// Whether something may be sent beside the response: a body, or what follows on an upgrade.
    pub sends_more: bool,
    /// 0: shared by all clients; else the one client connection that it is for.
    pub owner: u64,
    /// How long it may have been unused.
    pub max_idle: Duration,
}

/// A connection to a machine that can take a request.
pub(crate) struct Upstream {
    sender: Sender,
    port: u16,
    owner: u64,
    /// Whether it was used before.
    pub is_reused: bool,
}

enum Sender {
    Http1(Http1),
    Http2(http2::SendRequest<ReplayBody>),
}

impl Sender {
    /// Has it send by itself what is sent beside a response.
    async fn drive(self, core: &Core) -> hyper::Result<Self> {
        match self {
            Self::Http1(connection) => connection.drive(core).await.map(Self::Http1),
            Self::Http2(_) => Ok(self),
        }
    }
}

impl Upstream {
    /// Sends a request, and waits for the response to it. The head is kept if it may be sent again.
    pub(crate) async fn send(
        &mut self,
        head: &mut RequestHead,
        may_repeat: bool,
        source: &Source,
    ) -> Sent {
        match &mut self.sender {
            Sender::Http1(connection) => connection.send(head, may_repeat, source).await,
            Sender::Http2(sender) => {
                let sent = sender.try_send_request(head.request(may_repeat, source));
                // Boxed, as most requests go over HTTP/1.
                sent_by_library(Box::pin(sent).await, head)
            }
        }
    }

    /// The next part of the body of a response that came over it.
    pub(crate) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
        body: &mut ResponseBody,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        match &mut self.sender {
            Sender::Http1(connection) => connection.poll_frame(context, body),
            Sender::Http2(_) => body.poll_driven(context),
        }
    }
}

struct Idle {
    port: u16,
    owner: u64,
    since: Instant,
    connection: Http1,
}

struct Shared {
    port: u16,
    owner: u64,
    since: Instant,
    sender: http2::SendRequest<ReplayBody>,
}

/// Ends when a connection is to be cut.
type Cut = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Connections to one machine.
#[derive(Default)]
pub(crate) struct Pool {
    idle: Mutex<Vec<Idle>>,
    shared: Mutex<Vec<Shared>>,
    is_swept: AtomicBool,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("idle", &self.idle.lock().len()).finish_non_exhaustive()
    }
}

impl Pool {
    /// The connection that was used last, which is the least likely to be closed.
    fn take(&self, port: u16, wanted: Wanted) -> Option<Upstream> {
        let owner = wanted.owner;
        if wanted.is_h2 {
            let mut shared = self.shared.lock();
            shared.retain(|one| !one.sender.is_closed());
            let one = shared.iter_mut().find(|one| one.port == port && one.owner == owner)?;
            one.since = Instant::now();
            let sender = Sender::Http2(one.sender.clone());
            return Some(Upstream { sender, port, owner, is_reused: true });
        }
        let mut idle = self.idle.lock();
        let index = idle.iter().rposition(|one| {
            one.port == port && one.owner == owner && one.since.elapsed() < wanted.max_idle
        })?;
        let sender = Sender::Http1(idle.remove(index).connection);
        Some(Upstream { sender, port, owner, is_reused: true })
    }

    /// Keeps a connection whose request and response are over.
    pub(crate) fn put(core: &Arc<Core>, machine: &Arc<Machine>, upstream: Upstream) {
        let Sender::Http1(mut connection) = upstream.sender else { return };
        connection.set_idle();
        if connection.is_closed() || !machine.is_open() || core.stopping.is_cancelled() {
            return;
        }
        let pool = &machine.pool;
        let Upstream { port, owner, .. } = upstream;
        let mut idle = pool.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(Idle { port, owner, since: Instant::now(), connection });
        }
        drop(idle);
        sweep(core, machine);
    }

    /// Closes all unused connections, and those shared by requests once these are over.
    pub(crate) fn clear(&self) {
        drop(std::mem::take(&mut *self.idle.lock()));
        drop(std::mem::take(&mut *self.shared.lock()));
    }

    /// Gives the shared connection that a request failed over to no other request: one that resets
    /// streams stays open, and would have the request sent over it again and again.
    pub(crate) fn forget(&self, failed: &Upstream) {
        let failed = (failed.port, failed.owner);
        self.shared.lock().retain(|one| (one.port, one.owner) != failed);
    }

    /// Closes what was not used for so long. Whether anything is left.
    fn prune(&self, max_idle: Duration) -> bool {
        let mut closed = Vec::new();
        let mut idle = self.idle.lock();
        let mut kept = Vec::with_capacity(idle.len());
        for mut one in idle.drain(..) {
            if one.since.elapsed() < max_idle && !one.connection.is_closed() {
                kept.push(one);
            } else {
                closed.push(one);
            }
        }
        *idle = kept;
        let is_idle_left = !idle.is_empty();
        drop(idle);
        drop(closed);
        let mut shared = self.shared.lock();
        // Requests in progress have senders of their own, and end well.
        shared.retain(|one| one.since.elapsed() < max_idle && !one.sender.is_closed());
        is_idle_left || !shared.is_empty()
    }
}

/// Has unused connections closed in time, as long as there are any.
fn sweep(core: &Arc<Core>, machine: &Arc<Machine>) {
    if machine.pool.is_swept.swap(true, Ordering::AcqRel) {
        return;
    }
    let (core, machine) = (core.clone(), machine.clone());
    core.tasks.clone().spawn(async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(core.config.pool_idle) => {}
                () = core.stopping.cancelled() => return machine.pool.clear(),
            }
            if machine.pool.prune(core.config.pool_idle) {
                continue;
            }
            machine.pool.is_swept.store(false, Ordering::Release);
            // One may have come before that was known.
            if !machine.pool.prune(core.config.pool_idle)
                || machine.pool.is_swept.swap(true, Ordering::AcqRel)
            {
                return;
            }
        }
    });
}

/// Opens a TCP connection to a machine, and begins it with `preface`.
pub(crate) async fn connect(
    core: &Core,
    candidate: &Candidate,
    preface: &[u8],
) -> Result<TcpStream, Failure> {
    let machine = &candidate.machine;
    let address = candidate.address();
    let failed = |error: &io::Error| {
        let code = match error.kind() {
            io::ErrorKind::ConnectionRefused => ErrorCode::PC01,
            io::ErrorKind::ConnectionReset => ErrorCode::PC03,
            io::ErrorKind::TimedOut => ErrorCode::PC05,
            _ => ErrorCode::PC06,
        };
        Failure::of(&machine.id, code, format!("connecting to {address}: {error}"))
    };
    let cut = machine.cut_token();
    let mut stream = match machine.take_probe(address.port()) {
        Some(stream) => stream,
        None => {
            let connecting = TcpStream::connect(address);
            let connected = tokio::select! {
                connected = tokio::time::timeout(core.config.connect_timeout, connecting) => {
                    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                }
                // Its VM has gone, and answers nothing.
                () = cut.cancelled() => Err(io::ErrorKind::ConnectionReset.into()),
            };
            connected.map_err(|error| failed(&error))?
        }
    };
    socket::tune(&stream);
    if !preface.is_empty() {
        stream.write_all(preface).await.map_err(|error| failed(&error))?;
    }
    Ok(stream)
}

/// A connection for a request: one that is there, or a new one.
pub(crate) async fn upstream(
    core: &Arc<Core>,
    candidate: &Candidate,
    wanted: Wanted,
    preface: &[u8],
) -> Result<Upstream, Failure> {
    let machine = &candidate.machine;
    let port = candidate.service().internal_port;
    while let Some(mut upstream) = machine.pool.take(port, wanted) {
        let is_ready = match &mut upstream.sender {
            Sender::Http1(connection) => connection.is_ready().await,
            Sender::Http2(sender) => sender.ready().await.is_ok(),
        };
        if !is_ready {
            continue;
        }
        if !wanted.sends_more {
            return Ok(upstream);
        }
        if let Ok(sender) = Box::pin(upstream.sender.drive(core)).await {
            return Ok(Upstream { sender, ..upstream });
        }
    }
    Box::pin(open(core, candidate, wanted, preface)).await
}

async fn open(
    core: &Arc<Core>,
    candidate: &Candidate,
    wanted: Wanted,
    preface: &[u8],
) -> Result<Upstream, Failure> {
    let machine = &candidate.machine;
    let port = candidate.service().internal_port;
    // Before it connects: what is cut meanwhile is this connection too.
    let cut = machine.cut_token();
    let stream = connect(core, candidate, preface).await?;
    let sender = handshake(core, machine, stream, wanted, cut).await.map_err(|error| {
        let code = if wanted.is_h2 { ErrorCode::PU01 } else { ErrorCode::PC06 };
        Failure::of(&machine.id, code, format!("speaking HTTP to the machine: {error}"))
    })?;
    if let Sender::Http2(sender) = &sender {
        let (since, owner, sender) = (Instant::now(), wanted.owner, sender.clone());
        machine.pool.shared.lock().push(Shared { port, owner, since, sender });
        sweep(core, machine);
    }
    Ok(Upstream { sender, port, owner: wanted.owner, is_reused: false })
}

async fn handshake(
    core: &Arc<Core>,
    machine: &Arc<Machine>,
    stream: TcpStream,
    wanted: Wanted,
    cut: CancellationToken,
) -> hyper::Result<Sender> {
    let connected = machine.connected();
    let all_cut = core.cut.clone();
    let ended: Cut = Box::pin(async move {
        tokio::select! {
            () = cut.cancelled() => {}
            () = all_cut.cancelled() => {}
        }
    });
    if wanted.is_h2 {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .adaptive_window(true)
            .handshake(TokioIo::new(stream))
            .await?;
        core.tasks.spawn(async move {
            let _connected = connected;
            tokio::select! {
                biased;
                _ = connection => {}
                () = Rare::new(ended) => {}
            }
        });
        return Ok(Sender::Http2(sender));
    }
    let sender = Sender::Http1(Http1::new(stream, ended, connected));
    if wanted.sends_more { sender.drive(core).await } else { Ok(sender) }
}
