//! What all parts of a proxy share.

use std::sync::Arc;

use http::HeaderValue;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    AppName, Config, Journal, Machines, ProxyError, Table, app::App, certificates::Certificates,
    connections::Connections, error::Failure, handshakes::Handshakes, machine::Clock,
};

pub(crate) struct Core {
    pub config: Config,
    pub clock: Clock,
    /// The region, as requests are told of it.
    pub region: HeaderValue,
    /// What `server` fields say.
    pub server: HeaderValue,
    /// The port of the shared listener for TLS.
    pub https_port: Option<u16>,
    pub table: Table,
    pub machines: Arc<dyn Machines>,
    pub journal: Arc<dyn Journal>,
    pub certificates: Certificates,
    pub handshakes: Handshakes,
    /// Those of all clients.
    pub connections: Arc<Connections>,
    /// Everything that runs for this proxy.
    pub tasks: TaskTracker,
    /// Cancelled once connections may be accepted.
    pub routed: CancellationToken,
    /// No new connections and requests.
    pub stopping: CancellationToken,
    /// All ends at once.
    pub cut: CancellationToken,
}

impl Core {
    /// Tells the app's log of an error, and counts it.
    pub(crate) fn report(&self, app: &App, failure: &Failure, request_id: Option<&str>) {
        app.count_error(failure.code);
        self.journal.proxy_error(ProxyError {
            app: app.name.clone(),
            machine: failure.machine.clone(),
            code: Some(failure.code),
            request_id: request_id.map(str::to_owned),
            text: failure.text.clone(),
        });
    }

    /// Tells the app's log of a request that was refused by a fault of its own.
    pub(crate) fn refused(&self, app: &AppName, why: &str, request_id: Option<&str>) {
        self.journal.proxy_error(ProxyError {
            app: app.clone(),
            machine: None,
            code: None,
            request_id: request_id.map(str::to_owned),
            text: why.to_owned(),
        });
    }
}
