//! The HTTP server of the API: authenticates, validates, decides where a new machine goes, asks the
//! worker that owns a machine, and answers reads from its [`caddis_view`]. Owns nothing durable.
//!
//! ```text
//! request  ─▶ envelope (request id, log, panics, error bodies) ─▶ authentication ─▶ limits
//!          ─▶ endpoint
//! endpoint ─▶ authorization ─▶ view, catalog
//!          ─▶ view             reads, waits
//!          ─▶ bus              changes, asked of the owner
//!          ─▶ streams          exec, logs, images
//!          ─▶ catalog          names, apps, tokens
//! ```
#![forbid(unsafe_code)]

mod deletion;
mod egress;
mod endpoints;
mod http;
mod openapi;
mod policies;
mod push;
mod regions;
mod router;
mod scheduler;
mod server;
mod settings;
mod told;

use std::{future::Future, sync::Arc};

use caddis_bus::BusError;
use caddis_view::{Published, View, follow};
use tokio::net::TcpListener;
use tokio_util::sync::DropGuard;

use http::context::{Context, Inner};

pub use endpoints::{DescribedOperation, openapi::json as openapi_json, operations};
pub use http::description::{Description, Rate, Replay, Scope};
pub use settings::{
    GatewayParts, Settings, SharedListeners, TrafficInfo, TrafficSettings, WireGuardInfo,
    WireGuardStatus, default_public_addresses,
};

/// Why a gateway can't begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// No way to learn of changes.
    #[error("can't subscribe to the changes of machines: {0}")]
    Subscribe(#[from] BusError),
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
        context.background(egress::follow(context.clone(), context.view.changes()));
        context.background(follow(context.view.clone(), context.workers.clone(), published));
        context.background(policies::follow(context.clone(), context.view.changes()));
        context.background(deletion::tidy(context.clone(), changes));
        context.background(endpoints::publish_known(context.clone()));
        Ok(Self { _ending: context.ending.clone().drop_guard(), context })
    }

    /// Its view of all machines, for others in this process that need one.
    pub fn view(&self) -> Arc<View> {
        self.context.view.clone()
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
