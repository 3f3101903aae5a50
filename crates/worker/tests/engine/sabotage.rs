//! Has one step of a worker fail, be repeated, or be the last thing its process does.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard},
};

use async_trait::async_trait;
use caddis_api::MachineId;
use caddis_worker::{FaultInjection, StepHook};
use tokio::sync::watch;

/// What happens to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails once, and is worth another try.
    FailsOnce,
    /// It fails once, and is not.
    FailsForGood,
    /// It fails each time in this operation.
    FailsAlways,
    /// It fails each time in whatever operation.
    FailsEverywhere,
    /// It is done twice.
    Twice,
    /// The process dies before it.
    DiesBefore,
    /// The process dies when it is done, before that is recorded.
    DiesAfter,
    /// The process dies before and after each step, one death after the other.
    DiesEverywhere,
    /// The host is rebooted before it.
    RebootsBefore,
    /// The host is rebooted when it is done, before that is recorded.
    RebootsAfter,
    /// It waits for [`FaultInjector::release`] before it begins.
    Waits,
    /// The task of its machine panics before it.
    PanicsBefore,
    /// The task of its machine panics when it is done, before that is recorded.
    PanicsAfter,
}

impl Fault {
    pub const ALL: [Self; 10] = [
        Self::FailsOnce,
        Self::FailsForGood,
        Self::FailsAlways,
        Self::FailsEverywhere,
        Self::Twice,
        Self::DiesBefore,
        Self::DiesAfter,
        Self::DiesEverywhere,
        Self::RebootsBefore,
        Self::RebootsAfter,
    ];

    /// Whether it is the end of the process.
    pub fn kills(self) -> bool {
        matches!(self, Self::DiesBefore | Self::DiesAfter | Self::DiesEverywhere) || self.reboots()
    }

    /// Whether it is the end of all that runs.
    pub fn reboots(self) -> bool {
        matches!(self, Self::RebootsBefore | Self::RebootsAfter)
    }

    /// Whether it is overcome: the operation ends as if nothing had been.
    pub fn is_overcome(self) -> bool {
        !matches!(self, Self::FailsForGood | Self::FailsAlways | Self::FailsEverywhere)
    }
}

/// An operation and a step, by the names they have in the API.
pub type Place = (String, String);

#[derive(Default)]
struct State {
    plan: Option<(Fault, Place)>,
    /// How often something happened because of the plan.
    struck: usize,
    /// Steps since the last [`FaultInjector::arm`] or [`FaultInjector::disarm`], and whether they
    /// were done.
    seen: Vec<(Place, bool)>,
    /// The process dies the next time that this is reached.
    deadly: Option<String>,
    /// What was reached beside machines.
    reached: Vec<String>,
    /// Deaths so far, where there is to be more than one.
    died: BTreeSet<(Place, bool)>,
}

/// The hook.
#[derive(Default)]
pub struct FaultInjector {
    state: Mutex<State>,
    dead: watch::Sender<bool>,
    waits: watch::Sender<bool>,
}

impl FaultInjector {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// From now on that happens.
    pub fn arm(&self, fault: Fault, place: Place) {
        *self.state() = State { plan: Some((fault, place)), ..State::default() };
        self.dead.send_replace(false);
    }

    /// The process dies the next time that this is reached beside machines.
    pub fn die_at(&self, point: &str) {
        *self.state() = State { deadly: Some(point.to_owned()), ..State::default() };
        self.dead.send_replace(false);
    }

    /// What was reached beside machines since then.
    pub fn reached(&self) -> Vec<String> {
        self.state().reached.clone()
    }

    /// Nothing happens any more.
    pub fn disarm(&self) {
        *self.state() = State::default();
    }

    /// Steps since then, and whether they were done.
    pub fn seen(&self) -> Vec<(Place, bool)> {
        self.state().seen.clone()
    }

    /// Waits until the process is to die.
    pub async fn death(&self) {
        let mut dead = self.dead.subscribe();
        dead.wait_for(|dead| *dead).await.unwrap();
    }

    /// Whether what was to happen has.
    pub fn has_struck(&self) -> bool {
        self.state().struck > 0
    }

    /// Waits until a step waits.
    pub async fn waiting(&self) {
        let mut waits = self.waits.subscribe();
        waits.wait_for(|waits| *waits).await.unwrap();
    }

    /// The step that waits begins.
    pub fn release(&self) {
        self.waits.send_replace(false);
    }

    async fn wait(&self) {
        let mut waits = self.waits.subscribe();
        self.waits.send_replace(true);
        waits.wait_for(|waits| !*waits).await.unwrap();
    }

    fn is_to_wait(&self, place: &Place) -> bool {
        let mut state = self.state();
        state.plan.take_if(|(fault, at)| *fault == Fault::Waits && at == place).is_some()
    }

    /// The next process lives.
    pub fn revive(&self) {
        self.dead.send_replace(false);
    }

    async fn die(&self) -> ! {
        self.dead.send_replace(true);
        std::future::pending().await
    }

    fn is_to_panic(&self, place: &Place, fault: Fault) -> bool {
        let mut state = self.state();
        let strikes = state.plan.take_if(|(plan, at)| *plan == fault && at == place).is_some();
        state.struck += usize::from(strikes);
        strikes
    }

    fn is_to_die(&self, place: &Place, after: bool) -> bool {
        let mut state = self.state();
        match state.plan.clone() {
            Some((Fault::DiesBefore | Fault::RebootsBefore, at)) if !after && at == *place => {
                state.plan = None
            }
            Some((Fault::DiesAfter | Fault::RebootsAfter, at)) if after && at == *place => {
                state.plan = None
            }
            Some((Fault::DiesEverywhere, _)) if state.died.insert((place.clone(), after)) => {}
            _ => return false,
        }
        state.struck += 1;
        true
    }
}

#[async_trait]
impl StepHook for FaultInjector {
    async fn before(&self, _: &MachineId, operation: &str, step: &str) -> FaultInjection {
        let place = (operation.to_owned(), step.to_owned());
        if self.is_to_die(&place, false) {
            self.die().await;
        }
        if self.is_to_wait(&place) {
            self.wait().await;
        }
        assert!(!self.is_to_panic(&place, Fault::PanicsBefore), "told to panic");
        let mut state = self.state();
        let here = match &state.plan {
            Some((Fault::FailsEverywhere, at)) => at.1 == place.1,
            Some((_, at)) => *at == place,
            None => false,
        };
        let fault = state.plan.as_ref().map(|(fault, _)| *fault).filter(|_| here);
        state.seen.push((place, false));
        state.struck += usize::from(fault.is_some());
        match fault {
            Some(Fault::FailsOnce) => {
                state.plan = None;
                FaultInjection::Fail { retry: true }
            }
            Some(Fault::FailsForGood) => {
                state.plan = None;
                FaultInjection::Fail { retry: false }
            }
            Some(Fault::FailsAlways | Fault::FailsEverywhere) => {
                FaultInjection::Fail { retry: true }
            }
            Some(Fault::Twice) => {
                state.plan = None;
                FaultInjection::Twice
            }
            _ => FaultInjection::None,
        }
    }

    async fn after(&self, _: &MachineId, operation: &str, step: &str) {
        let place = (operation.to_owned(), step.to_owned());
        if self.is_to_die(&place, true) {
            self.die().await;
        }
        assert!(!self.is_to_panic(&place, Fault::PanicsAfter), "told to panic");
        self.state().seen.push((place, true));
    }

    async fn reached(&self, point: &str) {
        let dies = {
            let mut state = self.state();
            state.reached.push(point.to_owned());
            let dies = state.deadly.take_if(|deadly| *deadly == point).is_some();
            state.struck += usize::from(dies);
            dies
        };
        if dies {
            self.die().await;
        }
    }
}
