//! What gateways ask of one worker.

use std::{collections::BTreeMap, net::Ipv6Addr};

use caddis_api::{
    ApiDuration, AppName, LeaseNonce, MachineId, RawConfig, RegionCode, Signal, SnapshotId,
    VersionId, VolumeId,
};
use serde::{Deserialize, Serialize};

use super::{
    egress::MachineEgress,
    policies::AppPolicies,
    traffic::{HostLine, SleepMode},
    volume::{CreateVolume, VolumeAction},
};

/// A request to one worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WorkerRequest {
    /// Make a machine. Answer: `WorkerReply::Created`.
    Create(Box<CreateMachine>),
    /// Change a machine. Answer: depends on the action.
    Act {
        /// Id of the machine.
        machine: MachineId,
        /// What the client holds as proof of its lease.
        nonce: Option<LeaseNonce>,
        /// What to do.
        action: Action,
    },
    /// Replace a machine's configuration. Answer: `WorkerReply::Updated`, once that is durable.
    Update {
        /// Id of the machine.
        machine: MachineId,
        /// What the client holds as proof of its lease.
        nonce: Option<LeaseNonce>,
        /// Its new configuration, and how it is applied.
        update: Box<UpdateMachine>,
    },
    /// One machine, straight from its owner. Answer: `WorkerReply::Machine`.
    Get {
        /// Id of the machine.
        machine: MachineId,
    },
    /// Machines in id order, as many as one message takes. Answer: `WorkerReply::Machines`.
    List {
        /// Begin after this id.
        after: Option<MachineId>,
    },
    /// The machine was placed on another host since: this copy stops, for good. Answer: `Done`.
    Supersede {
        /// Id of the machine.
        machine: MachineId,
        /// Epoch of the placement elsewhere; one that is not higher than the worker's own changes
        /// nothing.
        epoch: u64,
    },
    /// Events, newest first. Answer: `WorkerReply::Events`.
    Events {
        /// Of which machine.
        machine: MachineId,
        /// At most so many.
        limit: usize,
    },
    /// All versions of its configuration that are kept. Answer: `WorkerReply::Versions`.
    Versions {
        /// Of which machine.
        machine: MachineId,
    },
    /// What a running machine's programs may have of its memory, after a change where one is asked
    /// for. Answer: `WorkerReply::Memory`.
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
    /// The process list. Answer: `WorkerReply::Processes`.
    Processes {
        /// Of which machine.
        machine: MachineId,
    },
    /// Start or resume a machine because there is traffic for it. Answered when it runs, when it
    /// can't, or when the deadline is over: `WorkerReply::Woken` or `NotWoken`.
    Wake {
        /// Id of the machine.
        machine: MachineId,
        /// How long the start is waited for; it goes on after that. Milliseconds.
        deadline_ms: u64,
    },
    /// Stop or suspend a machine that is idle. Answer: `WorkerReply::Sleeping`, once that is
    /// durable, or `NotSleeping`.
    Sleep {
        /// Id of the machine.
        machine: MachineId,
        /// How.
        mode: SleepMode,
        /// Why, for its events and its log.
        reason: String,
    },
    /// Whether a machine may be stopped or suspended now: it is idle but for connections that are
    /// to be cut for it. Answer: `WorkerReply::MaySleep`, or `NotSleeping`.
    MaySleep {
        /// Id of the machine.
        machine: MachineId,
        /// How.
        mode: SleepMode,
    },
    /// Write lines of the proxy into a machine's log. Answer: `WorkerReply::Logged`.
    Log {
        /// Id of the machine.
        machine: MachineId,
        /// In order, at most [`HostLine::MOST`].
        lines: Vec<HostLine>,
    },
    /// Make a volume. Answer: `WorkerReply::Volume`, once it is durable that it is to be made.
    CreateVolume(Box<CreateVolume>),
    /// Change a volume. Answer: `WorkerReply::Volume`, once that is durable.
    ActOnVolume {
        /// Id of the volume.
        volume: VolumeId,
        /// What to do.
        action: VolumeAction,
    },
    /// One volume, with its use as its machine tells it now, if that runs. Answer:
    /// `WorkerReply::Volume`.
    GetVolume {
        /// Id of the volume.
        volume: VolumeId,
    },
    /// Take a snapshot of a volume. Answer: `WorkerReply::Snapshots` with it, `waiting`, once it is
    /// durable that it is to be taken; one of this id that is there already is told as it is.
    TakeSnapshot {
        /// Id of the volume.
        volume: VolumeId,
        /// Its id.
        snapshot: SnapshotId,
    },
    /// The snapshots of a volume, newest first, also of one that is gone. Answer:
    /// `WorkerReply::Snapshots`; of none where the worker never had the volume.
    ListSnapshots {
        /// Id of the volume.
        volume: VolumeId,
    },
    /// One snapshot. Answer: `WorkerReply::Snapshots`, of one, or of none where the worker knows
    /// of none with this id.
    GetSnapshot {
        /// Its id.
        snapshot: SnapshotId,
    },
    /// Delete a snapshot. Answer: `WorkerReply::Snapshots`, of none, also where it is gone already.
    DeleteSnapshot {
        /// Id of its volume.
        volume: VolumeId,
        /// Its id.
        snapshot: SnapshotId,
    },
    /// Volumes in id order, as many as one message takes. Answer: `WorkerReply::Volumes`.
    ListVolumes {
        /// Begin after this id.
        after: Option<VolumeId>,
    },
    /// The network policies of all apps: these are in force from now on and no others, also for
    /// machines that are yet to be made. Answer: `WorkerReply::PoliciesSet`, once connections that
    /// they forbid are refused, also those that there are.
    SetPolicies {
        /// Number of this request among all that tell the worker policies: what is older than what
        /// the worker has changes nothing. 0 of a gateway that knows no numbers.
        #[serde(default)]
        revision: u64,
        /// Of each app that has some.
        apps: Vec<AppPolicies>,
    },
    /// The egress addresses of all machines of the worker: each has what it has here from now on,
    /// and others have none. Also of machines that are about to be made. Answer:
    /// `WorkerReply::Egress`, once new connections come from them and those under addresses that
    /// were taken away are cut.
    SetEgress {
        /// Number of this request among all that tell the worker egress addresses: what is older
        /// than what the worker has changes nothing.
        revision: u64,
        /// Those that have some.
        machines: Vec<MachineEgress>,
    },
    /// Stop all guests for a shutdown of the host; they start again when the host is back. Answer:
    /// `Drained`.
    Drain {
        /// Guests that still run then are killed. Milliseconds.
        deadline_ms: u64,
    },
    /// Whether this worker can do its work. Answer: `WorkerReply::Health`.
    Health,
}

/// A change of one machine. All but `Signal`, `SetMetadata`, `GetLease`, `Hold` and `ReleaseHold`
/// need the lease's nonce when the machine is leased.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Answer: `WorkerReply::Started`, once the start is durable.
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
        /// What its program gets.
        signal: Signal,
    },
    /// Answer: `Done`.
    Destroy {
        /// Also when it runs.
        force: bool,
    },
    /// Take machine out of routing, or put it back. Answer: `Done`.
    Cordon {
        /// True takes it out of routing, false puts it back.
        cordoned: bool,
    },
    /// Answer: `WorkerReply::Lease`. With a nonce in the request it refreshes that lease.
    AcquireLease {
        /// Seconds from now.
        ttl_seconds: u64,
        /// Who holds the lease from then on, as clients see it.
        owner: String,
        /// The holder's own words.
        description: String,
    },
    /// Answer: `WorkerReply::Lease`.
    GetLease,
    /// Answer: `Done`.
    ReleaseLease,
    /// Keep it from being put to sleep when idle, in place of an earlier hold. Answer:
    /// `Done`.
    Hold {
        /// Seconds from now.
        ttl_seconds: u64,
        /// Shown with it.
        reason: Option<String>,
    },
    /// End the hold, if there is one. Answer: `Done`.
    ReleaseHold,
}

/// Everything a worker must know to make a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreateMachine {
    /// Its id, from the catalog.
    pub id: MachineId,
    /// Its name, from the catalog.
    pub name: String,
    /// Name of the machine's app.
    pub app: AppName,
    /// The app's organisation.
    pub org: String,
    /// Region it was placed in.
    pub region: RegionCode,
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
