//! Does the steps of the operation under way, and follows how they end.

use std::time::Duration;

use caddis_image::Progress;
use futures::future::BoxFuture;
use tokio::sync::watch;

use super::{Owner, RunningStep, StepFuture, Transaction};
use crate::{
    interference,
    live::RunningVm,
    operations::{MAX_ATTEMPTS, Operation},
    steps::{self, Done, Failure, Step},
    store::Durability,
    timing::Timing,
};

/// Wait before the second try of a step; doubled before the third.
const RETRY_DELAY: Duration = Duration::from_millis(250);

impl Owner {
    /// Whether its VM may be launched now, or is there already.
    pub(super) fn may_launch(&mut self) -> bool {
        if self.live.is_none()
            && !self.turns.may_launch()
            && let Ok(turn) = self.shared.queues.launches.clone().try_acquire_owned()
        {
            self.turns.keep_for_launch(turn);
        }
        self.live.is_some() || self.turns.may_launch()
    }

    /// Not a step of its own: it leaves nothing behind, and is not waited for again where the VM is
    /// there already.
    pub(super) fn wait_to_launch(&mut self) {
        self.run_step(Step::Queue, |context| Box::pin(steps::turn_to_launch(context)));
        self.progress.step = Step::Queue.as_str().to_owned();
        self.row.revision += 1;
        self.publish();
    }

    pub(super) fn waits_to_launch(&self) -> bool {
        let waits = self.step.as_ref().is_some_and(|running| running.step == Step::Queue);
        waits && self.row.operation.as_ref().and_then(Operation::current) == Some(Step::Launch)
    }

    pub(super) fn begin_step(&mut self, step: Step) {
        self.run_step(step, |context| interference::run(step, context));
    }

    fn run_step(&mut self, step: Step, run: impl FnOnce(steps::Context) -> StepFuture) {
        let (sender, progress) = watch::channel(Progress::default());
        let context = steps::Context {
            shared: self.shared.clone(),
            row: self.row.clone(),
            config: self.config.clone(),
            live: self.live.as_ref().map(steps::RunningVmHandle::from),
            progress: sender,
        };
        self.progress = Progress::default();
        self.step = Some(RunningStep {
            step,
            future: run(context),
            progress,
            superseded: false,
            begun: self.shared.clock.now(),
        });
    }

    pub(super) async fn step_finished(&mut self, result: Result<Done, Failure>) {
        let Some(running) = self.step.take() else { return };
        self.progress = Progress::default();
        let elapsed = self.shared.clock.now() - running.begun;
        self.timing.step(running.step, elapsed);
        let result = match result {
            Ok(Done::Launched(live)) => {
                self.timing.launched(&live);
                // A boot that was not foreseen.
                self.row.boot = live.boot;
                (self.paused, self.pauses, self.calm_at) = (None, 0, None);
                self.shared.runs(&self.row.id, Some(live.vm.clone()));
                self.live = Some(live);
                Ok(Done::Next)
            }
            Ok(Done::Released) => {
                self.live = None;
                self.shared.runs(&self.row.id, None);
                Ok(Done::Released)
            }
            Ok(Done::Killed) => {
                self.shared.runs(&self.row.id, None);
                self.reaping = self.live.take().map(|live| self.reap(live));
                Ok(Done::Killed)
            }
            other => other,
        };
        if running.superseded {
            return;
        }
        match result {
            Ok(Done::MayLaunch(turn)) => {
                self.turns.keep_for_launch(turn);
                if let Some(operation) = &mut self.row.operation {
                    operation.deadline += elapsed;
                }
                self.row.revision += 1;
                self.publish();
            }
            Ok(done) => self.advance(done).await,
            Err(failure) => self.step_failed(running.step, failure).await,
        }
    }

    async fn advance(&mut self, done: Done) {
        let mut durability = Durability::Process;
        let mut ended = None;
        let (mut over, mut released) = (false, false);
        let mut saved = None;
        match done {
            Done::Ended(end) => {
                durability = Durability::Synced;
                ended = Some(end);
            }
            Done::Released => (over, released) = (true, true),
            Done::Killed => over = true,
            Done::Saved(volumes) => saved = Some(volumes),
            Done::Turn(permit) => self.turns.keep(permit),
            Done::Next | Done::Launched(_) | Done::MayLaunch(_) => {}
        }
        let note = |draft: &mut Transaction| {
            if let Some(end) = &ended {
                draft.program_ended(end.clone());
            }
            if over {
                draft.row.ended = None;
            }
            if let Some(volumes) = &saved {
                draft.row.saved_volumes.clone_from(volumes);
            }
            if released {
                draft.row.has_vm = false;
            }
            draft.next_step();
        };
        if self.row.operation.as_ref().is_some_and(Operation::is_at_last_step) {
            self.finish(note).await;
        } else {
            self.change(durability, note).await;
        }
    }

    fn reap(&self, live: RunningVm) -> BoxFuture<'static, ()> {
        let (shared, row, vm) = (self.shared.clone(), self.row.clone(), live.vm.clone());
        // A task of its own: it has to be done also when this one panics meanwhile.
        let reaping = tokio::spawn(async move {
            if let Err(error) = steps::gone(&shared, vm.as_ref(), &row).await {
                tracing::warn!(machine = %row.id, %error, "can't remove the network of a VM that \
                    has ended");
            }
        });
        Box::pin(async move {
            // It fails only when the runtime is ending.
            let _ = reaping.await;
        })
    }

    pub(super) async fn reaped(&mut self) {
        self.reaping = None;
        // Where something is under way, that records it.
        if self.row.operation.is_none() {
            self.change(Durability::Process, |draft| draft.row.has_vm = false).await;
        }
    }

    async fn step_failed(&mut self, step: Step, failure: Failure) {
        let Some(operation) = &self.row.operation else { return };
        tracing::warn!(
            machine = %self.row.id, operation = operation.kind.rules().name(), step = step.as_str(),
            attempt = operation.attempt, error = %failure.message, "step failed"
        );
        self.timing = Timing::default();
        self.turns.end_launch();
        if failure.retry && operation.attempt < MAX_ATTEMPTS {
            let delay = RETRY_DELAY * 2_u32.pow(operation.attempt - 1);
            self.retry_at = Some(self.shared.clock.now() + delay);
            // A machine that was resumed is not to be lost because it answers late.
            let resumed = operation.kind.rules().resumes()
                && matches!(step, Step::Boot | Step::Configure)
                && self.live.as_ref().is_some_and(|live| live.guest.borrow().gone.is_none());
            self.change(Durability::Process, |draft| {
                if let Some(operation) = &mut draft.row.operation {
                    operation.step = if resumed { operation.step } else { operation.retry_from() };
                    operation.attempt += 1;
                    operation.last_error = Some(failure.message.clone());
                    operation.retry_at = Some(draft.now + delay);
                }
            })
            .await;
        } else {
            self.give_up(failure.message).await;
        }
    }

    pub(super) async fn deadline_passed(&mut self) {
        let Some(operation) = &self.row.operation else { return };
        let step = match operation.current() {
            Some(Step::Boot) => "boot: the guest's init has not answered".to_owned(),
            Some(Step::Configure) => {
                "configure: the guest's init has not reported that the program runs".to_owned()
            }
            step => step.map_or("", Step::as_str).to_owned(),
        };
        let reason = match &operation.last_error {
            Some(error) => {
                format!("{} timed out at step {step}: {error}", operation.kind.rules().name())
            }
            None => {
                format!("{} timed out at step {step}", operation.kind.rules().name())
            }
        };
        tracing::error!(machine = %self.row.id, reason, "deadline passed");
        self.break_off_step();
        self.give_up(reason).await;
    }

    /// Ends the step under way, or, where it may not be dropped, lets it end without consequence.
    pub(super) fn break_off_step(&mut self) {
        self.retry_at = None;
        match &mut self.step {
            Some(running) if running.step.may_be_dropped() => self.step = None,
            Some(running) => running.superseded = true,
            None => {}
        }
    }
}
