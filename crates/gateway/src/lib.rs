//! The HTTP server of the API: authenticates, validates, decides where a new machine goes, asks the
//! worker that owns a machine, and answers reads from its [`caddis_view`]. Owns nothing durable.
//!
//! ```text
//! request ─▶ envelope (request id, log, panics, error bodies) ─▶ authentication ─▶ limits ─▶ endpoint
//!                                                          endpoint ─▶ authorization ─▶ view, catalog
//!                                                                   ─▶ view      reads, waits
//!                                                                   ─▶ bus       changes, asked of the owner
//!                                                                   ─▶ streams   exec, logs, images
//!                                                                   ─▶ catalog   names, apps, tokens
//! ```
#![forbid(unsafe_code)]

mod deletion;
mod endpoints;
mod http;
mod openapi;
mod regions;
mod router;
mod scheduler;
mod server;

use std::{future::Future, sync::Arc, time::Duration};

use caddis_api::{WorkerId, platform::Region};
use caddis_bus::{Bus, BusError, stream::Streams};
use caddis_catalog::Catalog;
use caddis_view::{Published, follow};
use tokio::net::TcpListener;
use tokio_util::sync::DropGuard;

use http::context::{Context, Inner};

pub use http::endpoint::{DescribedOperation, Description, Rate, Replay, Scope, operations};
pub use openapi::json as openapi_json;

/// Why a gateway can't begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// No way to learn of changes.
    #[error("can't subscribe to the changes of machines: {0}")]
    Subscribe(#[from] BusError),
}

/// What a gateway is made of.
pub struct GatewayParts {
    /// Reaches workers.
    pub bus: Arc<dyn Bus>,
    /// Reaches the stream endpoints of workers.
    pub streams: Arc<dyn Streams>,
    /// Unique facts.
    pub catalog: Catalog,
    /// The region this gateway is in.
    pub region: String,
    /// All regions. `capacity` is filled in when asked for.
    pub regions: Vec<Region>,
    /// Workers known from the start, whose machines the first requests wait for; others become
    /// known by announcing themselves.
    pub workers: Vec<WorkerId>,
    /// Limits and deadlines.
    pub settings: Settings,
}

/// Limits and deadlines of a gateway.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Largest request body but for uploads, bytes.
    pub max_body_bytes: usize,
    /// Largest image archive, bytes.
    pub max_upload_bytes: u64,
    /// Time a client has to send a request's head, and an idle connection is kept.
    pub head_timeout: Duration,
    /// Time a client has to send a request's body; of an upload, the longest it may send nothing.
    pub body_timeout: Duration,
    /// Most connections. Where all have a request in progress, new ones wait; else the one idle
    /// longest makes room.
    pub max_connections: usize,
    /// How long a new connection waits for room before it is told that there is none.
    pub place_timeout: Duration,
    /// Time requests in progress have to end when the server stops.
    pub drain_timeout: Duration,
    /// How long a worker may take to accept a machine; it resolves the image's manifest meanwhile.
    /// Asked twice.
    pub create_deadline: Duration,
    /// How long a worker may take to answer anything else. Asked twice.
    pub request_deadline: Duration,
    /// How long a host may say nothing before it is suspected; they announce themselves each
    /// second.
    pub suspected_after: Duration,
    /// How long before it is unreachable.
    pub unreachable_after: Duration,
    /// How long destroyed machines are shown.
    pub destroyed_retention: Duration,
    /// The reference's rate limits times this; 0 for none.
    pub rate_limit: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_body_bytes: 5 << 20,
            max_upload_bytes: 64 << 30,
            head_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            max_connections: 4096,
            place_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(10),
            create_deadline: Duration::from_secs(60),
            request_deadline: Duration::from_secs(15),
            suspected_after: Duration::from_secs(3),
            unreachable_after: Duration::from_secs(10),
            destroyed_retention: Duration::from_secs(7 * 24 * 3600),
            rate_limit: 0.0,
        }
    }
}

/// A gateway. Its background work ends when it is dropped.
pub struct Gateway {
    context: Context,
    _ending: DropGuard,
}

impl Gateway {
    /// Begins to follow the workers. Requests that come before the first listing is in wait for it.
    ///
    /// # Errors
    /// [`GatewayError::Subscribe`].
    pub async fn new(parts: GatewayParts) -> Result<Self, GatewayError> {
        let published = Published::subscribe(parts.bus.as_ref()).await?;
        let context = Inner::new(parts);
        let changes = context.view.changes();
        context.background(follow(context.view.clone(), context.workers.clone(), published));
        context.background(deletion::tidy(context.clone(), changes));
        Ok(Self { _ending: context.ending.clone().drop_guard(), context })
    }

    /// All endpoints.
    pub fn router(&self) -> axum::Router {
        router::router(self.context.clone())
    }

    /// Serves connections until `shutdown` ends, then lets requests in progress end within
    /// [`Settings::drain_timeout`]; waits and event streams are ended at once.
    ///
    /// # Errors
    /// When the listener fails for good.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> std::io::Result<()> {
        let (context, closing) = (&self.context, self.context.closing.clone());
        server::serve(
            self.router(),
            listener,
            shutdown,
            closing,
            context.regions.own(),
            &context.settings,
        )
        .await
    }
}
