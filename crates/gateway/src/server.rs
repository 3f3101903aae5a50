//! Connections: HTTP/1 and HTTP/2 on one port, limits on heads and on their number, and an end that
//! lets requests in progress finish.
//!
//! ```text
//!  accept ─▶ place free ───────────────────────────────────▶ served until it is idle too long
//!         └▶ all taken ─▶ the one idle longest is closed ─▶
//!                      └▶ none is idle ─▶ waits for a place ─▶ told so, after a time
//! ```

mod activity;
mod refusal;
mod stream;

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::{StatusCode, Version},
};
use caddis_api::{ApiError, RegionCode};
use hyper::{
    body::{Frame, Incoming, SizeHint},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use self::{
    activity::{Dispensable, InProgress, Places},
    refusal::{MAX_HEAD, MAX_HEADERS, Refusals},
    stream::Stream,
};
use crate::settings::Settings;

/// What an HTTP/2 connection may send before it is refused by the protocol, without a word: beyond
/// [`MAX_HEAD`], so that what is a little too large is told.
const MAX_H2_HEAD: usize = 4 * MAX_HEAD;
/// Requests in progress on one HTTP/2 connection.
const MAX_STREAMS: u32 = 200;
/// Rest after an accept that failed for want of descriptors or memory; nothing tells when there are
/// some again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The same when a connection was told to make room.
const CLOSING_PAUSE: Duration = Duration::from_millis(1);
/// How often that is logged.
const ACCEPT_LOGGED: Duration = Duration::from_secs(60);
/// Connections beyond the most that wait for a place, or are told that there is none.
const MOST_WAITING: usize = 32;
/// How long a connection that is closed for being idle may take to say so.
const FAREWELL: Duration = Duration::from_secs(1);
/// After how long without a sign a client's host is asked whether it is there, how often, and how
/// many times.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 4);

struct Server {
    router: Router,
    builder: Builder<TokioExecutor>,
    places: Places,
    refusals: Refusals,
    head_timeout: Duration,
    place_timeout: Duration,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

/// See [`crate::Gateway::serve`].
pub(crate) async fn serve(
    router: Router,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
    closing: CancellationToken,
    region: &RegionCode,
    settings: &Settings,
) -> io::Result<()> {
    let server = Arc::new(Server {
        router,
        builder: builder(settings),
        places: Places::new(settings.max_connections),
        refusals: Refusals::new(region),
        head_timeout: settings.head_timeout,
        place_timeout: settings.place_timeout,
        stopping: CancellationToken::new(),
        tasks: TaskTracker::new(),
    });
    tokio::select! {
        () = accept(&server, &listener) => {}
        () = shutdown => {}
    }
    drop(listener);
    closing.cancel();
    server.stopping.cancel();
    server.tasks.close();
    if tokio::time::timeout(settings.drain_timeout, server.tasks.wait()).await.is_err() {
        tracing::warn!("requests were still in progress at the end of the drain");
    }
    Ok(())
}

fn builder(settings: &Settings) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // A connection whose head is not whole is idle, which ends it in the same time without a timer
    // for each request. No number of fields: hyper's own is [`MAX_HEADERS`], and quicker.
    builder.http1().header_read_timeout(None).max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_H2_HEAD as u32)
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(Some(settings.head_timeout));
    builder
}

async fn accept(server: &Arc<Server>, listener: &TcpListener) {
    let waiting = Arc::new(Semaphore::new(MOST_WAITING));
    let mut logged: Option<Instant> = None;
    loop {
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) if is_of_the_client(&error) => continue,
            Err(error) => {
                let closed = server.places.close_oldest();
                if logged.is_none_or(|at| at.elapsed() > ACCEPT_LOGGED) {
                    tracing::warn!(%error, closed, "can't accept connections; raise the limit of \
                        open files");
                    logged = Some(Instant::now());
                }
                tokio::time::sleep(if closed { CLOSING_PAUSE } else { ACCEPT_PAUSE }).await;
                continue;
            }
        };
        // Answers are small and awaited.
        let _ = socket.set_nodelay(true);
        // A host that has gone without a word would have its place for ever.
        let (idle, interval, times) = KEEPALIVE;
        let keepalive =
            TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(times);
        let _ = SockRef::from(&socket).set_tcp_keepalive(&keepalive);
        match server.places.free() {
            Some(place) => drop(server.tasks.spawn(attend(server.clone(), socket, place))),
            None => {
                // The listener's queue holds what comes meanwhile.
                let Ok(ticket) = waiting.clone().acquire_owned().await else { return };
                server.tasks.spawn(wait_for_a_place(server.clone(), socket, ticket));
            }
        }
    }
}

/// Whether an accept failed because of a client that has gone again.
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

async fn wait_for_a_place(
    server: Arc<Server>,
    mut socket: TcpStream,
    ticket: OwnedSemaphorePermit,
) {
    let place = tokio::select! {
        place = tokio::time::timeout(server.place_timeout, server.places.make()) => {
            place.ok().flatten()
        }
        () = server.stopping.cancelled() => return,
    };
    if let Some(place) = place {
        drop(ticket);
        return attend(server, socket, place).await;
    }
    // A client that is cut off while it sends never sees the answer. It may be gone: its choice.
    let told = async {
        socket.write_all(&server.refusals.busy()).await?;
        socket.shutdown().await?;
        let mut room = [0; 4096];
        while socket.read(&mut room).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(FAREWELL, told).await;
}

/// Serves a connection to its end.
async fn attend(server: Arc<Server>, socket: TcpStream, place: OwnedSemaphorePermit) {
    let activity = server.places.activity();
    let stream =
        TokioIo::new(Stream::new(socket, activity.clone(), server.refusals.clone(), place));
    let service = service_fn(|request: Request<Incoming>| {
        let in_progress = activity.begin();
        let answer = server.router.clone().oneshot(request.map(Body::new));
        async move {
            let answer = answer.await?;
            in_progress.offer();
            Ok::<_, Infallible>(answer.map(|body| Answer { body, in_progress }))
        }
    });
    let mut connection = pin!(server.builder.serve_connection_with_upgrades(stream, service));
    let closed = tokio::select! {
        // Which is asked first makes no difference, and drawing lots takes time.
        biased;
        result = connection.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(%error, "connection ended");
            }
            return activity.retire();
        }
        () = server.stopping.cancelled() => None,
        dispensable = activity.dispensable(server.head_timeout) => Some(dispensable),
    };
    tracing::debug!(?closed, "closing a connection");
    connection.as_mut().graceful_shutdown();
    // Its place is wanted: what can be said at once is said. Else it has a moment to be told; it
    // may never take that, nor end the head that it has begun.
    let farewell = if closed == Some(Dispensable::Unwanted) { Duration::ZERO } else { FAREWELL };
    let over = async {
        if closed != Some(Dispensable::Stalled) {
            // A request may have come at that moment.
            activity.idle().await;
        }
        tokio::time::sleep(farewell).await;
    };
    tokio::select! {
        biased;
        // It is over either way.
        _ = connection => {}
        () = over => {}
    }
    activity.retire();
}

/// An answer, which is in progress until it has been handed over to the connection.
struct Answer {
    body: Body,
    in_progress: InProgress,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_pending() {
            self.in_progress.wait();
        } else {
            self.in_progress.offer();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What is wrong with a request's head, where the connection has not said so itself: over HTTP/2
/// what is somewhat too large comes through.
pub(crate) fn check_head(request: &Request) -> Result<(), (StatusCode, ApiError)> {
    if request.version() != Version::HTTP_2 {
        return Ok(());
    }
    // As RFC 9113 counts them.
    let fields =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
    let size = fields.sum::<usize>()
        + request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    if size > MAX_HEAD || request.headers().len() > MAX_HEADERS {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Err((status, refusal::head_error(status)));
    }
    Ok(())
}
