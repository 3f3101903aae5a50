//! What the proxy needs from outside: starting and stopping machines, and a place for its reports.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use caddis_api::{MachineId, WorkerId};

use crate::{AppName, ProxyError, WakeError};

/// What a machine is put to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sleep {
    /// Stopped.
    Stop,
    /// Suspended, or stopped where it can't be.
    Suspend,
}

/// Starts and stops machines, on whatever host they are.
#[async_trait]
pub trait Machines: Send + Sync + 'static {
    /// Starts or resumes a machine, or calls off its going to sleep. Ends when it runs; its port
    /// need not be open yet. One that runs already is a success.
    async fn wake(&self, machine: &MachineId, worker: &WorkerId) -> Result<(), WakeError>;

    /// Whether a machine could be put to sleep now: its connections are cut only if so. The error
    /// says why not.
    async fn may_sleep(
        &self,
        machine: &MachineId,
        worker: &WorkerId,
        how: Sleep,
    ) -> Result<(), WakeError>;

    /// Stops or suspends a machine, for a reason that its events tell. Ends when it is done; all
    /// connections of this proxy to it are closed by then. A start that comes meanwhile may call it
    /// off: that is an error here.
    async fn sleep(
        &self,
        machine: &MachineId,
        worker: &WorkerId,
        how: Sleep,
        reason: &str,
    ) -> Result<(), WakeError>;
}

/// Where the proxy reports to. Called from the way of requests: must not block.
pub trait Journal: Send + Sync + 'static {
    /// An error, for the app's log.
    fn proxy_error(&self, error: ProxyError);

    /// A request that ended. Called only when [`crate::Config::access_log`] is set.
    fn access(&self, record: AccessRecord) {
        let _ = record;
    }
}

/// A line of an access log.
#[derive(Debug, Clone)]
pub struct AccessRecord {
    /// The app.
    pub app: AppName,
    /// The machine that answered.
    pub machine: Option<MachineId>,
    /// What `fly-request-id` tells the client.
    pub request_id: Arc<str>,
    /// Who asked.
    pub client: SocketAddr,
    /// The method.
    pub method: http::Method,
    /// The path, without the query.
    pub path: String,
    /// The answer's status.
    pub status: u16,
    /// From the request's head to the response's head.
    pub duration: Duration,
}
