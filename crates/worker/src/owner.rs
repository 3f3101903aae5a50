//! The one task that owns a machine: every change goes through it, in order. Requests, guest
//! events, the end of the VM, finished steps and deadlines come in; what is recorded, and then
//! published, goes out.
//!
//! ```text
//!   request ─▶ policy ─▶ operation recorded ─▶ step ─▶ step recorded ─▶ … ─▶ outcome recorded
//!                                               │ fails: tried again from where nothing is left
//!                                               │ of the last try, then given up: `abandon`
//!                                               ▼ clears up; it has failed or is stopped
//! ```
//!
//! What follows from the state alone is found out anew after each event ([`Owner::reconcile`]), so
//! that it makes no difference whether this process or an earlier one brought the state about.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use caddis_api::{ApiError, MachineConfig, MachineState, event::MachineEvent};
use caddis_bus::message::{MachineRecord, SleepMode, WorkerResult};
use caddis_guest_protocol::host::{GuestEvent, Session, SessionInUse};
use caddis_image::Progress;
use caddis_vmm::VmExit;
use futures::future::BoxFuture;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    checks, clock,
    engine::Shared,
    event::Source,
    live::RunningVm,
    operations::{Start, StartReason},
    row::MachineRow,
    schedule,
    steps::{Done, Failure, Step},
    store::Durability,
    timing::Timing,
    turns::Turns,
};

mod act;
mod change;
mod checking;
mod finish;
mod guest;
mod host_status;
mod lease;
mod metadata;
mod paused;
mod record;
mod stepping;
mod supersede;
mod traffic;
mod update;

use paused::Paused;
use traffic::{FromInside, Waker};

pub use change::Transaction;
pub use lease::grant as grant_lease;
pub use record::{RECENT_EVENTS, record};
pub use traffic::Wake;
pub use update::Revision;

/// Id of a request of the bus; none of what the worker asks itself.
pub type RequestId = Option<String>;

/// What the owner of a machine is asked.
pub enum Message {
    /// A request of a client.
    Act {
        /// Its proof of holding the lease.
        nonce: Option<caddis_api::LeaseNonce>,
        /// What to do.
        action: caddis_bus::message::Action,
        /// Id of the request, remembered with what it changes.
        request: RequestId,
        /// Takes the answer.
        reply: oneshot::Sender<WorkerResult>,
    },
    /// A new configuration, with what it runs.
    Update {
        /// Proof of holding the lease.
        nonce: Option<caddis_api::LeaseNonce>,
        /// It.
        revision: Box<Revision>,
        /// Id of the request, remembered with what it changes.
        request: RequestId,
        /// Takes the answer.
        reply: oneshot::Sender<WorkerResult>,
    },
    /// The way to the running guest, for exec and the like. With a proof of holding the lease where
    /// one is needed.
    Session {
        /// `None` when no lease matters.
        nonce: Option<Option<caddis_api::LeaseNonce>>,
        /// Takes the answer.
        reply: oneshot::Sender<Result<SessionInUse, ApiError>>,
    },
    /// The same for what the worker asks by itself: it does not count as in use. Nothing where the
    /// machine does not run or answer.
    QuietSession {
        /// Takes the answer.
        reply: oneshot::Sender<Option<Session>>,
    },
    /// There is traffic for the machine: have it run.
    Wake {
        /// Id of the request, remembered with what it changes.
        request: RequestId,
        /// Takes what becomes of it.
        reply: oneshot::Sender<Wake>,
    },
    /// There is no traffic for it: stop or suspend it.
    Sleep {
        /// How.
        mode: SleepMode,
        /// Why, for people.
        reason: String,
        /// Id of the request, remembered with what it changes.
        request: RequestId,
        /// Takes the answer.
        reply: oneshot::Sender<WorkerResult>,
    },
    /// Whether it may be stopped or suspended now.
    MaySleep {
        /// How.
        mode: SleepMode,
        /// Takes the answer.
        reply: oneshot::Sender<WorkerResult>,
    },
    /// Something that others did to what the machine needs, for its events if it runs.
    Note {
        /// Kind of the event.
        kind: &'static str,
        /// Its details.
        details: serde_json::Value,
    },
    /// The machine was placed on another host since.
    Supersede {
        /// Epoch of that placement.
        epoch: u64,
        /// Takes the answer.
        reply: oneshot::Sender<WorkerResult>,
    },
    /// The host's clock was set.
    ClockSet,
    /// The host is going down: stop, and be ready to run again when it is back.
    Drain {
        /// Told when nothing runs any more.
        done: oneshot::Sender<bool>,
    },
}

/// A configuration as it is kept in memory: the contents of files are read again when they are
/// needed.
pub fn kept(mut config: MachineConfig) -> Arc<MachineConfig> {
    config.files = None;
    Arc::new(config)
}

type StepFuture = BoxFuture<'static, Result<Done, Failure>>;

struct RunningStep {
    step: Step,
    future: StepFuture,
    begun: Instant,
    progress: watch::Receiver<Progress>,
    /// The operation it belonged to was broken off while it could not be.
    superseded: bool,
}

/// Progress is published at most this often.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// A machine with a schedule that is later than this waits for its turn among others.
const LATE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// Patience, at the worker's end, with a VM that was killed.
const REAP_TIMEOUT: Duration = Duration::from_secs(5);

/// The task's state.
pub struct Owner {
    shared: Arc<Shared>,
    row: MachineRow,
    config: Arc<MachineConfig>,
    /// Newest first.
    events: VecDeque<Arc<MachineEvent>>,
    inbox: mpsc::Receiver<Message>,
    live: Option<RunningVm>,
    /// The VM stands still because of its disk.
    paused: Option<Paused>,
    /// How often it was, of late, and since when it is not.
    pauses: u32,
    calm_at: Option<Instant>,
    /// Tries its health checks, while it runs.
    checks: Option<checks::Runner>,
    /// When it was started, or taken over.
    started_at: Instant,
    /// Ends when nothing is left of a VM that was killed.
    reaping: Option<BoxFuture<'static, ()>>,
    step: Option<RunningStep>,
    retry_at: Option<Instant>,
    turns: Turns,
    progress: Progress,
    progress_published: Instant,
    drained: Vec<oneshot::Sender<bool>>,
    /// Who waits for the machine to run.
    wakers: Vec<Waker>,
    /// What programs in the machine have asked for of late.
    from_inside: FromInside,
    /// Where the time of the operation under way went, as far as this process saw it.
    timing: Timing,
    /// By which wall clock times are recorded.
    clock_offset: i64,
    /// The request that is being carried out, until its change is recorded.
    request: RequestId,
}

enum Event {
    Message(Option<Message>),
    Guest(Option<GuestEvent>),
    Gone(VmExit),
    Reaped,
    /// The VM stands still because of its disk, or does not any more.
    Pause,
    /// A VM that is paused may be able to go on.
    LookAtDisk,
    /// A health check has found something else than before.
    Check(checks::Report),
    Step(Result<Done, Failure>),
    Progress,
    Deadline,
    RetryDue,
    /// A machine with a schedule may be due.
    MayBeDue,
    /// What keeps the machine awake may be over.
    HoldMayBeOver,
}

impl Owner {
    /// Owner of the machine that `row` records. `live` is its VM, when one was adopted.
    pub fn new(
        shared: Arc<Shared>,
        row: MachineRow,
        config: Arc<MachineConfig>,
        events: Vec<MachineEvent>,
        inbox: mpsc::Receiver<Message>,
        live: Option<RunningVm>,
    ) -> Self {
        shared.runs(&row.id, live.as_ref().map(|live| live.vm.clone()));
        let started_at = shared.clock.now();
        Self {
            shared,
            row,
            config,
            events: events.into_iter().map(Arc::new).collect(),
            inbox,
            live,
            paused: None,
            pauses: 0,
            calm_at: None,
            checks: None,
            started_at,
            reaping: None,
            step: None,
            retry_at: None,
            turns: Turns::default(),
            progress: Progress::default(),
            progress_published: Instant::now(),
            drained: Vec::new(),
            wakers: Vec::new(),
            from_inside: FromInside::default(),
            timing: Timing::default(),
            clock_offset: clock::offset_ms(),
            request: None,
        }
    }

    /// Works until the machine is destroyed or the worker ends.
    pub async fn run(mut self) {
        loop {
            self.reconcile().await;
            self.follow_checks();
            if self.row.operation.is_none() && self.reaping.is_none() {
                self.tell_drained();
            }
            self.tell_wakers();
            if self.row.state == MachineState::Destroyed {
                self.shared.retire(&self.row.id);
                return;
            }
            let next_event = self.next_event().await;
            self.follow_clock().await;
            match next_event {
                Event::Message(Some(message)) => self.handle(message).await,
                Event::Message(None) => {
                    if let Some(reaping) = self.reaping.take() {
                        // The next worker looks once more.
                        let _ = tokio::time::timeout(REAP_TIMEOUT, reaping).await;
                    }
                    return;
                }
                Event::Guest(Some(GuestEvent::Silent)) => self.guest_fell_silent().await,
                Event::Guest(Some(GuestEvent::Heard)) => self.guest_was_heard().await,
                Event::Guest(Some(event)) => self.guest_event(event).await,
                Event::Guest(None) => self.session_lost(),
                Event::Gone(exit) => self.note(|guest| guest.gone = Some(exit)),
                Event::Reaped => self.reaped().await,
                Event::Pause => self.pause_changed().await,
                Event::LookAtDisk => self.look_at_disk(),
                Event::Check(report) => self.check_reported(report).await,
                Event::Step(result) => self.step_finished(result).await,
                Event::Progress => self.publish_progress(),
                Event::Deadline => self.deadline_passed().await,
                Event::RetryDue => self.retry_at = None,
                Event::MayBeDue => self.start_if_due().await,
                Event::HoldMayBeOver => self.hold_may_be_over().await,
            }
        }
    }

    /// Has recorded times move with the clock, and tells the guest, when the clock was set since
    /// they were looked at last: before anything is decided by them.
    async fn follow_clock(&mut self) {
        let offset = clock::offset_ms();
        let by = offset - self.clock_offset;
        if by.abs() < clock::SET_MS {
            return;
        }
        self.clock_offset = offset;
        let mut moved = self.row.clone();
        moved.clock_was_set(by);
        if moved != self.row {
            self.change(Durability::Process, |draft| draft.row.clock_was_set(by)).await;
        }
        if let Some(live) = &self.live {
            live.session.send_time();
        }
    }

    async fn next_event(&mut self) -> Event {
        // The time it waits for its turn is not its own, and that comes: others have theirs for
        // seconds only.
        let timed = self.row.operation.as_ref().filter(|_| !self.waits_to_launch());
        let clock = self.shared.clock.clone();
        let deadline = timed.map(|operation| clock.now() + operation.left(clock.unix_now()));
        let due = schedule::due(&self.config, &self.row)
            .map(|at| clock.now() + at.since(clock.unix_now()).clamp(SECOND, MINUTE));
        let (retry_at, hold_ends_at) = (self.retry_at, self.hold_ends_at());
        let look_at = self.paused.as_ref().map(|paused| paused.look_at);
        let check = self.checks.as_mut().map(|checks| checks.next());
        let (events, pause, gone) = match &mut self.live {
            Some(live) => {
                let vm = live.vm.clone();
                let known = live.guest.borrow().gone.is_some();
                (
                    Some(&mut live.events),
                    Some(&mut live.pause),
                    Some(async move {
                        if known { std::future::pending().await } else { vm.wait().await }
                    }),
                )
            }
            None => (None, None, None),
        };
        let (step, progress) = match &mut self.step {
            Some(running) => (Some(&mut running.future), Some(&mut running.progress)),
            None => (None, None),
        };
        tokio::select! {
            message = self.inbox.recv() => Event::Message(message),
            event = maybe(events.map(|events| events.recv())) => Event::Guest(event),
            () = maybe(pause.map(changed)) => Event::Pause,
            () = maybe(look_at.map(|at| clock.sleep_until(at))) => Event::LookAtDisk,
            report = maybe(check) => Event::Check(report),
            exit = maybe(gone) => Event::Gone(exit),
            () = maybe(self.reaping.as_mut()) => Event::Reaped,
            result = maybe(step) => Event::Step(result),
            () = maybe(progress.map(changed)) => Event::Progress,
            () = maybe(deadline.map(|at| clock.sleep_until(at))) => Event::Deadline,
            () = maybe(retry_at.map(|at| clock.sleep_until(at))) => Event::RetryDue,
            () = maybe(due.map(|at| clock.sleep_until(at))) => Event::MayBeDue,
            () = maybe(hold_ends_at.map(|at| clock.sleep_until(at))) => Event::HoldMayBeOver,
        }
    }

    /// Does what follows from the state: the next step, the next operation, or clearing up after a
    /// program's end.
    async fn reconcile(&mut self) {
        while self.step.is_none()
            && self.retry_at.is_none()
            && self.row.state != MachineState::Destroyed
        {
            let Some(operation) = &self.row.operation else {
                if self.begin_what_follows().await {
                    continue;
                }
                return;
            };
            match operation.current() {
                Some(step) if step.comes_after_the_last_vm() && self.reaping.is_some() => return,
                Some(Step::Launch) if !self.may_launch() => self.wait_to_launch(),
                Some(step) => self.begin_step(step),
                None => self.finish(|_| {}).await,
            }
        }
    }

    /// The clock may have been set since it was looked at last.
    async fn start_if_due(&mut self) {
        let now = self.shared.clock.unix_now();
        let due = schedule::due(&self.config, &self.row).filter(|at| *at <= now);
        let Some(at) = due.filter(|_| self.shared.check_not_draining().is_ok()) else { return };
        // When no server ran all may be late at once.
        let is_late = at + LATE < now;
        let start =
            Start::because(if is_late { StartReason::Recovery } else { StartReason::Schedule });
        self.change(Durability::Synced, |draft| draft.begin(start.clone(), Source::Worker)).await;
    }

    fn publish_progress(&mut self) {
        if let Some(running) = &mut self.step {
            self.progress = running.progress.borrow_and_update().clone();
        }
        if self.progress_published.elapsed() >= PROGRESS_INTERVAL {
            self.progress_published = Instant::now();
            self.row.revision += 1;
            self.publish();
        }
    }

    fn tell_drained(&mut self) {
        for done in self.drained.drain(..) {
            // Nobody waits any more when the drain's deadline has passed.
            let _ = done.send(true);
        }
    }

    /// The machine as published.
    pub fn record(&self) -> MachineRecord {
        let silent = || self.live.as_ref().and_then(|live| live.guest.borrow().host_reason());
        let host = self.paused().map(paused::reason).or_else(silent);
        record(&self.shared, &self.row, Some(&self.config), &self.events, &self.progress, host)
    }

    /// What is told of the machine to who has asked for a change: its configuration is known by its
    /// revision.
    fn status(&self) -> Box<MachineRecord> {
        Box::new(self.shared.publisher.known(self.record()).status_only())
    }

    /// Publishes the machine as it is.
    pub fn publish(&self) {
        self.shared.publisher.publish(self.record());
    }
}

/// The future, or one that never ends.
async fn maybe<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// The next change of what is watched; never ends once the sender is gone.
async fn changed<T>(watched: &mut watch::Receiver<T>) {
    if watched.changed().await.is_err() {
        std::future::pending().await
    }
}
