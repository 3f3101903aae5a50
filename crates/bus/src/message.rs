//! What gateways and workers say to each other.
//!
//! Subjects: [`worker_subject`] for requests to one worker, [`region_subject`] for questions to all
//! workers of a region, [`DELTAS`] for changes of state, [`ANNOUNCEMENTS`] for hosts that are
//! there.

use std::{
    collections::BTreeMap,
    net::Ipv6Addr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
pub use caddis_api::images::{ImageSummary, ImportUpdate};
use caddis_api::{
    ApiDuration, ApiError, LeaseNonce, Machine, MachineId, MachineState, RawConfig, Signal,
    VersionId, WorkerId,
    event::MachineEvent,
    exec::ProcessStat,
    lease::{Lease, PublicLease},
    machine::ImageRef,
    requests::{Memory, StartReply},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

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
pub fn region_subject(region: &str) -> String {
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
    /// When its sender no longer waits for an answer, milliseconds since the Unix epoch by the
    /// sender's clock. A worker that gets it later does not carry it out.
    pub not_after: u64,
    /// The request.
    pub request: WorkerRequest,
}

impl Envelope {
    /// A request whose sender waits for `timeout` from now on.
    pub fn new(request_id: String, timeout: Duration, request: WorkerRequest) -> Self {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis);
        Self {
            protocol: PROTOCOL,
            request_id,
            not_after: now.saturating_add(millis(timeout)),
            request,
        }
    }
}

/// A request to one worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WorkerRequest {
    /// Make a machine. Answer: [`WorkerReply::Created`].
    Create(Box<CreateMachine>),
    /// Change a machine. Answer: depends on the action.
    Act {
        /// Which.
        machine: MachineId,
        /// What the client holds as proof of its lease.
        nonce: Option<LeaseNonce>,
        /// What to do.
        action: Action,
    },
    /// Replace a machine's configuration. Answer: [`WorkerReply::Updated`], once that is durable.
    Update {
        /// Which.
        machine: MachineId,
        /// What the client holds as proof of its lease.
        nonce: Option<LeaseNonce>,
        /// By what.
        update: Box<UpdateMachine>,
    },
    /// One machine, straight from its owner. Answer: [`WorkerReply::Machine`].
    Get {
        /// Which.
        machine: MachineId,
    },
    /// Machines in id order, as many as one message takes. Answer: [`WorkerReply::Machines`].
    List {
        /// Begin after this id.
        after: Option<MachineId>,
    },
    /// The machine was placed on another host since: this copy stops, for good. Answer: `Done`.
    Supersede {
        /// Which.
        machine: MachineId,
        /// Epoch of the placement elsewhere; one that is not higher than the worker's own changes
        /// nothing.
        epoch: u64,
    },
    /// Events, newest first. Answer: [`WorkerReply::Events`].
    Events {
        /// Of which machine.
        machine: MachineId,
        /// At most so many.
        limit: usize,
    },
    /// All versions of its configuration that are kept. Answer: [`WorkerReply::Versions`].
    Versions {
        /// Of which machine.
        machine: MachineId,
    },
    /// What a running machine's programs may have of its memory, after a change where one is asked
    /// for. Answer: [`WorkerReply::Memory`].
    Memory {
        /// Of which machine.
        machine: MachineId,
        /// Proof of a lease, for changes.
        nonce: Option<LeaseNonce>,
        /// The limit from now on, MiB.
        limit_mib: Option<u64>,
        /// Take back so much that is not needed right now, MiB.
        reclaim_mib: Option<u64>,
    },
    /// The process list. Answer: [`WorkerReply::Processes`].
    Processes {
        /// Of which machine.
        machine: MachineId,
    },
    /// Stop all guests for a shutdown of the host; they start again when the host is back. Answer:
    /// `Drained`.
    Drain {
        /// Guests that still run then are killed. Milliseconds.
        deadline_ms: u64,
    },
    /// Whether this worker can do its work. Answer: [`WorkerReply::Health`].
    Health,
}

/// A change of one machine. All but `Signal`, `SetMetadata` and `GetLease` need the lease's nonce
/// when the machine is leased.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Answer: [`WorkerReply::Started`], once the start is durable.
    Start,
    /// Answer: `Done`, once the stop is durable.
    Stop {
        /// Overrides the configured signal.
        signal: Option<Signal>,
        /// Overrides the configured timeout.
        timeout: Option<ApiDuration>,
    },
    /// Answer: `Done`.
    Restart {
        /// Overrides the configured signal.
        signal: Option<Signal>,
        /// Overrides the configured timeout.
        timeout: Option<ApiDuration>,
        /// Don't ask the program, kill it.
        force: bool,
    },
    /// Answer: `Done`, once the suspend is durable.
    Suspend,
    /// Answer: `Done`. No new version comes of it.
    SetMetadata {
        /// New values; `None` removes the key.
        changes: BTreeMap<String, Option<String>>,
        /// The version that must be current.
        expected: Option<VersionId>,
    },
    /// Answer: `Done`.
    Signal {
        /// Which.
        signal: Signal,
    },
    /// Answer: `Done`.
    Destroy {
        /// Also when it runs.
        force: bool,
    },
    /// Take machine out of routing, or put it back. Answer: `Done`.
    Cordon {
        /// Out, or back.
        cordoned: bool,
    },
    /// Answer: [`WorkerReply::Lease`]. With a nonce in the request it refreshes that lease.
    AcquireLease {
        /// Seconds from now.
        ttl_seconds: u64,
        /// Who asks.
        owner: String,
        /// The holder's own words.
        description: String,
    },
    /// Answer: [`WorkerReply::Lease`].
    GetLease,
    /// Answer: `Done`.
    ReleaseLease,
}

/// Everything a worker must know to make a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreateMachine {
    /// Its id, from the catalog.
    pub id: MachineId,
    /// Its name, from the catalog.
    pub name: String,
    /// Its app.
    pub app: String,
    /// The app's organisation.
    pub org: String,
    /// Region it was placed in.
    pub region: String,
    /// Checked and completed by [`caddis_api::validate::normalise`].
    pub config: RawConfig,
    /// Its address, from the catalog.
    pub ipv6: Ipv6Addr,
    /// Its network's /48, from the catalog.
    pub network: String,
    /// Counts placements of this machine; a higher one elsewhere ends this one.
    pub placement_epoch: u64,
    /// Prepare but don't boot.
    pub skip_launch: bool,
    /// Come up cordoned.
    pub cordoned: bool,
    /// Take a lease in the same step: seconds, and who asks.
    pub lease: Option<(u64, String)>,
}

/// A new configuration of a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UpdateMachine {
    /// Checked and completed by [`caddis_api::validate::normalise`].
    pub config: RawConfig,
    /// The version that must be current.
    pub expected: Option<VersionId>,
    /// Leave it stopped.
    pub skip_launch: bool,
    /// Take it out of routing.
    pub cordoned: bool,
    /// Take a lease in the same step, or refresh the one that is held: seconds, and who asks.
    pub lease: Option<(u64, String)>,
    /// Id of the new version, when the request may come again: one that the machine has had is not
    /// made again. Another is taken where it would not sort after the current one.
    #[serde(default)]
    pub version: Option<VersionId>,
}

/// A version of a machine's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// Id.
    pub version: VersionId,
    /// Its configuration.
    pub config: RawConfig,
    /// What it runs.
    pub image: ImageRef,
}

/// An answer of a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WorkerReply {
    /// A machine was made.
    Created {
        /// As it is now.
        record: Box<MachineRecord>,
        /// Its lease, when one was asked for.
        lease: Option<Lease>,
    },
    /// A start was accepted.
    Started {
        /// For the client.
        reply: StartReply,
        /// As it is now.
        record: Box<MachineRecord>,
    },
    /// The change was accepted.
    Done {
        /// As it is now.
        record: Box<MachineRecord>,
    },
    /// A new configuration was accepted.
    Updated {
        /// As it is now.
        record: Box<MachineRecord>,
        /// Its lease, when one was asked for.
        lease: Option<Lease>,
    },
    /// Versions.
    Versions {
        /// Newest first.
        versions: Vec<VersionRecord>,
    },
    /// A lease.
    Lease {
        /// It.
        lease: Lease,
    },
    /// One machine.
    Machine {
        /// As it is now.
        record: Box<MachineRecord>,
    },
    /// Several machines.
    Machines {
        /// In id order. Of one with a large configuration only the status; its configuration is
        /// asked for by [`WorkerRequest::Get`].
        records: Vec<MachineRecord>,
        /// There are more after these.
        more: bool,
        /// The worker's process, as in [`Delta::incarnation`].
        incarnation: String,
        /// Its deltas up to this number are contained.
        sequence: u64,
    },
    /// Events.
    Events {
        /// Newest first.
        events: Vec<MachineEvent>,
    },
    /// Memory of a machine's programs.
    Memory {
        /// What they may have, and could have more.
        memory: Memory,
        /// What was taken back, MiB.
        reclaimed_mib: u64,
    },
    /// Processes.
    Processes {
        /// In pid order.
        processes: Vec<ProcessStat>,
    },
    /// All guests are stopped.
    Drained {
        /// How many were stopped.
        stopped: u64,
    },
    /// The answer is larger than the bus takes: it is had over the worker's stream endpoint, by the
    /// same envelope.
    TooLarge,
    /// State of the worker.
    Health {
        /// Why requests would fail; empty when they would not.
        problems: Vec<String>,
        /// What works less well than it should, though requests succeed.
        #[serde(default)]
        warnings: Vec<String>,
    },
}

/// The worker's answer, or its error for the client.
pub type WorkerResult = Result<WorkerReply, ApiError>;

/// A machine as its worker publishes it. Of two records the one with the higher `(epoch, revision)`
/// is newer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// Whose truth this is.
    pub worker: WorkerId,
    /// Counts placements of this machine: that of a later one is the truth whatever an earlier host
    /// still says.
    pub epoch: u64,
    /// Rises with every change of this machine.
    pub revision: u64,
    /// The revision that brought its configuration, by which a copy of that is known.
    pub config_revision: u64,
    /// App.
    pub app: String,
    /// It has been booted at least once.
    pub launched: bool,
    /// The current lease, if any.
    pub lease: Option<PublicLease>,
    /// The machine as the API shows it, without `lease` and `nonce`. Without its configuration, and
    /// its image's labels, where who is told can have them; always without it when it is destroyed.
    pub machine: Machine,
}

/// Bytes of a configuration above which it does not travel with the status of its machine, but is
/// asked for.
pub const LARGE_CONFIG_BYTES: usize = 128 * 1024;

impl MachineRecord {
    /// Whether the configuration is missing that the machine has.
    pub fn is_status_only(&self) -> bool {
        self.machine.config.is_none() && self.machine.state != MachineState::Destroyed
    }

    /// Bytes of what belongs to the configuration.
    pub fn config_bytes(&self) -> usize {
        let labels = self.machine.image_ref.labels.iter().flatten();
        let labels: usize = labels.map(|(name, value)| name.len() + value.len() + 8).sum();
        labels + self.machine.config.as_ref().map_or(0, RawConfig::size)
    }

    /// The same without what belongs to the configuration.
    pub fn status_only(&self) -> Self {
        let mut status = self.clone();
        status.machine.config = None;
        status.machine.image_ref.labels = None;
        status
    }
}

/// A change of one machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Delta {
    /// Whose.
    pub worker: WorkerId,
    /// Counts this worker's deltas since its process began, from 1 and without holes.
    pub sequence: u64,
    /// The worker's process: a new one begins to count anew.
    pub incarnation: String,
    /// The machine as it is now, with the events since its delta before this one. With its
    /// configuration when that is another one than in the delta before, and not large
    /// ([`LARGE_CONFIG_BYTES`]). `destroyed` machines are published once more and then forgotten.
    pub record: MachineRecord,
}

/// A worker that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Its id.
    pub worker: WorkerId,
    /// The region it is in.
    pub region: String,
    /// Its process, as in [`Delta::incarnation`].
    pub incarnation: String,
    /// Number of the last delta it has published; who has not seen that has lost something.
    pub sequence: u64,
    /// Its machines are being stopped for a shutdown of the host, and none starts.
    pub draining: bool,
}

/// A question to all workers of a region.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Question {
    /// Who has room for this? Answer: [`Offer`], also from those that have none.
    Place {
        /// Virtual processors.
        cpus: u32,
        /// MiB.
        memory_mib: u64,
        /// Size of its root disk, GiB.
        #[serde(default)]
        disk_gib: u64,
        /// Image reference: a worker that has it is to be preferred.
        image: String,
    },
}

/// A worker's answer to [`Question::Place`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Offer {
    /// Who.
    pub worker: WorkerId,
    /// Whether it fits.
    pub fits: bool,
    /// What is missing when it does not, for the user.
    pub shortage: Option<String>,
    /// Free memory, MiB; of an offer that fits, after it.
    pub free_memory_mib: u64,
    /// Unreserved virtual processors, likewise.
    pub free_cpus: u32,
    /// Unreserved disk, GiB, likewise.
    #[serde(default)]
    pub free_disk_gib: u64,
    /// The image is there already.
    pub has_image: bool,
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
