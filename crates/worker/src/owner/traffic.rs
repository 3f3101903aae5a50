//! What traffic does to a machine: it wakes one that sleeps; one that is idle is put to sleep,
//! unless something keeps it awake.

use std::time::Duration;

use caddis_api::{
    ApiError, ErrorCode, MachineState, UnixMillis, VolumeId, hold::MAX_TTL_SECONDS, time,
};
use caddis_bus::message::{SleepMode, WhyAwake, WhyNotWoken, WorkerReply, WorkerResult};
use tokio::{sync::oneshot, time::Instant};

use super::{Owner, act::By, record};
use crate::{
    policy::{Goal, Request, Verdict},
    row::RecordedHold,
    spec,
    store::Durability,
};

/// Two holds that end within this time of each other are the same: a program that renews its hold
/// all the time has nothing recorded all the time.
const SAME_HOLD: Duration = Duration::from_secs(1);

/// What a hold from inside shows as its reason.
const FROM_INSIDE: &str = "requested from inside the machine";

/// Requests from inside a machine that are carried out within a time: each may be recorded and told
/// to the gateways, and a machine is not to keep its host busy with that.
const MOST_FROM_INSIDE: (u32, Duration) = (50, Duration::from_secs(10));

/// Requests from inside since a time.
#[derive(Default)]
pub struct FromInside {
    since: Option<Instant>,
    count: u32,
}

impl FromInside {
    /// Counts one more. False when there were too many.
    fn admit(&mut self, now: Instant) -> bool {
        let (most, within) = MOST_FROM_INSIDE;
        if self.since.is_none_or(|since| now > since + within) {
            *self = Self { since: Some(now), count: 0 };
        }
        self.count += 1;
        self.count <= most
    }
}

/// What becomes of a machine that is to be woken.
pub enum Wake {
    /// It runs, or is not woken.
    Answer(WorkerResult),
    /// It is about to run. The answer comes when it does, or does not.
    Begun(oneshot::Receiver<WorkerResult>),
}

/// Somebody who waits for the machine to run.
pub struct Waker {
    previous_state: MachineState,
    reply: oneshot::Sender<WorkerResult>,
}

impl Owner {
    /// Has the machine run, because there is traffic for it.
    pub(super) async fn wake(&mut self) -> Wake {
        let previous_state = self.row.state;
        let carried_out = match self.verdict(Request::Wake) {
            // The same start, whoever asked for it first.
            Verdict::Queue(Goal::Start) if self.starts_next() => Ok(()),
            verdict => self.carry_out(verdict, self.plan(None, None), By::Traffic).await,
        };
        let error = match carried_out {
            Ok(()) if self.is_settled() => return Wake::Answer(Ok(self.woken(previous_state))),
            Ok(()) => {
                // Who has gone hears nothing.
                self.wakers.retain(|waker| !waker.reply.is_closed());
                let (reply, answer) = oneshot::channel();
                self.wakers.push(Waker { previous_state, reply });
                return Wake::Begun(answer);
            }
            Err(error) => error,
        };
        let why = match error.code {
            ErrorCode::FailedPrecondition => WhyNotWoken::State,
            ErrorCode::DiskFull | ErrorCode::Unavailable => WhyNotWoken::Capacity,
            _ => return Wake::Answer(Err(error)),
        };
        let (message, record) = (error.message, self.status());
        Wake::Answer(Ok(WorkerReply::NotWoken { why, message, record }))
    }

    /// Tells whoever waits for the machine to run, once it is settled.
    pub(super) fn tell_wakers(&mut self) {
        if !self.is_settled() {
            return;
        }
        for Waker { previous_state, reply } in std::mem::take(&mut self.wakers) {
            // Who has gone hears nothing.
            let _ = reply.send(Ok(self.woken(previous_state)));
        }
    }

    fn is_settled(&self) -> bool {
        self.row.operation.is_none() && self.row.next.is_none() && self.row.state.is_settled()
    }

    /// Whether it was woken, now that it is settled.
    fn woken(&self, previous_state: MachineState) -> WorkerReply {
        let (state, record) = (self.row.state, self.status());
        if state == MachineState::Started {
            return WorkerReply::Woken { previous_state, since: self.started_at(), record };
        }
        let failure = self.events.front().and_then(|event| event.error().map(str::to_owned));
        let message = failure
            .unwrap_or_else(|| format!("the machine was ended while it started, it is {state}"));
        WorkerReply::NotWoken { why: WhyNotWoken::Failed, message, record }
    }

    /// Since when it runs. Of a machine that an earlier release has started, since its event.
    fn started_at(&self) -> UnixMillis {
        if self.row.started_at != UnixMillis::EPOCH {
            return self.row.started_at;
        }
        let started = MachineState::Started.as_str();
        let event = self.events.iter().find(|event| event.status == started);
        event.map_or(self.row.created_at, |event| event.timestamp)
    }

    /// Puts the machine to sleep because it is idle, unless something keeps it awake.
    pub(super) async fn sleep(&mut self, mode: SleepMode, reason: &str) -> WorkerResult {
        let suspend = mode == SleepMode::Suspend;
        match self.verdict(Request::Sleep { suspend }) {
            Verdict::StayAwake(why) => Ok(self.stays_awake(why)),
            verdict => {
                let saves = verdict == Verdict::Begin(Goal::Suspend);
                self.carry_out(verdict, self.plan(None, None), By::Idleness(reason)).await?;
                let mode = if saves { SleepMode::Suspend } else { SleepMode::Stop };
                Ok(WorkerReply::Sleeping { mode, record: self.status() })
            }
        }
    }

    /// Whether it could be put to sleep now.
    pub(super) fn may_sleep(&self, mode: SleepMode) -> WorkerResult {
        match self.verdict(Request::Sleep { suspend: mode == SleepMode::Suspend }) {
            Verdict::StayAwake(why) => Ok(self.stays_awake(why)),
            Verdict::Refuse(error) => Err(error),
            _ => Ok(WorkerReply::MaySleep),
        }
    }

    fn stays_awake(&self, why: WhyAwake) -> WorkerReply {
        let now = self.shared.clock.unix_now();
        let at = |until: UnixMillis| time::milliseconds(until.into());
        let (message, until) = match (why, self.row.valid_lease(now), self.row.valid_hold(now)) {
            (WhyAwake::Lease, Some(lease), _) => {
                let until = UnixMillis::from_seconds(lease.expires_at);
                (format!("leased by {} until {}", lease.owner, at(until)), Some(until))
            }
            (WhyAwake::Hold, _, Some(hold)) => {
                let reason = hold.reason.as_ref().map(|reason| format!(": {reason}"));
                let text = format!("held until {}{}", at(hold.until), reason.unwrap_or_default());
                (text, Some(hold.until))
            }
            (WhyAwake::Session, ..) => ("a session or an exec is open in it".to_owned(), None),
            (WhyAwake::HostStatus, ..) => {
                let text = "its host does not know how it is (host_status)";
                (text.to_owned(), None)
            }
            (WhyAwake::AutoDestroy, ..) => {
                ("a stop would destroy it (auto_destroy)".to_owned(), None)
            }
            (WhyAwake::Operation, ..) => {
                let operation = self.row.operation.as_ref();
                let name = operation.map_or("operation", |operation| operation.kind.rules().name());
                (format!("{name} in progress"), None)
            }
            _ => (format!("it is {}", self.row.state), None),
        };
        WorkerReply::NotSleeping { why, message, until, record: self.status() }
    }

    /// What keeps the machine from being put to sleep, beside its state.
    pub(super) fn kept_awake(&self) -> Option<WhyAwake> {
        let now = self.shared.clock.unix_now();
        let live = self.live.as_ref();
        let is_unknown = self.paused().is_some()
            || live.is_some_and(|l| l.guest.borrow().host_reason().is_some());
        let reasons = [
            (self.row.valid_lease(now).is_some(), WhyAwake::Lease),
            (self.row.valid_hold(now).is_some(), WhyAwake::Hold),
            (live.is_some_and(|live| live.session.is_in_use()), WhyAwake::Session),
            (is_unknown, WhyAwake::HostStatus),
        ];
        reasons.into_iter().find_map(|(holds, why)| holds.then_some(why))
    }

    /// Whether the machine can be saved at all, as it is configured and was started.
    pub(super) fn can_suspend(&self) -> bool {
        spec::check_suspendable(&self.config).is_ok()
            && self.shared.vmm.capabilities().snapshot
            && self.live.as_ref().is_some_and(|live| live.vm.can_save())
            && self.restoring().is_none()
    }

    /// A volume of the machine that is still being restored: memory can't be saved, since the VM
    /// that goes on with it would have to read the rest from elsewhere.
    pub(super) fn restoring(&self) -> Option<VolumeId> {
        self.shared.volumes.restoring_of(&self.row.id)
    }

    /// Keeps the machine awake for so long, in place of what kept it awake before.
    ///
    /// # Errors
    /// 400 for a time that is too long, 412 where the machine neither runs nor is about to.
    pub(super) async fn hold(
        &mut self,
        ttl_seconds: u64,
        reason: Option<String>,
        durability: Durability,
    ) -> Result<(), ApiError> {
        if !(1..=MAX_TTL_SECONDS).contains(&ttl_seconds) {
            let text = format!("invalid ttl, must be from 1 to {MAX_TTL_SECONDS} seconds");
            return Err(ApiError::invalid(text));
        }
        use MachineState as S;
        let runs = matches!(
            self.row.state,
            S::Creating
                | S::Pending
                | S::Starting
                | S::Started
                | S::Restarting
                | S::Updating
                | S::Replacing
        );
        if !runs {
            let state = self.row.state;
            return Err(ApiError::precondition(format!("machine not running, it is {state}")));
        }
        let now = self.shared.clock.unix_now();
        let until = now + Duration::from_secs(ttl_seconds);
        let known = self.row.valid_hold(now).filter(|hold| hold.reason == reason);
        let differs = |known: &RecordedHold| {
            until.since(known.until) >= SAME_HOLD || known.until.since(until) >= SAME_HOLD
        };
        if known.is_none_or(differs) {
            let hold = RecordedHold { until, reason };
            self.try_change(durability, |draft| draft.row.hold = Some(hold)).await?;
        }
        Ok(())
    }

    /// Ends the hold, if there is one.
    pub(super) async fn release_hold(&mut self, durability: Durability) -> Result<(), ApiError> {
        if self.row.hold.is_none() {
            return Ok(());
        }
        self.try_change(durability, |draft| draft.row.hold = None).await
    }

    /// A program in the machine asks for a hold of so many seconds, or that there is none. Where
    /// the host goes down, so does the program: it need not survive that.
    pub(super) async fn hold_from_inside(&mut self, id: u32, ttl_seconds: Option<u64>) {
        let outcome = match ttl_seconds {
            _ if !self.from_inside.admit(self.shared.clock.now()) => {
                Err(ApiError::new(ErrorCode::RateLimited, "too many requests, try again later"))
            }
            Some(ttl) => self.hold(ttl, Some(FROM_INSIDE.to_owned()), Durability::Process).await,
            None => self.release_hold(Durability::Process).await,
        };
        let until = self.row.hold.as_ref().map(|hold| record::hold(hold).until);
        if let Some(live) = &self.live {
            let refused = |error: ApiError| (error.code.http_status(), error.message);
            live.session.answer_hold(id, outcome.map(|()| until).map_err(refused));
        }
    }

    /// When the hold ends by itself.
    pub(super) fn hold_ends_at(&self) -> Option<Instant> {
        let clock = &self.shared.clock;
        self.row.hold.as_ref().map(|hold| clock.now() + hold.until.since(clock.unix_now()))
    }

    /// The hold has ended, if it has: the clock may have been set since it was looked at last.
    pub(super) async fn hold_may_be_over(&mut self) {
        if self.row.valid_hold(self.shared.clock.unix_now()).is_none() {
            self.change(Durability::Process, |draft| draft.row.hold = None).await;
        }
    }
}
