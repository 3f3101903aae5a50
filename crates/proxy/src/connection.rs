//! One client connection: TLS, then HTTP or plain bytes.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
};
use tokio_rustls::LazyConfigAcceptor;

use crate::{
    AppName, DownloadLimit, ErrorCode, HttpOptions, PortRoute,
    app::App,
    connections::Admitted,
    core::Core,
    error::Failure,
    forward::{self, StreamBody},
    headers::Origin,
    rare::Rare,
    request_guard::Guarded,
    slow_client,
    socket::{ClientSocket, Monitor},
    tcp,
};

/// Requests in progress on one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;
/// Streams that a client may have begun and reset before we saw them, and that we reset.
const MAX_RESETS: usize = 64;
/// Bytes of a request's head.
const MAX_HEAD: usize = 64 << 10;
/// The fatal alert `unrecognized_name` as a record, as long as nothing is encrypted.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
/// A client with HTTP/2 that says nothing is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(60);

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
    /// Whether a request has come.
    had_request: AtomicBool,
    /// Responses over HTTP/2, each with a client's window of its own.
    streams: Mutex<Vec<Weak<StreamBody>>>,
    /// How many.
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

    /// Ends when no request has come in time. hyper's own timer runs only once it knows by the
    /// first bytes which version is spoken.
    async fn silent(&self, timeout: Duration) {
        tokio::time::sleep(timeout).await;
        if self.had_request.load(Ordering::Relaxed) {
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

    /// Watches how the client takes a response, until [`Connection::unwatch`].
    pub(crate) fn watch(&self, stream: &Arc<StreamBody>) {
        self.streams.lock().push(Arc::downgrade(stream));
        self.watched.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn unwatch(&self, stream: &StreamBody) {
        self.streams.lock().retain(|one| !std::ptr::eq(one.as_ptr(), stream));
        self.watched.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether there is something that the client may take too slowly.
    pub(crate) fn may_be_slow(&self) -> bool {
        self.blocked().is_some() || self.watched.load(Ordering::Relaxed) > 0
    }

    /// Bytes sent so far, if more waits for the client to take some of them.
    pub(crate) fn blocked(&self) -> Option<u64> {
        self.monitor.blocked()
    }

    /// Cuts responses that the client takes too slowly, though the connection could take more.
    pub(crate) fn cut_slow_streams(&self, limit: &DownloadLimit) {
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
        had_request: AtomicBool::new(false),
        streams: Mutex::default(),
        watched: AtomicUsize::new(0),
        is_slow: AtomicBool::new(false),
        monitor: socket.monitor(),
    };
    let Some(name) = app else {
        if port == 443 {
            return Box::pin(tls(&core, None, connection, socket)).await;
        }
        return serve_http(&core, Arc::new(connection), socket, &HttpOptions::default()).await;
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
        serve_http(core, Arc::new(connection), stream, &port.http).await;
    } else {
        tcp::serve(core, app, &connection, port, stream).await;
    }
}

async fn serve_http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    core: &Arc<Core>,
    connection: Arc<Connection>,
    stream: S,
    options: &HttpOptions,
) {
    let head_timeout = options.headers_read_timeout.unwrap_or(core.config.headers_read_timeout);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // A client that shuts its writing side still gets its answer.
        .half_close(true)
        .header_read_timeout(head_timeout)
        .max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_RESETS)
        .max_header_list_size(MAX_HEAD as u32)
        .keep_alive_interval(KEEPALIVE);
    // Boxed: hyper keeps room for it as long as the connection lives.
    let service = service_fn(|request| {
        connection.had_request.store(true, Ordering::Relaxed);
        Box::pin(forward::serve(core.clone(), connection.clone(), request))
    });
    let stream = TokioIo::new(Guarded::new(stream));
    let mut serving = pin!(builder.serve_connection_with_upgrades(stream, service));
    let asked_to_end = pin!(async {
        tokio::select! {
            () = connection.drain.notified() => {}
            () = core.stopping.cancelled() => {}
        }
    });
    let mut asked_to_end = Rare::new(asked_to_end);
    let over = pin!(async {
        tokio::select! {
            () = connection.silent(head_timeout) => {}
            () = connection.idle(options.idle_timeout) => {}
            // Nothing is read while a machine owes a response, or takes its time over one.
            () = connection.monitor.broken() => {}
        }
    });
    let mut over = Rare::new(over);
    let mut slow = pin!(slow_client::found(&connection, &core.config.download_limit));
    let mut is_closing = false;
    loop {
        tokio::select! {
            biased;
            result = serving.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            () = &mut asked_to_end, if !is_closing => {}
            () = &mut over => return,
            () = slow.as_mut() => return connection.is_slow.store(true, Ordering::Relaxed),
        }
        is_closing = true;
        serving.as_mut().graceful_shutdown();
    }
}
