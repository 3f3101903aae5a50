//! What gateways and workers say to each other.
//!
//! Subjects: [`worker_subject`] for requests to one worker, [`region_subject`] for questions to all
//! workers of a region, [`DELTAS`] for changes of state, [`ANNOUNCEMENTS`] for hosts that are
//! there.

mod egress;
mod offer;
mod policies;
mod record;
mod reply;
mod request;
mod traffic;
mod volume;

use std::time::Duration;

use bytes::Bytes;
pub use caddis_api::images::{ImageSummary, ImportUpdate};
use caddis_api::{RegionCode, UnixMillis, WorkerId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use self::{
    egress::{EgressSource, MachineEgress},
    offer::{Offer, Question},
    policies::{Allowance, AppPolicies, Policy},
    record::{Announcement, Delta, LARGE_CONFIG_BYTES, MachineRecord},
    reply::{VersionRecord, WorkerReply, WorkerResult},
    request::{Action, CreateMachine, UpdateMachine, WorkerRequest},
    traffic::{HostLine, SleepMode, WhyAwake, WhyNotWoken},
    volume::{CreateVolume, SnapshotRecord, SnapshotSource, VolumeAction, VolumeRecord},
};
use crate::BusError;

/// Where changes of machines are published, as [`Delta`]s.
pub const DELTAS: &str = "deltas";

/// Where workers say that they are there, as [`Announcement`]s: each [`ANNOUNCE_INTERVAL`], and
/// when something in them changes. What a worker published on [`DELTAS`] before an announcement
/// arrives before it.
pub const ANNOUNCEMENTS: &str = "announcements";

/// Time between two announcements of a worker.
pub const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);

/// Where one worker takes requests.
pub fn worker_subject(worker: &WorkerId) -> String {
    format!("worker.{worker}")
}

/// Where all workers of a region take questions.
pub fn region_subject(region: &RegionCode) -> String {
    format!("region.{region}")
}

/// Version of these messages. A worker refuses requests of a later one.
pub const PROTOCOL: u32 = 1;

/// A request on its way to a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    /// What it is written in: [`PROTOCOL`] of its sender.
    pub protocol: u32,
    /// Unique per request; a worker that sees one again gives the same answer and does nothing
    /// twice.
    pub request_id: String,
    /// When its sender no longer waits for an answer, by the sender's clock. A worker that gets it
    /// later does not carry it out.
    pub not_after: UnixMillis,
    /// What the worker is to do.
    pub request: WorkerRequest,
}

impl Envelope {
    /// A request whose sender waits for `timeout` from now on.
    pub fn new(request_id: String, timeout: Duration, request: WorkerRequest) -> Self {
        let not_after = UnixMillis::now() + timeout;
        Self { protocol: PROTOCOL, request_id, not_after, request }
    }
}

/// Writes a message.
pub fn encode<T: Serialize>(message: &T) -> Bytes {
    // All messages are plain data with string keys, for which serialisation has no way to fail.
    serde_json::to_vec(message).map_or_else(|_| Bytes::new(), Bytes::from)
}

/// Reads a message.
///
/// # Errors
/// [`BusError::Unreadable`] when it is not what was expected.
pub fn decode<T: DeserializeOwned>(subject: &str, payload: &[u8]) -> Result<T, BusError> {
    serde_json::from_slice(payload)
        .map_err(|e| BusError::Unreadable { subject: subject.to_owned(), reason: e.to_string() })
}
