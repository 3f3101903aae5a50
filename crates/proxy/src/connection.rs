//! One client connection: TLS, then HTTP or plain bytes.

mod refused;
mod requests;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::task::AtomicWaker;
use http::Version;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
    time::Instant,
};
use tokio_rustls::LazyConfigAcceptor;

use crate::{
    AppName, ErrorCode, HttpOptions, MinimumRate, PortRoute,
    app::App,
    connections::Admitted,
    core::Core,
    error::Failure,
    forward::StreamBody,
    headers::Origin,
    replay_body::{Source, Upload},
    request_guard::Spoken,
    socket::{ClientSocket, Monitor},
    tcp,
};

/// The fatal alert `unrecognized_name` as a record, as long as nothing is encrypted.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// A client that still sends when it has been answered may take so long to read the answer.
const LINGER: Duration = Duration::from_secs(5);

static NEXT: AtomicU64 = AtomicU64::new(1);

/// Where a connection came in.
#[derive(Debug, Clone)]
pub(crate) enum Entry {
    /// The shared listener for HTTP.
    Http,
    /// The shared listener for TLS.
    Https,
    /// An address of the app's own, which may be within a private network.
    Own { app: AppName, port: u16, is_private: bool },
}

/// What requests of a connection need to know of it.
pub(crate) struct Connection {
    /// Never 0.
    pub id: u64,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    /// The external port whose service is meant.
    pub port: u16,
    pub is_tls: bool,
    /// Whether it came to an address within a private network, where there is no TLS.
    pub is_private: bool,
    pub origin: Origin,
    /// The app, where the address decides it.
    pub app: Option<AppName>,
    /// Has the connection end when its requests have.
    pub drain: Notify,
    /// Whether a request came over HTTP/2.
    had_http2: AtomicBool,
    /// Requests whose responses are not over.
    in_progress: AtomicU32,
    /// When there was last one, or when the connection was made.
    quiet_since: AtomicU64,
    /// Whether somebody waits for `quiet`.
    awaits_quiet: AtomicBool,
    /// Tells that no request is in progress any more.
    quiet: Notify,
    /// Whether all that came are whole requests.
    is_between: AtomicBool,
    /// Bodies of requests.
    uploads: Mutex<Vec<Upload>>,
    /// Who looks for slow clients.
    pub watcher: AtomicWaker,
    /// Responses over HTTP/2, each with a client's window of its own.
    streams: Mutex<Vec<Weak<StreamBody>>>,
    /// How many of both.
    watched: AtomicUsize,
    /// Whether the client takes too little of what it is sent.
    is_slow: AtomicBool,
    monitor: Arc<Monitor>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.id).field("peer", &self.peer).finish()
    }
}

impl Connection {
    /// Ends when the client left while it waits for a machine.
    pub(crate) async fn left(&self, core: &Core) {
        if core.config.half_close_leaves {
            self.monitor.left().await;
        } else {
            std::future::pending().await
        }
    }

    /// Ends when the connection broke.
    pub(crate) async fn broken(&self) {
        self.monitor.broken().await;
    }

    /// A request begins.
    pub(crate) fn begin_request(self: &Arc<Self>, version: Version) -> InProgress {
        if version == Version::HTTP_2 {
            self.had_http2.store(true, Ordering::Relaxed);
        }
        self.in_progress.fetch_add(1, Ordering::SeqCst);
        InProgress(self.clone())
    }

    /// Whether no request is in progress, and the client has taken what it was sent.
    pub(crate) fn has_sent_all(&self) -> bool {
        self.in_progress.load(Ordering::SeqCst) == 0 && self.blocked().is_none()
    }

    /// The guard of the connection tells where in a request it is.
    pub(crate) fn is_between_requests(&self, is_so: bool) {
        self.is_between.store(is_so, Ordering::Relaxed);
    }

    /// Ends when there has been no request for so long. What is sent of a request's head before it
    /// is whole does not count.
    async fn quiet_for(&self, core: &Core, time: Duration) {
        loop {
            let mut quiet = pin!(self.quiet.notified());
            quiet.as_mut().enable();
            self.awaits_quiet.store(true, Ordering::SeqCst);
            if self.in_progress.load(Ordering::SeqCst) > 0 {
                quiet.await;
            }
            let until = core.clock.instant(self.quiet_since.load(Ordering::Relaxed)) + time;
            if self.in_progress.load(Ordering::SeqCst) == 0 && until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// Ends when nothing is known that an HTTP/1 connection would have to do soon.
    async fn may_park(&self, core: &Core, spoken: Spoken) {
        if spoken == Spoken::Http2 {
            std::future::pending().await
        }
        loop {
            self.quiet_for(core, core.config.park_after).await;
            if self.is_between.load(Ordering::Relaxed) && self.blocked().is_none() {
                return;
            }
            // Nothing tells when a head is whole, or when the client has taken what it was sent.
            tokio::time::sleep(core.config.park_after.max(Duration::from_millis(1))).await;
        }
    }

    /// Ends when a request, or the rest of its head, is late. Over HTTP/2 only the first one: its
    /// connections are kept by those who answer when they are asked.
    async fn silent(&self, core: &Core, timeout: Duration) {
        self.quiet_for(core, timeout).await;
        if self.had_http2.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    }

    /// Ends when nothing went over it for so long.
    async fn idle(&self, timeout: Option<Duration>) {
        match timeout {
            Some(timeout) => self.monitor.idle(timeout).await,
            None => std::future::pending().await,
        }
    }

    /// Drops what the client still sends of a request that has been answered, for a while. Closed
    /// with something unread, the connection would be reset, and a client that reads only when it
    /// has sent all would not find the answer any more (RFC 9112, section 9.6).
    async fn linger(&self, core: &Core) {
        if self.is_between.load(Ordering::Relaxed) {
            return;
        }
        tokio::select! {
            _ = tokio::time::timeout(LINGER, self.monitor.discard()) => {}
            () = core.stopping.cancelled() => {}
        }
    }

    /// Watches how the client takes a response, until [`Connection::unwatch`].
    pub(crate) fn watch(&self, stream: &Arc<StreamBody>) {
        self.streams.lock().push(Arc::downgrade(stream));
        self.watched.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn unwatch(&self, stream: &StreamBody) {
        self.streams.lock().retain(|one| !std::ptr::eq(one.as_ptr(), stream));
        self.watched.fetch_sub(1, Ordering::Relaxed);
    }

    /// Watches how the client sends a body, as long as that lasts.
    pub(crate) fn watch_upload(&self, source: &Source) {
        let Some(upload) = source.upload() else { return };
        let mut uploads = self.uploads.lock();
        let before = uploads.len();
        uploads.retain(|one| !one.is_over());
        uploads.push(upload);
        let after = uploads.len();
        self.watched.fetch_add(after, Ordering::Relaxed);
        self.watched.fetch_sub(before, Ordering::Relaxed);
        drop(uploads);
        // Over HTTP/1 it is the connection's own task that is here.
        if self.had_http2.load(Ordering::Relaxed) {
            self.watcher.wake();
        }
    }

    /// Ends bodies that the client sends too slowly.
    pub(crate) fn cut_slow_uploads(&self, limit: &MinimumRate) {
        let mut uploads = self.uploads.lock();
        let before = uploads.len();
        uploads.retain(|one| !one.is_over());
        self.watched.fetch_sub(before - uploads.len(), Ordering::Relaxed);
        let watched: Vec<_> = uploads.iter().cloned().collect();
        drop(uploads);
        for upload in watched {
            upload.cut_if_slow(limit);
        }
    }

    /// Whether there is something that the client may take or send too slowly.
    pub(crate) fn may_be_slow(&self) -> bool {
        self.blocked().is_some() || self.watched.load(Ordering::Relaxed) > 0
    }

    /// Bytes sent so far, if more waits for the client to take some of them.
    pub(crate) fn blocked(&self) -> Option<u64> {
        self.monitor.blocked()
    }

    /// Cuts responses that the client takes too slowly, though the connection could take more.
    pub(crate) fn cut_slow_streams(&self, limit: &MinimumRate) {
        let streams: Vec<_> = self.streams.lock().iter().filter_map(Weak::upgrade).collect();
        for stream in streams {
            stream.cut_if_slow(limit);
        }
    }

    /// Whether it was cut because the client took too little of what it was sent.
    pub(crate) fn is_slow(&self) -> bool {
        self.is_slow.load(Ordering::Relaxed)
    }
}

/// A request whose response is not over, until dropped.
pub(crate) struct InProgress(Arc<Connection>);

impl Drop for InProgress {
    fn drop(&mut self) {
        let connection = &self.0;
        connection.quiet_since.store(connection.monitor.now(), Ordering::Relaxed);
        if connection.in_progress.fetch_sub(1, Ordering::SeqCst) == 1
            && connection.awaits_quiet.swap(false, Ordering::SeqCst)
        {
            connection.quiet.notify_waiters();
        }
    }
}

/// Serves a connection to its end. Is dropped when all is cut.
pub(crate) async fn attend(
    core: Arc<Core>,
    stream: TcpStream,
    peer: SocketAddr,
    entry: Entry,
    admitted: Admitted,
) {
    let Ok(local) = stream.local_addr() else { return };
    let socket = ClientSocket::new(stream, core.clock, admitted);
    let (port, app, is_private) = match entry {
        Entry::Http => (80, None, false),
        Entry::Https => (443, None, false),
        Entry::Own { app, port, is_private } => (port, Some(app), is_private),
    };
    let client = match (peer.ip(), &core.config.private_networks) {
        (IpAddr::V6(peer), Some(networks)) if is_private => networks.machine_at(peer),
        _ => None,
    };
    let connection = Connection {
        id: NEXT.fetch_add(1, Ordering::Relaxed),
        peer,
        local,
        port,
        is_tls: false,
        is_private,
        origin: Origin::new(peer.ip(), local.ip(), port, client.as_ref()),
        app: app.clone(),
        drain: Notify::new(),
        had_http2: AtomicBool::new(false),
        in_progress: AtomicU32::new(0),
        quiet_since: AtomicU64::new(core.clock.now()),
        awaits_quiet: AtomicBool::new(false),
        quiet: Notify::new(),
        is_between: AtomicBool::new(true),
        uploads: Mutex::default(),
        watcher: AtomicWaker::new(),
        streams: Mutex::default(),
        watched: AtomicUsize::new(0),
        is_slow: AtomicBool::new(false),
        monitor: socket.monitor(),
    };
    let Some(name) = app else {
        if port == 443 {
            return Box::pin(tls(&core, None, connection, socket)).await;
        }
        return requests::serve(&core, Arc::new(connection), socket, &HttpOptions::default()).await;
    };
    let Some(app) = core.table.get(&name) else { return };
    let Some(endpoint) = app.endpoint(port) else { return };
    let handlers = endpoint.port.handlers;
    if is_private && handlers.ends_tls() {
        // The port was given TLS a moment ago: its listener is about to end.
        return;
    }
    let mut socket = socket;
    if handlers.pg_tls {
        let timeout = core.config.handshake_timeout;
        match tcp::negotiate_pg_tls(&mut socket, timeout).await {
            Ok(true) => {}
            Ok(false) => return core.report(&app, &tcp::pg_tls_required(), None),
            Err(error) => return tracing::debug!(%error, "no negotiation of TLS"),
        }
    }
    if handlers.ends_tls() {
        return Box::pin(tls(&core, Some(app), connection, socket)).await;
    }
    Box::pin(plain(&core, &app, connection, &endpoint.port, socket)).await;
}

/// The handshake, and what comes after it.
async fn tls(
    core: &Arc<Core>,
    app: Option<Arc<App>>,
    mut connection: Connection,
    socket: ClientSocket,
) {
    let is_shared = app.is_none();
    let source = connection.peer.ip();
    let handshake = async {
        core.handshakes.begin(source).map_err(|failure| (app.clone(), failure))?;
        let acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), socket);
        let mut start = acceptor.await.map_err(|error| (app.clone(), failed(&error)))?;
        let hello = start.client_hello();
        let named =
            hello.server_name().and_then(|name| core.table.by_host(name, &core.config.domain));
        // A name that no app has gets no certificate on the shared listener.
        let Some(app) = app.clone().or(named) else {
            // What the client gets of it does not matter to us.
            let _ = start.io.write_all(&UNRECOGNIZED_NAME).await;
            let text = "no app has the name that the client asked for";
            return Err((None, Failure::new(ErrorCode::PT05, text)));
        };
        if let Some(name) = hello.server_name() {
            let counted = core.handshakes.name(source, name);
            counted.map_err(|failure| (Some(app.clone()), failure))?;
        }
        let Some(endpoint) = app.endpoint(connection.port) else {
            let failure = Failure::new(ErrorCode::PR01, "the app has no service at this port");
            return Err((Some(app), failure));
        };
        let port = endpoint.port.clone();
        if !port.handlers.ends_tls() {
            let text = "the service at this port has no handler 'tls'";
            return Err((Some(app), Failure::new(ErrorCode::PT04, text)));
        }
        let settings =
            core.certificates.settings(&port.tls, port.handlers.http).map_err(|error| {
                (Some(app.clone()), Failure::new(ErrorCode::PT04, error.to_string()))
            })?;
        match start.into_stream(settings).await {
            Ok(stream) => Ok((app, port, stream)),
            Err(error) => Err((Some(app), failed(&error))),
        }
    };
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(core.config.handshake_timeout, handshake) => shaken,
        () = core.stopping.cancelled() => return,
    };
    let (app, port, stream) = match shaken {
        Ok(Ok(shaken)) => shaken,
        Ok(Err((Some(app), failure))) => return core.report(&app, &failure, None),
        Ok(Err((None, failure))) => {
            return tracing::debug!(code = %failure.code, text = failure.text, "no handshake");
        }
        Err(_) => {
            if let Some(app) = app {
                let failure = Failure::new(ErrorCode::PT08, "the TLS handshake timed out");
                core.report(&app, &failure, None);
            }
            return;
        }
    };
    connection.is_tls = true;
    if !is_shared || !port.handlers.http {
        connection.app = Some(app.name.clone());
    }
    Box::pin(plain(core, &app, connection, &port, stream)).await;
}

fn failed(error: &std::io::Error) -> Failure {
    Failure::new(ErrorCode::PT04, format!("the TLS handshake failed: {error}"))
}

/// HTTP or bytes, once TLS is off.
async fn plain<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    core: &Arc<Core>,
    app: &Arc<App>,
    connection: Connection,
    port: &PortRoute,
    stream: S,
) {
    if port.handlers.http {
        requests::serve(core, Arc::new(connection), stream, &port.http).await;
    } else {
        tcp::serve(core, app, &connection, port, stream).await;
    }
}
