//! Requests: asks the policy, records, answers.

use caddis_api::{ApiDuration, ApiError, LeaseNonce, MachineState, Signal, requests::StartReply};
use caddis_bus::message::{Action, WorkerReply, WorkerResult};
use caddis_guest_protocol::host::{Session, SessionInUse};
use serde_json::Value;
use tokio::sync::oneshot;

use super::{Message, Owner, Transaction};
use crate::{
    event::Source,
    operations::{CancelSuspend, Exit, Operation, OperationKind, Start, Stop, StopPlan, Update},
    policy::{self, Goal, Next, Request, Situation, Verdict},
    restart,
    row::{EndCause, ProgramEnd},
    spec,
    steps::Step,
    store::Durability,
};

/// Who asks for a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By<'a> {
    /// A client of the API.
    Client,
    /// Traffic.
    Traffic,
    /// It is idle, for this reason.
    Idleness(&'a str),
}

impl By<'_> {
    fn source(self) -> Source {
        if self == Self::Client { Source::User } else { Source::Proxy }
    }
}

impl Owner {
    pub(super) async fn handle(&mut self, message: Message) {
        match message {
            Message::Act { nonce, action, request, reply } => {
                self.request = request;
                let result = self.act(nonce, action).await;
                self.request = None;
                // A client that hung up cancels nothing.
                let _ = reply.send(result);
            }
            Message::Update { nonce, revision, request, reply } => {
                self.request = request;
                let result = self.update(nonce.as_ref(), *revision).await;
                self.request = None;
                let _ = reply.send(result);
            }
            Message::Session { nonce, reply } => {
                let _ = reply.send(self.session(nonce));
            }
            Message::QuietSession { reply } => {
                let _ = reply.send(self.quiet_session());
            }
            Message::Wake { request, reply } => {
                self.request = request;
                let wake = self.wake().await;
                self.request = None;
                let _ = reply.send(wake);
            }
            Message::Sleep { mode, reason, request, reply } => {
                self.request = request;
                let result = self.sleep(mode, &reason).await;
                self.request = None;
                let _ = reply.send(result);
            }
            Message::MaySleep { mode, reply } => {
                let _ = reply.send(self.may_sleep(mode));
            }
            Message::Note { kind, details } => {
                if self.row.state == MachineState::Started {
                    let note = |draft: &mut Transaction| {
                        draft.event(Source::Worker, kind, MachineState::Started, details)
                    };
                    // The log and the server's health tell of it, too.
                    let _ = self.try_change(Durability::Process, note).await;
                }
            }
            Message::Supersede { epoch, reply } => {
                let result = self.supersede(epoch).await;
                let _ = reply.send(result);
            }
            // It has been followed before.
            Message::ClockSet => {}
            Message::Drain { done } => self.drain(done).await,
        }
    }

    async fn act(&mut self, nonce: Option<LeaseNonce>, action: Action) -> WorkerResult {
        match &action {
            Action::Signal { .. }
            | Action::SetMetadata { .. }
            | Action::AcquireLease { .. }
            | Action::GetLease
            | Action::ReleaseLease
            | Action::Hold { .. }
            | Action::ReleaseHold => {}
            _ => self.check_lease(nonce.as_ref())?,
        }
        match action {
            Action::Start => {
                let previous_state = self.row.state;
                self.request(Request::Start, None).await?;
                let reply = StartReply { previous_state, migrated: false, new_host: String::new() };
                return Ok(WorkerReply::Started { reply, record: self.status() });
            }
            Action::Stop { signal, timeout } => {
                self.request(Request::Stop, Some(self.plan(signal, timeout))).await?;
            }
            Action::Restart { signal, timeout, force } => {
                let plan = if force {
                    StopPlan { signal: Signal::KILL, timeout_ms: 0, is_default: false }
                } else {
                    self.plan(signal, timeout)
                };
                self.request(Request::Restart, Some(plan)).await?;
            }
            Action::Suspend => {
                spec::check_suspendable(&self.config)?;
                self.check_not_paused()?;
                if !self.shared.vmm.capabilities().snapshot {
                    return Err(ApiError::precondition(
                        "unable to suspend machine: this host's VMM can't save VMs",
                    ));
                }
                if self.live.as_ref().is_some_and(|live| !live.vm.can_save()) {
                    let text = "unable to suspend machine: it was started by an older server; \
                                restart it first";
                    return Err(ApiError::precondition(text));
                }
                if let Some(volume) = self.restoring() {
                    let text = format!(
                        "unable to suspend machine: volume {volume} is being restored; try again \
                         when it is created"
                    );
                    return Err(ApiError::precondition(text));
                }
                self.check_answers()?;
                self.request(Request::Suspend, None).await?;
            }
            Action::Signal { signal } => {
                let plan = StopPlan { signal, timeout_ms: 0, is_default: false };
                self.request(Request::Signal, Some(plan)).await?;
            }
            Action::SetMetadata { changes, expected } => {
                self.set_metadata(changes, expected).await?
            }
            Action::Destroy { force } => self.request(Request::Destroy { force }, None).await?,
            Action::Cordon { cordoned } => {
                if self.row.cordoned != cordoned {
                    let kind = if cordoned { "cordon" } else { "uncordon" };
                    self.try_change(Durability::Synced, |draft| {
                        draft.row.cordoned = cordoned;
                        draft.event(Source::User, kind, draft.row.state, Value::Null);
                    })
                    .await?;
                }
            }
            Action::AcquireLease { ttl_seconds, owner, description } => {
                return self.acquire_lease(nonce, ttl_seconds, owner, description).await;
            }
            Action::GetLease => return self.current_lease(),
            Action::ReleaseLease => self.release_lease(nonce.as_ref()).await?,
            Action::Hold { ttl_seconds, reason } => {
                self.hold(ttl_seconds, reason, Durability::Synced).await?;
            }
            Action::ReleaseHold => self.release_hold(Durability::Synced).await?,
        }
        Ok(WorkerReply::Done { record: self.status() })
    }

    pub(super) fn plan(&self, signal: Option<Signal>, timeout: Option<ApiDuration>) -> StopPlan {
        spec::stop_plan(
            &self.row.image.config,
            &self.config,
            signal,
            timeout.map(|timeout| timeout.0),
        )
    }

    pub(super) async fn request(
        &mut self,
        request: Request,
        plan: Option<StopPlan>,
    ) -> Result<(), ApiError> {
        let plan = plan.unwrap_or_else(|| self.plan(None, None));
        self.carry_out(self.verdict(request), plan, By::Client).await
    }

    /// Does what the policy says. `plan` says how to end the program that runs.
    pub(super) async fn carry_out(
        &mut self,
        verdict: Verdict,
        plan: StopPlan,
        by: By<'_>,
    ) -> Result<(), ApiError> {
        match verdict {
            Verdict::Begin(goal) => self.begin(goal, plan, false, by).await,
            Verdict::Supersede(goal) => self.begin(goal, plan, true, by).await,
            Verdict::Queue(goal) => {
                let kind = OperationKind::of(goal, plan, by.source());
                self.try_change(Durability::Synced, |draft| draft.row.next = Some(kind)).await
            }
            Verdict::CancelSuspend => self.cancel_suspend(by).await,
            Verdict::Wait => Ok(()),
            // Told by who asked.
            Verdict::StayAwake(why) => {
                Err(ApiError::internal(format!("a machine is kept awake: {why:?}")))
            }
            Verdict::Unqueue => self.unqueue().await,
            Verdict::Done => self.unqueue().await,
            Verdict::SkipBackOff => {
                self.unqueue().await?;
                self.skip_backoff().await
            }
            Verdict::Deliver => self.deliver(plan.signal).await,
            Verdict::ShortenStop => self.shorten_stop(plan).await,
            Verdict::Refuse(error) => Err(error),
        }
    }

    /// What the policy says of a request.
    pub(super) fn verdict(&self, request: Request) -> Verdict {
        policy::decide(&self.situation(), request)
    }

    fn situation(&self) -> Situation {
        let operation = self.row.operation.as_ref();
        let step = operation.and_then(Operation::current);
        let is_saving = matches!(step, Some(Step::Queue | Step::Freeze | Step::Save));
        Situation {
            state: self.row.state,
            next: match &self.row.next {
                Some(OperationKind::Destroy) => Next::Destroy,
                Some(OperationKind::Start(_)) => Next::Start,
                _ => Next::Other,
            },
            updates_at_rest: operation.is_some_and(|operation| {
                matches!(operation.kind, OperationKind::Update(Update { run: false, .. }))
            }),
            is_saved: !(is_saving && self.live.is_some()),
            backs_off: self.step.as_ref().is_some_and(|running| running.step == Step::BackOff),
            host_drains: self.shared.check_not_draining().is_err(),
            superseded_by: self.row.superseded_by,
            still_runs: self.still_runs(),
            restarts: operation.is_some_and(
                |operation| matches!(&operation.kind, OperationKind::Exit(exit) if exit.restarts()),
            ),
            is_auto_destroyed: self.config.auto_destroy == Some(true),
            is_scheduled: self.config.schedule.as_ref().is_some_and(|text| !text.is_empty()),
            kept_awake: self.kept_awake(),
            can_suspend: self.can_suspend(),
        }
    }

    /// Whether a start is what follows, and no suspend after it.
    pub(super) fn starts_next(&self) -> bool {
        let next = self.row.next.as_ref();
        next.is_some_and(|next| {
            matches!(next, OperationKind::Start(Start { suspend_after: false, .. }))
        })
    }

    /// It has failed without an end of its program: it is quarantined.
    fn still_runs(&self) -> bool {
        self.row.is_quarantined
            && self.live.as_ref().is_some_and(|live| {
                let guest = live.guest.borrow();
                guest.ended.is_none() && guest.gone.is_none()
            })
    }

    /// Forgets what was to follow, but for a destroy, which nothing undoes.
    async fn unqueue(&mut self) -> Result<(), ApiError> {
        if matches!(self.row.next, None | Some(OperationKind::Destroy)) {
            return Ok(());
        }
        self.try_change(Durability::Synced, |draft| draft.row.next = None).await
    }

    async fn begin(
        &mut self,
        goal: Goal,
        plan: StopPlan,
        supersede: bool,
        by: By<'_>,
    ) -> Result<(), ApiError> {
        let kind = OperationKind::of(goal, plan, by.source());
        let killed = goal == Goal::Destroy && self.runs_program();
        self.try_change(Durability::Synced, |draft| {
            draft.row.next = None;
            draft.row.drained = false;
            if goal == Goal::Start && by == By::Client {
                // A user's start gives the restart policy a clean slate.
                draft.row.restarts.clear();
            }
            draft.begin(kind, by.source());
            if let By::Idleness(reason) = by {
                draft.explain(reason);
            }
            if killed {
                draft.program_ended(ProgramEnd::unreported(
                    EndCause::Killed,
                    Some("destroyed by force".to_owned()),
                ));
            }
        })
        .await?;
        if supersede {
            self.break_off_step();
            self.turns.end();
        }
        Ok(())
    }

    /// Has a machine go on that is being suspended.
    async fn cancel_suspend(&mut self, by: By<'_>) -> Result<(), ApiError> {
        let by_traffic = by == By::Traffic;
        let cancel = OperationKind::CancelSuspend(CancelSuspend { failure: None, by_traffic });
        self.try_change(Durability::Synced, |draft| draft.begin(cancel, by.source())).await?;
        self.break_off_step();
        self.turns.end();
        Ok(())
    }

    fn runs_program(&self) -> bool {
        self.row.ended.is_none()
            && self.live.as_ref().is_some_and(|live| {
                let guest = live.guest.borrow();
                guest.started && guest.ended.is_none() && guest.gone.is_none()
            })
    }

    /// A start that waits for its back-off begins now.
    async fn skip_backoff(&mut self) -> Result<(), ApiError> {
        self.try_change(Durability::Synced, |draft| {
            draft.becomes(OperationKind::START);
        })
        .await?;
        self.break_off_step();
        Ok(())
    }

    async fn deliver(&mut self, signal: Signal) -> Result<(), ApiError> {
        self.check_answers()?;
        let live =
            self.live.as_ref().ok_or_else(|| ApiError::precondition("machine not running"))?;
        self.check_not_paused()?;
        tokio::select! {
            sent = live.session.signal(signal.number()) => {
                sent.map_err(|e| ApiError::precondition(format!("can't deliver the signal: {e}")))
            }
            // Nobody is there to hear it.
            _ = live.vm.wait() => Err(ApiError::precondition("machine not running")),
        }
    }

    /// A second stop: passes its signal on, and shortens the wait.
    async fn shorten_stop(&mut self, plan: StopPlan) -> Result<(), ApiError> {
        let under_way = self.row.operation.as_ref().map(|operation| operation.kind.clone());
        self.unqueue().await?;
        match under_way {
            Some(OperationKind::Stop(Stop(current))) => {
                if plan.signal != current.signal && self.live.is_some() {
                    // The stop goes on whether or not this signal arrives.
                    let _ = self.deliver(plan.signal).await;
                }
                if plan.timeout_ms < current.timeout_ms {
                    self.try_change(Durability::Synced, |draft| {
                        let timeout_ms = plan.timeout_ms;
                        let shorter = StopPlan { timeout_ms, ..current };
                        draft.becomes(OperationKind::Stop(Stop(shorter)));
                    })
                    .await?;
                    if self.step.as_ref().is_some_and(|running| running.step.may_be_dropped()) {
                        self.break_off_step();
                    }
                }
                Ok(())
            }
            // The program has ended by itself: a requested stop is never undone by the restart
            // policy.
            Some(OperationKind::Exit(exit)) if exit.restarts() => {
                let stays = OperationKind::Exit(Exit { then: restart::Verdict::Stop });
                self.try_change(Durability::Synced, |draft| draft.becomes(stays)).await
            }
            _ => Ok(()),
        }
    }

    fn session(&self, nonce: Option<Option<LeaseNonce>>) -> Result<SessionInUse, ApiError> {
        if let Some(nonce) = nonce {
            self.check_lease(nonce.as_ref())?;
        }
        self.check_not_paused()?;
        self.check_answers()?;
        match (&self.live, self.row.state) {
            (Some(live), MachineState::Started) => Ok(live.session.in_use()),
            _ => Err(ApiError::precondition("machine not running")),
        }
    }

    fn quiet_session(&self) -> Option<Session> {
        let answers = self.check_not_paused().is_ok() && self.check_answers().is_ok();
        let runs = self.row.state == MachineState::Started && answers;
        self.live.as_ref().filter(|_| runs).map(|live| live.session.clone())
    }

    async fn drain(&mut self, done: oneshot::Sender<bool>) {
        let operation = self.row.operation.as_ref();
        let runs = self.row.state == MachineState::Started
            || self.still_runs()
            || operation.is_some_and(|operation| operation.kind.rules().runs_afterwards());
        if runs {
            self.stop_for_drain().await;
            self.break_off_step();
        }
        // Also while its process is not gone yet, or a suspend may fail.
        if runs || self.row.has_vm {
            self.drained.push(done);
        } else {
            let _ = done.send(false);
        }
    }

    pub(super) async fn stop_for_drain(&mut self) {
        let plan = self.plan(None, None);
        self.change(Durability::Synced, |draft| {
            // One that is quarantined is not started by itself.
            draft.row.drained = !draft.row.is_quarantined;
            draft.row.next = None;
            draft.begin(OperationKind::Stop(Stop(plan.clone())), Source::Worker);
        })
        .await;
    }
}
