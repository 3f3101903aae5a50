//! Health checks: whether the program of a machine that runs answers is tried again and again, and
//! what was found is recorded with the machine.
//!
//! ```text
//!   owner: machine is started ──▶ Runner ── per check: wait, probe ──▶ Report, when it differs
//!          anything else      ──▶ dropped, with the attempts under way
//! ```
//!
//! Checks go to the machine's private IPv4 address, straight from the host, so they neither wake a
//! machine nor count as its traffic. When each is tried is [`course`], how is [`Prober`].

use std::{sync::Arc, time::Duration};

use caddis_api::{
    ApiDuration, MachineConfig, MachineId, UnixMillis,
    checks::{self, NamedCheck},
    config::CheckPurpose,
    machine::{CheckState, CheckStatus},
    time,
};
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, SemaphorePermit, mpsc},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{clock::Clock, engine::Shared, row::MachineRow};

mod course;
mod network;
mod prober;

use course::Course;

pub use network::NetworkProber;
pub use prober::{Finding, Probe, Prober};

/// How long an attempt counts as one of those under way. One that takes longer waits for a machine
/// that does not answer, and others go on beside it.
const TURN: Duration = Duration::from_secs(1);
/// Least time between two reports of a check whose state is the same: each is recorded and told to
/// the gateways, and a program that fails otherwise each time is not to keep its host busy.
const SAME_STATE: Duration = Duration::from_secs(10);
/// What is shown of a check that has not been tried yet.
const NOT_TRIED: &str = "not tried yet";

/// What the checks of a machine have found, as it is recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResults {
    /// The boot in which it was found.
    pub boot: u64,
    /// Of the checks that were tried since.
    pub results: Vec<CheckResult>,
}

/// What a check has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    /// Its name.
    pub name: String,
    /// How it stands.
    pub state: CheckState,
    /// For the user.
    pub output: String,
    /// When its state changed last.
    pub changed_at: UnixMillis,
    /// It has passed since the boot.
    pub has_passed: bool,
}

impl CheckResults {
    /// Whether nothing was found yet.
    pub fn is_empty(&self) -> bool {
        self.results.is_empty()
    }

    fn of(&self, boot: u64, name: &str) -> Option<&CheckResult> {
        self.results.iter().find(|result| self.boot == boot && result.name == name)
    }

    /// Records what a check has found in a boot; what earlier boots had is forgotten.
    pub fn record(&mut self, boot: u64, report: &Report, now: UnixMillis) {
        if self.boot != boot {
            *self = Self { boot, results: Vec::new() };
        }
        let Report { name, state, output, .. } = report.clone();
        let passes = state == CheckState::Passing;
        match self.results.iter_mut().find(|result| result.name == name) {
            Some(known) => {
                let changed_at = if known.state == state { known.changed_at } else { now };
                let has_passed = known.has_passed || passes;
                *known = CheckResult { name, state, output, changed_at, has_passed };
            }
            None => {
                let has_passed = passes;
                let found = CheckResult { name, state, output, changed_at: now, has_passed };
                self.results.push(found);
            }
        }
    }
}

/// The checks of a machine as the API shows them. Those that have not been tried since its last
/// boot say so: what an earlier boot had says nothing of this one.
pub fn statuses(row: &MachineRow, config: &MachineConfig) -> Vec<CheckStatus> {
    let shown = |check: NamedCheck<'_>| {
        let kind = check.is_readiness().then_some(CheckPurpose::Readiness);
        let found = row.checks.of(row.boot, &check.name);
        let (status, output, changed_at) = match found {
            Some(found) => (found.state, found.output.clone(), found.changed_at),
            None => {
                let begun = UnixMillis::new(row.boot).max(row.created_at);
                (CheckState::Warning, NOT_TRIED.to_owned(), begun)
            }
        };
        let updated_at = time::milliseconds(changed_at.into());
        CheckStatus { name: check.name, status, output, updated_at, service: check.service, kind }
    };
    checks::of(config).into_iter().map(shown).collect()
}

/// A check has found something else than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Which.
    pub name: String,
    /// How it stands now.
    pub state: CheckState,
    /// For the user.
    pub output: String,
    /// It has failed this often in a row, as often as its machine may before it is restarted.
    pub restart_after: Option<u32>,
}

/// Tries the checks of one machine for as long as it is kept.
pub struct Runner {
    reports: mpsc::Receiver<Report>,
    _task: AbortOnDropHandle<()>,
}

impl Runner {
    /// Begins with a machine that is started since `since`; `None` where it has no checks. A
    /// check that was tried since the boot, by an earlier server or before a suspend, goes on at
    /// once, others after their grace period.
    pub fn begin(
        shared: &Shared,
        row: &MachineRow,
        config: &MachineConfig,
        since: Instant,
    ) -> Option<Self> {
        let (sender, reports) = mpsc::channel(1);
        let now = shared.clock.now();
        let loops: Vec<_> = checks::of(config)
            .into_iter()
            .map(|named| {
                let known = row.checks.of(row.boot, &named.name);
                let first = if known.is_some() { now } else { since + named.check.grace_period() };
                let course = Course::new(named.check, known.is_some_and(|known| known.has_passed));
                let attempts = Attempts {
                    clock: shared.clock.clone(),
                    prober: shared.prober.clone(),
                    turns: shared.queues.checks.clone(),
                    slow: shared.queues.slow_checks.clone(),
                    probe: probe(&row.id, row.addresses.ipv4, named),
                    known: known.map(|known| known.state),
                };
                attempts.run(course, first, sender.clone())
            })
            .collect();
        if loops.is_empty() {
            return None;
        }
        let task = tokio::spawn(async move {
            join_all(loops).await;
        });
        Some(Self { reports, _task: AbortOnDropHandle::new(task) })
    }

    /// The next report; never ends when there is none any more.
    pub async fn next(&mut self) -> Report {
        match self.reports.recv().await {
            Some(report) => report,
            None => std::future::pending().await,
        }
    }
}

fn probe(machine: &MachineId, address: std::net::Ipv4Addr, named: NamedCheck<'_>) -> Probe {
    Probe {
        machine: machine.clone(),
        address: (address, named.port).into(),
        kind: named.kind,
        check: named.check.clone(),
        name: named.name,
    }
}

/// What a loop of attempts works with.
struct Attempts {
    clock: Clock,
    prober: Arc<dyn Prober>,
    /// How many are under way at once on the host.
    turns: Arc<Semaphore>,
    /// How many are under way since long.
    slow: Arc<Semaphore>,
    probe: Probe,
    known: Option<CheckState>,
}

impl Attempts {
    /// Tries the check at `first` and then as its course says. Ends when nobody takes reports any
    /// more.
    async fn run(self, mut course: Course, first: Instant, reports: mpsc::Sender<Report>) {
        let mut due = first;
        // Why it failed before an earlier server ended is not known.
        let mut told = self.known.filter(|known| *known == CheckState::Passing).map(|_| None);
        let mut told_at = None;
        loop {
            self.clock.sleep_until(due).await;
            let Ok(turn) = self.turns.acquire().await else { return };
            let begun = self.clock.now();
            let finding = self.try_once(turn).await;
            let next = course.tried(begun, finding.passed);
            due = begun + next.wait;
            let failure = (!finding.passed).then(|| finding.summary.clone());
            let is_soon = told_at.is_some_and(|at| begun < at + SAME_STATE);
            let is_same = told.as_ref().is_some_and(|told: &Option<String>| {
                *told == failure || is_soon && told.is_some() == failure.is_some()
            });
            if is_same && next.restart_after.is_none() {
                continue;
            }
            (told, told_at) = (Some(failure), Some(begun));
            let passed = finding.passed;
            let report = Report {
                name: self.probe.name.clone(),
                state: if passed { CheckState::Passing } else { CheckState::Critical },
                output: finding.output(),
                restart_after: next.restart_after,
            };
            if reports.send(report).await.is_err() {
                return;
            }
        }
    }

    /// Gives the turn back when it ends, or takes long.
    async fn try_once(&self, turn: SemaphorePermit<'_>) -> Finding {
        let limit = self.probe.check.timeout();
        let attempt = self.clock.timeout(limit, self.prober.probe(&self.probe));
        let turn_ends = async {
            self.clock.sleep_until(self.clock.now() + TURN).await;
            // Where there are too many of these, too, it keeps its turn.
            let _slow = self.slow.acquire().await;
            drop(turn);
            std::future::pending().await
        };
        let found = tokio::select! {
            biased;
            found = attempt => found,
            never = turn_ends => never,
        };
        found.unwrap_or_else(|| {
            let subject = self.probe.subject();
            Finding::failed(format!("{subject}: timed out after {}", ApiDuration(limit)))
        })
    }
}
