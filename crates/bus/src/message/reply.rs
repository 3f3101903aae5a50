//! What workers answer.

use caddis_api::{
    ApiError, MachineState, RawConfig, UnixMillis, VersionId,
    event::MachineEvent,
    exec::ProcessStat,
    lease::Lease,
    machine::ImageRef,
    requests::{Memory, StartReply},
};
use serde::{Deserialize, Serialize};

use super::{
    record::MachineRecord,
    traffic::{SleepMode, WhyAwake, WhyNotWoken},
    volume::{SnapshotRecord, VolumeRecord},
};

/// A version of a machine's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// Id of the version.
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
        /// The lease, with its nonce.
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
        /// asked for by `WorkerRequest::Get`.
        records: Vec<MachineRecord>,
        /// There are more after these.
        more: bool,
        /// The worker's process, as in `Delta::incarnation`.
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
    /// A machine runs.
    Woken {
        /// Where it was when the request arrived: `started` when nothing was to be done.
        previous_state: MachineState,
        /// When it came to run: started, resumed, or went on after a suspend was cancelled.
        since: UnixMillis,
        /// As it is now.
        record: Box<MachineRecord>,
    },
    /// A machine does not run, or not yet.
    NotWoken {
        /// Kind of the reason.
        why: WhyNotWoken,
        /// The reason, for people.
        message: String,
        /// As it is now.
        record: Box<MachineRecord>,
    },
    /// A machine is being put to sleep.
    Sleeping {
        /// How: a machine that can't be suspended is stopped.
        mode: SleepMode,
        /// As it is now.
        record: Box<MachineRecord>,
    },
    /// Nothing keeps a machine from being put to sleep now.
    MaySleep,
    /// A machine is not put to sleep.
    NotSleeping {
        /// Kind of the reason.
        why: WhyAwake,
        /// The reason, for people.
        message: String,
        /// When the reason ends by itself, where that is known.
        until: Option<UnixMillis>,
        /// As it is now.
        record: Box<MachineRecord>,
    },
    /// Lines were taken for a log.
    Logged,
    /// One volume.
    Volume {
        /// As it is now.
        record: Box<VolumeRecord>,
    },
    /// Snapshots of one volume.
    Snapshots {
        /// They.
        records: Vec<SnapshotRecord>,
    },
    /// Several volumes.
    Volumes {
        /// In id order.
        records: Vec<VolumeRecord>,
        /// There are more after these.
        more: bool,
        /// The worker's process, as in `Delta::incarnation`.
        incarnation: String,
        /// Its changes of volumes up to this number are contained.
        revision: u64,
    },
    /// Network policies are in force: those of the request, or later ones.
    PoliciesSet {
        /// Number of those that the worker has now; none of a worker that knows no numbers.
        #[serde(default)]
        revision: u64,
    },
    /// Egress addresses are as they should be.
    Egress {
        /// Number of those that the worker has now.
        revision: u64,
    },
    /// All guests are stopped.
    Drained {
        /// How many were stopped.
        stopped: u64,
    },
    /// The answer exceeds the limit of the bus: it is had over the worker's stream endpoint, by the
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
