//! Start: boots a machine with a blank root disk.

use std::time::Duration;

use caddis_api::{MachineState, UnixMillis};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{LostVm, OperationKind, Outcome, Rules, Suspend};
use crate::{event::Source, owner::Transaction, restart, steps::Step};

/// Time a start may take beyond its back-off. Under emulation on a busy host a boot takes many
/// seconds.
pub const START_TIME: Duration = Duration::from_secs(4 * 60);

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "RecordedStart", into = "RecordedStart")]
pub struct Start {
    /// Why.
    pub reason: StartReason,
    /// A suspend follows. Only of what is queued: once it begins, the suspend is what is queued.
    pub suspend_after: bool,
}

/// Why a machine is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartReason {
    /// A client asked for it.
    User,
    /// Its program has ended, and its restart policy has it run again.
    RestartPolicy {
        /// After the back-off.
        not_before: UnixMillis,
    },
    /// It has a schedule, and is due.
    Schedule,
    /// It ran before the host went down, or was due while no server ran: it waits for its turn
    /// among the others of the host.
    Recovery,
    /// It was to run before an update that came to nothing.
    Update,
    /// There is traffic for it.
    Traffic,
}

impl StartReason {
    /// Who caused the start, as its event tells.
    fn source(self) -> Source {
        match self {
            Self::User | Self::Update => Source::User,
            Self::RestartPolicy { .. } | Self::Schedule | Self::Recovery => Source::Worker,
            Self::Traffic => Source::Proxy,
        }
    }
}

impl Start {
    /// A start for this reason.
    pub const fn because(reason: StartReason) -> OperationKind {
        OperationKind::Start(Self { reason, suspend_after: false })
    }
}

/// A start as it has been recorded since the first release, which a server of that release reads.
#[derive(Serialize, Deserialize)]
struct RecordedStart {
    /// End of the back-off, the epoch for none.
    not_before: UnixMillis,
    automatic: bool,
    recovery: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    suspend_after: bool,
    /// To earlier releases it is like a start that a client asked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    after_update: bool,
    /// Likewise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    by_traffic: bool,
}

impl From<Start> for RecordedStart {
    fn from(start: Start) -> Self {
        let Start { reason, suspend_after } = start;
        let is = |other: StartReason| reason == other;
        Self {
            not_before: start.not_before().unwrap_or_default(),
            automatic: ![StartReason::User, StartReason::Update, StartReason::Traffic]
                .contains(&reason),
            recovery: is(StartReason::Recovery),
            suspend_after,
            after_update: is(StartReason::Update),
            by_traffic: is(StartReason::Traffic),
        }
    }
}

impl From<RecordedStart> for Start {
    fn from(recorded: RecordedStart) -> Self {
        let RecordedStart {
            not_before,
            automatic,
            recovery,
            suspend_after,
            after_update,
            by_traffic,
        } = recorded;
        let reason = match (automatic, recovery, not_before) {
            (_, true, _) => StartReason::Recovery,
            (true, false, UnixMillis::EPOCH) => StartReason::Schedule,
            (true, false, not_before) => StartReason::RestartPolicy { not_before },
            (false, false, _) if after_update => StartReason::Update,
            (false, false, _) if by_traffic => StartReason::Traffic,
            (false, false, _) => StartReason::User,
        };
        Self { reason, suspend_after }
    }
}

impl Rules for Start {
    fn name(&self) -> &'static str {
        "start"
    }

    fn state(&self) -> MachineState {
        MachineState::Starting
    }

    fn steps(&self) -> &'static [Step] {
        use Step::{BackOff, Boot, Configure, Launch, PrepareRoot, Pull, Release};
        // `release` first: whatever an earlier VM left behind must be gone before the next.
        &[BackOff, Release, Pull, PrepareRoot, Launch, Boot, Configure]
    }

    fn time_limit(&self) -> Duration {
        START_TIME
    }

    fn not_before(&self) -> Option<UnixMillis> {
        match self.reason {
            StartReason::RestartPolicy { not_before } => Some(not_before),
            _ => None,
        }
    }

    fn moved_by(&self, by_ms: i64) -> Option<OperationKind> {
        let not_before = self.not_before()?.moved_by(by_ms);
        let reason = StartReason::RestartPolicy { not_before };
        Some(OperationKind::Start(Self { reason, ..self.clone() }))
    }

    fn asked_by(&self) -> Source {
        if self.reason == StartReason::Traffic { Source::Proxy } else { Source::User }
    }

    fn runs_afterwards(&self) -> bool {
        !self.suspend_after
    }

    fn begun(&self, draft: &mut Transaction, source: Source) {
        if self.suspend_after {
            draft.row.next = Some(OperationKind::Suspend(Suspend::default()));
            draft.becomes(OperationKind::Start(Self { suspend_after: false, ..self.clone() }));
        }
        let told = match self.reason {
            StartReason::RestartPolicy { not_before } => json!({
                "delay_ms": not_before.since(draft.now).as_millis(),
                "restart_count": restart::recent(&draft.row.restarts, draft.now).count(),
            }),
            _ => Value::Null,
        };
        draft.event(source, "start", self.state(), told);
    }

    fn done(&self, draft: &mut Transaction, outcome: &Outcome) {
        draft.launched(outcome);
        draft.reach(MachineState::Started, self.reason.source(), "start", outcome.told.clone());
    }

    fn lost_vm(&self, draft: &mut Transaction, lost: &LostVm) {
        draft.go_back();
        if lost.rebooted {
            draft.becomes(Self::because(StartReason::Recovery));
            draft.renew_deadline();
        }
    }
}
