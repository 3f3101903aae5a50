//! Health checks: tried while the machine runs and nothing is under way with it, recorded when they
//! find something else, and, where they are configured so, followed by a restart.

use caddis_api::{MachineState, UnixMillis};

use super::{Owner, Transaction};
use crate::{
    checks::{Report, Runner},
    event::Source,
    operations::{OperationKind, Restart},
    policy::{Goal, Request, Verdict},
    restart,
    store::Durability,
};

impl Owner {
    /// Has the checks be tried if they are to be now.
    pub(super) fn follow_checks(&mut self) {
        if !self.is_to_be_checked() {
            self.checks = None;
        } else if self.checks.is_none() {
            let (shared, row) = (&self.shared, &self.row);
            self.checks = Runner::begin(shared, row, &self.config, self.started_at);
        }
    }

    fn is_to_be_checked(&self) -> bool {
        let runs = |guest: &crate::live::Guest| guest.ended.is_none() && guest.gone.is_none();
        self.row.state == MachineState::Started
            && self.row.operation.is_none()
            // One that stands still can't answer, through no fault of its program.
            && self.paused().is_none()
            && self.live.as_ref().is_some_and(|live| runs(&live.guest.borrow()))
    }

    pub(super) async fn check_reported(&mut self, report: Report) {
        let boot = self.row.boot;
        self.change(Durability::Process, |draft| {
            draft.row.checks.record(boot, &report, draft.now);
        })
        .await;
        if let Some(failures) = report.restart_after {
            self.restart_unhealthy(&report, failures).await;
        }
    }

    /// Restarts a machine whose check has failed so often in a row, if its restart policy lets it.
    async fn restart_unhealthy(&mut self, report: &Report, failures: u32) {
        let now = self.shared.clock.unix_now();
        let Report { name, output, .. } = report;
        let may = restart::lets_unhealthy_restart(&self.config, &self.row.restarts, now);
        let verdict = self.verdict(Request::Restart);
        if !may || !matches!(verdict, Verdict::Begin(Goal::Restart)) {
            tracing::info!(machine = %self.row.id, check = name, failures, "not restarted");
            return;
        }
        let often =
            if failures == 1 { String::new() } else { format!(" {failures} times in a row") };
        let text = format!("health check {name} failed{often}, restarting: {output}");
        let plan = self.plan(None, None);
        self.change(Durability::Synced, |draft| {
            draft.count_restart(now);
            let restart = Restart { plan: plan.clone(), unhealthy: Some(text.clone()) };
            draft.begin(OperationKind::Restart(restart), Source::Worker);
        })
        .await;
    }
}

impl Transaction {
    /// The machine is restarted without anyone asking.
    pub fn count_restart(&mut self, now: UnixMillis) {
        self.row.restarts = restart::recent(&self.row.restarts, now).chain([now]).collect();
    }
}
