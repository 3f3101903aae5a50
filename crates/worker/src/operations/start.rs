//! Start: boots a machine with a blank root disk.

use std::time::Duration;

use caddis_api::MachineState;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{LostVm, OperationKind, Outcome, Rules};
use crate::{event::Source, owner::Transaction, restart, step::Step};

/// Time a start may take beyond its back-off. Under emulation on a busy host a boot takes many
/// seconds.
pub const START_TIME: Duration = Duration::from_secs(4 * 60);

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Not before this time, milliseconds since the Unix epoch.
    pub not_before: u64,
    /// The restart policy does it, not a user.
    pub automatic: bool,
    /// It ran before the host went down: waits for its turn among the others of the host.
    pub recovery: bool,
    /// A suspend follows. Only of what is queued: once it begins, the suspend is what is queued.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend_after: bool,
}

impl Start {
    /// A start after the host was down.
    pub fn recovery() -> OperationKind {
        OperationKind::Start(Self {
            not_before: 0,
            automatic: true,
            recovery: true,
            suspend_after: false,
        })
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

    fn not_before(&self) -> Option<u64> {
        Some(self.not_before).filter(|at| *at > 0)
    }

    fn moved_by(&self, by_ms: i64) -> Option<OperationKind> {
        let not_before = self.not_before()?.saturating_add_signed(by_ms);
        Some(OperationKind::Start(Self { not_before, ..self.clone() }))
    }

    fn runs_afterwards(&self) -> bool {
        !self.suspend_after
    }

    fn begun(&self, draft: &mut Transaction, source: Source) {
        if self.suspend_after {
            draft.row.next = Some(OperationKind::Suspend);
            draft.becomes(OperationKind::Start(Self { suspend_after: false, ..self.clone() }));
        }
        // A schedule's start, and one after the host was down, have no time to wait for.
        let told = match self.not_before() {
            Some(not_before) if self.automatic => json!({
                "delay_ms": not_before.saturating_sub(draft.now),
                "restart_count": restart::recent(&draft.row.restarts, draft.now).count(),
            }),
            _ => Value::Null,
        };
        draft.event(source, "start", self.state(), told);
    }

    fn done(&self, draft: &mut Transaction, outcome: &Outcome) {
        let source = if self.automatic { Source::Worker } else { Source::User };
        draft.launched(outcome);
        draft.reach(MachineState::Started, source, "start", outcome.told.clone());
    }

    fn lost_vm(&self, draft: &mut Transaction, lost: &LostVm) {
        draft.go_back();
        if lost.rebooted {
            draft.becomes(Self::recovery());
            draft.renew_deadline();
        }
    }
}
