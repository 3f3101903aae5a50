//! Operations: every change of a machine's state is one, recorded before it begins, done in steps
//! that each may be repeated, and ended by a deadline at the latest.
//!
//! Each has a file here that says all that the engine needs to know of it ([`Rules`]). To add one:
//! its file, its variant in [`OperationKind`], its line in [`OperationKind::rules`], and in
//! [`OperationKind::of`] the goal of the policy that it fulfils. The steps are in [`crate::steps`].

use std::time::Duration;

use caddis_api::{MachineState, UnixMillis};
use caddis_vmm::StartKind;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    event::Source,
    owner::Transaction,
    policy::Goal,
    row::{MachineRow, ProgramEnd, Replaced},
    steps::Step,
};

mod abandon;
mod cancel_suspend;
mod create;
mod destroy;
mod exit;
#[cfg(test)]
mod recorded;
mod rest;
mod restart;
mod resume;
mod start;
mod stop;
mod suspend;
mod under_way;
mod update;

pub use self::{
    abandon::Abandon,
    cancel_suspend::CancelSuspend,
    exit::Exit,
    rest::Rest,
    restart::Restart,
    resume::Resume,
    start::{Start, StartReason},
    stop::{Stop, StopPlan},
    suspend::Suspend,
    under_way::{MAX_ATTEMPTS, Operation},
    update::Update,
};

/// Time the clearing-up after a program's end may take.
const CLEAR_TIME: Duration = Duration::from_secs(60);

/// Which operation; the module of each says what it is. Recorded as it is here: fields are only
/// ever added, with defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum OperationKind {
    Create,
    Start(Start),
    Stop(Stop),
    Restart(Restart),
    Update(Update),
    Suspend(Suspend),
    Resume(Resume),
    Rest(Rest),
    #[serde(rename = "wake")]
    CancelSuspend(CancelSuspend),
    Exit(Exit),
    Destroy,
    Abandon(Abandon),
}

impl OperationKind {
    /// A start that a client asked for.
    pub const START: Self = Start::because(StartReason::User);

    /// What the engine needs to know of it.
    pub fn rules(&self) -> &dyn Rules {
        match self {
            Self::Create => &create::Create,
            Self::Start(start) => start,
            Self::Stop(stop) => stop,
            Self::Restart(restart) => restart,
            Self::Update(update) => update,
            Self::Suspend(suspend) => suspend,
            Self::Resume(resume) => resume,
            Self::Rest(rest) => rest,
            Self::CancelSuspend(cancel) => cancel,
            Self::Exit(exit) => exit,
            Self::Destroy => &destroy::Destroy,
            Self::Abandon(abandon) => abandon,
        }
    }

    /// What fulfils a goal of the policy. `plan` says how to end the program that runs, `by` who
    /// asked.
    pub fn of(goal: Goal, plan: StopPlan, by: Source) -> Self {
        let by_traffic = by == Source::Proxy;
        match goal {
            Goal::Start if by_traffic => Start::because(StartReason::Traffic),
            Goal::Start => Self::START,
            Goal::StartAndSuspend => {
                Self::Start(Start { reason: StartReason::User, suspend_after: true })
            }
            Goal::Stop => Self::Stop(Stop(plan)),
            Goal::Restart => Self::Restart(Restart { plan, unhealthy: None }),
            Goal::Suspend => Self::Suspend(Suspend { by_traffic }),
            // Unless it is to rest, which `Owner::update` knows.
            Goal::Update => Self::Update(Update { stop: plan, run: true }),
            Goal::Resume => Self::Resume(Resume { spoiled: false, by_traffic }),
            Goal::Destroy => Self::Destroy,
        }
    }

    /// When it has to be done that begins at `now`.
    pub fn deadline(&self, now: UnixMillis) -> UnixMillis {
        now.max(self.rules().not_before().unwrap_or_default()) + self.rules().time_limit()
    }
}

/// All that the engine needs to know of an operation.
///
/// What changes the machine is pure: it edits a [`Transaction`], which is then recorded as a whole.
pub trait Rules {
    /// Its name on the wire.
    fn name(&self) -> &'static str;

    /// The state that the machine shows meanwhile.
    fn state(&self) -> MachineState;

    /// Its steps, in order.
    fn steps(&self) -> &'static [Step];

    /// How long it may take, from when it begins or from [`Rules::not_before`].
    fn time_limit(&self) -> Duration;

    /// When it is due; `None` for at once.
    fn not_before(&self) -> Option<UnixMillis> {
        None
    }

    /// It, after the host's clock was set ahead by so many milliseconds, or back; `None` where it
    /// has no times of its own.
    fn moved_by(&self, _by_ms: i64) -> Option<OperationKind> {
        None
    }

    /// Who asked for it, where it begins after something else.
    fn asked_by(&self) -> Source {
        Source::User
    }

    /// How it ends the machine's program, if it does.
    fn stop_plan(&self) -> Option<&StopPlan> {
        None
    }

    /// Whether the machine is to run afterwards.
    fn runs_afterwards(&self) -> bool {
        false
    }

    /// Whether the machine is settled afterwards, whatever is left of its VM's process: the kernel
    /// takes tens of milliseconds to remove one that it has killed, in which nothing of it runs.
    /// Whatever comes next waits for that.
    fn settles_at_once(&self) -> bool {
        false
    }

    /// Whether it goes on with what was saved, rather than begin another boot.
    fn resumes(&self) -> bool {
        false
    }

    /// Whether it leads to less on the disk, so that it is recorded also when that is full.
    fn frees_disk(&self) -> bool {
        false
    }

    /// It has begun: the event that tells of it, if any does.
    fn begun(&self, _draft: &mut Transaction, _source: Source) {}

    /// All its steps are done: the state that it leads to, and the event that tells of it. Nothing
    /// is under way any more.
    fn done(&self, draft: &mut Transaction, outcome: &Outcome);

    /// It has failed for good, or its time is over.
    fn failed(&self, failing: &Failing<'_>) -> Failed {
        failing.abandon(self.name(), MachineState::Failed)
    }

    /// Its VM is gone, or was never launched although it may have been: found by a new server.
    fn lost_vm(&self, _draft: &mut Transaction, _lost: &LostVm) {}

    /// A new server has found it under way.
    fn found(&self, _draft: &mut Transaction, _found: &FoundVm) {}
}

/// What is known when the steps of an operation are done.
pub struct Outcome {
    /// How the machine's VM was started, if one runs.
    pub start_kind: Option<String>,
    /// What the event of a start or suspend tells: where its time went, and how it was started.
    pub told: Value,
    /// The machine is configured to be destroyed when it stops.
    pub auto_destroy: bool,
}

/// What is known when an operation has failed.
pub struct Failing<'a> {
    /// The machine.
    pub row: &'a MachineRow,
    /// Why, for the user.
    pub reason: &'a str,
    /// It has a VM.
    pub has_vm: bool,
    /// It has a VM that was not paused.
    pub vm_runs: bool,
    /// It is saved as a whole.
    pub is_saved: bool,
}

impl Failing<'_> {
    fn step(&self) -> Option<Step> {
        self.row.operation.as_ref().and_then(Operation::current)
    }

    /// Clears up, and ends in this state. `of` is the operation's name.
    fn abandon(&self, of: &str, into: MachineState) -> Failed {
        let (of, reason) = (of.to_owned(), self.reason.to_owned());
        Failed::Instead(OperationKind::Abandon(Abandon { into, of, reason }))
    }

    /// What clears up has failed itself: there is nothing more to try. The next start begins with
    /// it again.
    fn hopeless(&self, of: &str) -> Failed {
        Failed::AtOnce { of: of.to_owned(), reason: self.reason.to_owned() }
    }
}

/// What follows an operation that has failed.
pub enum Failed {
    /// Another operation.
    Instead(OperationKind),
    /// The machine goes back to the version before.
    Revert(Box<Replaced>),
    /// The machine runs on, though its guest does not say so.
    StaysUnheard(String),
    /// The machine has failed, without more being done.
    AtOnce {
        /// Name of the operation.
        of: String,
        /// Why, for the user.
        reason: String,
    },
}

/// A VM that a new server has not found.
pub struct LostVm {
    /// What that means for its program.
    pub end: ProgramEnd,
    /// The host was rebooted.
    pub rebooted: bool,
}

/// What a new server has found of a machine.
pub struct FoundVm {
    /// How its VM was started, if it has one.
    pub vm: Option<StartKind>,
    /// The host was rebooted.
    pub rebooted: bool,
}
