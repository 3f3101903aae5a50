//! What is recorded of a machine: the whole truth about it, one row of the database.

use caddis_api::{
    AppName, EventId, LeaseNonce, MachineId, MachineState, RawConfig, RegionCode, Signal,
    UnixMillis, VersionId,
    lease::{Lease, PublicLease},
};
use caddis_guest_protocol::message::ExitReport;
use caddis_image::ResolvedImage;
use caddis_network::MachineAddresses;
use serde::{Deserialize, Serialize};

use crate::{
    checks::CheckResults,
    operations::{Operation, OperationKind},
    volumes::SavedVolume,
};

/// Version of the record's format. Fields are only ever added, with defaults.
pub const FORMAT: u32 = 1;

/// A machine as recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineRow {
    /// [`FORMAT`] when it was written.
    pub format: u32,
    /// Id.
    pub id: MachineId,
    /// Name.
    pub name: String,
    /// App it belongs to.
    pub app: AppName,
    /// The app's organisation.
    pub org: String,
    /// Region it was placed in.
    pub region: RegionCode,
    /// When it was made.
    pub created_at: UnixMillis,
    /// When it was last changed.
    pub updated_at: UnixMillis,
    /// State as the API shows it.
    pub state: MachineState,
    /// Version of the configuration.
    pub version: VersionId,
    /// Configuration.
    pub config: RawConfig,
    /// What it runs.
    pub image: ResolvedImage,
    /// Its addresses.
    pub addresses: MachineAddresses,
    /// Counts its placements.
    pub placement_epoch: u64,
    /// Taken out of routing.
    pub cordoned: bool,
    /// Has been booted at least once.
    pub launched: bool,
    /// What is being done to it.
    pub operation: Option<Operation>,
    /// What is to be done after that.
    pub next: Option<OperationKind>,
    /// How the program of the current VM ended, once that is known and until the VM is gone.
    pub ended: Option<ProgramEnd>,
    /// A VM was started for it and has not been cleared away yet. Set before the launch, so that a
    /// host reboot is noticed whenever it happens.
    pub has_vm: bool,
    /// Tells the boots of this machine apart in its log.
    pub boot: u64,
    /// It ran when the host was drained, and shall run again when the host is back.
    pub drained: bool,
    /// The lease, possibly expired.
    pub lease: Option<Lease>,
    /// When the restart policy restarted it, oldest first.
    #[serde(default)]
    pub restarts: Vec<UnixMillis>,
    /// When it last came to rest, stopped or failed.
    #[serde(default)]
    pub rested_at: UnixMillis,
    /// How it was last started: `cold` or `template`.
    #[serde(default)]
    pub start_kind: Option<String>,
    /// The version before the current one, as long as an update may still come to nothing.
    #[serde(default)]
    pub replaced: Option<Box<Replaced>>,
    /// Last event's id.
    pub last_event: Option<EventId>,
    /// Rises with every published change.
    pub revision: u64,
    /// When it was destroyed.
    pub destroyed_at: Option<UnixMillis>,
    /// Epoch of a later placement on another host, once this worker knows of it: this copy never
    /// runs again.
    #[serde(default)]
    pub superseded_by: Option<u64>,
    /// Its task has panicked, and nothing was done to it since: it has failed, and a VM that runs
    /// was left alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_quarantined: bool,
    /// When it last came to run: was started, resumed, or went on after a suspend was cancelled.
    #[serde(default)]
    pub started_at: UnixMillis,
    /// What keeps it from being put to sleep, possibly over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<RecordedHold>,
    /// What its health checks have found last.
    #[serde(default, skip_serializing_if = "CheckResults::is_empty")]
    pub checks: CheckResults,
    /// Its volumes when its memory was last saved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub saved_volumes: Vec<SavedVolume>,
}

/// Keeps a machine from being put to sleep when idle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedHold {
    /// When it ends.
    pub until: UnixMillis,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl MachineRow {
    /// The lease, if it holds at `now`.
    pub fn valid_lease(&self, now: UnixMillis) -> Option<&Lease> {
        self.lease.as_ref().filter(|lease| UnixMillis::from_seconds(lease.expires_at) > now)
    }

    /// The hold, if it is in force at `now`.
    pub fn valid_hold(&self, now: UnixMillis) -> Option<&RecordedHold> {
        self.hold.as_ref().filter(|hold| hold.until > now)
    }

    /// The lease as others may see it.
    pub fn public_lease(&self, now: UnixMillis) -> Option<PublicLease> {
        self.valid_lease(now).map(PublicLease::from)
    }

    /// The host's clock was set ahead by so many milliseconds, or back: what is recorded of times
    /// that are counted from or waited for moves with it. When the machine was made and booted
    /// stays, by which it is known.
    pub fn clock_was_set(&mut self, by_ms: i64) {
        let moved = |at: &mut UnixMillis| *at = at.moved_by(by_ms);
        self.restarts.iter_mut().for_each(moved);
        moved(&mut self.rested_at);
        moved(&mut self.started_at);
        self.hold.iter_mut().for_each(|hold| hold.until = hold.until.moved_by(by_ms));
        if let Some(lease) = &mut self.lease {
            lease.expires_at = lease.expires_at.saturating_add_signed(by_ms / 1000);
        }
        self.operation.iter_mut().for_each(|operation| operation.clock_was_set(by_ms));
        if let Some(moved) = self.next.as_ref().and_then(|next| next.rules().moved_by(by_ms)) {
            self.next = Some(moved);
        }
    }

    /// Whether `nonce` allows a change at `now`: without a lease everything does.
    pub fn lease_allows(&self, nonce: Option<&LeaseNonce>, now: UnixMillis) -> bool {
        self.valid_lease(now).is_none_or(|lease| Some(&lease.nonce) == nonce)
    }
}

/// What an update goes back to when the new version can't be had.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replaced {
    /// Version of the configuration.
    pub version: VersionId,
    /// Configuration.
    pub config: RawConfig,
    /// What it ran.
    pub image: ResolvedImage,
    /// Where the machine was.
    pub state: MachineState,
    /// It was about to run, or to go on running.
    pub runs: bool,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramEnd {
    /// The guest's report; absent when the VM ended without one.
    pub report: Option<ExitReport>,
    /// Why, when it did not end by itself.
    pub cause: Option<EndCause>,
    /// Explains the cause.
    pub message: Option<String>,
}

/// Why a program ended that did not end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndCause {
    /// The guest's kernel ran out of memory.
    GuestOom,
    /// The VM exceeded its memory bound on the host.
    HostOom,
    /// The disk of the host was full, and the VM could not go on without room on it.
    DiskFull,
    /// The VM process died.
    VmmCrashed,
    /// A program in it powered it off or rebooted it.
    PoweredOff,
    /// The host was rebooted.
    HostReboot,
    /// The host was drained for a shutdown.
    HostDrain,
    /// It did not heed its stop signal in time, or was destroyed by force.
    Killed,
}

impl EndCause {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GuestOom => "guest_oom",
            Self::HostOom => "host_oom",
            Self::DiskFull => "disk_full",
            Self::VmmCrashed => "vmm_crashed",
            Self::PoweredOff => "powered_off",
            Self::HostReboot => "host_reboot",
            Self::HostDrain => "host_drain",
            Self::Killed => "killed",
        }
    }
}

impl ProgramEnd {
    /// From the guest's report.
    pub fn reported(report: ExitReport) -> Self {
        let cause = report.oom_killed.then_some(EndCause::GuestOom);
        Self { report: Some(report), cause, message: None }
    }

    /// Without a report of the guest.
    pub fn unreported(cause: EndCause, message: Option<String>) -> Self {
        Self { report: None, cause: Some(cause), message }
    }

    /// The exit status, or what stands for it: 137 for a kill that we did, 0 when the machine
    /// switched itself off, -1 when nobody knows.
    pub fn exit_code(&self) -> i32 {
        match (&self.report, self.cause) {
            (Some(report), _) => report.code,
            (None, Some(EndCause::Killed | EndCause::HostOom)) => 128 + Signal::KILL.number(),
            (None, Some(EndCause::PoweredOff)) => 0,
            (None, _) => -1,
        }
    }

    /// Whether the restart policy counts it as a failure.
    pub fn is_failure(&self) -> bool {
        self.exit_code() != 0
    }
}
