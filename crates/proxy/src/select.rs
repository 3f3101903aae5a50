//! Finds a place at a machine: at once where one is free, else by waiting for a place, a start or
//! a change of the routes.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
};

use tokio::time::Instant;

use crate::{
    ErrorCode,
    admission::Permit,
    app::{self, App, Candidate, Endpoint},
    choice::{self, Load},
    core::Core,
    error::Failure,
    machine::Machine,
    startup::Startup,
    wake::{self, Way},
};

/// Attempts for one request, as in the reference.
const MAX_ATTEMPTS: u32 = 90;
/// Takes that may fail because others were quicker, before the machines count as full.
const MAX_RACES: u32 = 16;

/// Which machines the client asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Preference {
    /// This machine, if it can take the request.
    pub machine: Option<String>,
    /// No other one.
    pub is_machine_forced: bool,
    /// Machines of these regions, in this order.
    pub regions: Vec<String>,
    /// No other ones.
    pub are_regions_forced: bool,
}

/// A place at a machine.
#[derive(Debug)]
pub(crate) struct Taken {
    pub permit: Permit,
    pub candidate: Candidate,
}

enum Pick {
    Taken(Taken),
    /// All that could take it are at their hard limit.
    Full,
    Nobody,
}

/// A search for a place, over several attempts of one request.
pub(crate) struct Search<'a> {
    pub core: &'a Arc<Core>,
    pub app: &'a Arc<App>,
    pub port: u16,
    pub preference: &'a Preference,
    /// Machines that failed for this request.
    tried: Vec<Arc<Machine>>,
    deadline: Instant,
    attempts: u32,
    last: Option<Failure>,
}

impl<'a> Search<'a> {
    pub(crate) fn new(
        core: &'a Arc<Core>,
        app: &'a Arc<App>,
        port: u16,
        preference: &'a Preference,
    ) -> Self {
        let deadline = Instant::now() + core.config.hold_timeout;
        Self { core, app, port, preference, tried: Vec::new(), deadline, attempts: 0, last: None }
    }

    /// An attempt came to nothing. Whether there may be another one, also at the same machine.
    pub(crate) fn again(&mut self, failure: Failure) -> Result<(), Failure> {
        self.last = Some(failure);
        self.count()
    }

    /// Counts an attempt. The error is that there were too many, or that they took too long.
    fn count(&mut self) -> Result<(), Failure> {
        self.attempts += 1;
        if self.attempts <= MAX_ATTEMPTS && Instant::now() < self.deadline {
            return Ok(());
        }
        let text = "no machine could take the request";
        let last = self.last.take().unwrap_or_else(|| Failure::new(ErrorCode::PR03, text));
        Err(Failure { code: ErrorCode::PR03, ..last })
    }

    /// A machine failed: another one is to be found.
    pub(crate) fn exclude(&mut self, candidate: &Candidate, failure: Failure) {
        self.tried.push(candidate.machine.clone());
        self.last = Some(failure);
    }

    /// Whether a candidate is still one for this request.
    pub(crate) fn fits(&self, candidate: &Candidate) -> bool {
        let preference = self.preference;
        let is_asked_for =
            preference.machine.as_ref().is_none_or(|id| candidate.machine.id.as_str() == id);
        if preference.is_machine_forced && !is_asked_for {
            return false;
        }
        if preference.are_regions_forced && !preference.regions.contains(&candidate.route.region) {
            return false;
        }
        !self.tried.iter().any(|machine| machine.id == candidate.machine.id)
    }

    /// Whether there may be candidates that do not fit.
    fn is_selective(&self) -> bool {
        let preference = self.preference;
        preference.is_machine_forced || preference.are_regions_forced || !self.tried.is_empty()
    }

    /// How far away a candidate is.
    pub(crate) fn tier(&self, candidate: &Candidate) -> u8 {
        let preference = self.preference;
        if !preference.is_machine_forced
            && preference.machine.as_deref() == Some(candidate.machine.id.as_str())
        {
            return 0;
        }
        let region = &candidate.route.region;
        let regions = &preference.regions;
        let listed = regions.iter().position(|asked| asked == region);
        let place = listed.unwrap_or(regions.len() + usize::from(*region != self.region()));
        u8::try_from(place + 1).unwrap_or(u8::MAX)
    }

    fn region(&self) -> &str {
        &self.core.config.region
    }

    /// A place that is free now.
    pub(crate) fn try_take(&self) -> Option<Taken> {
        let endpoint = self.app.endpoint(self.port)?;
        match self.pick(&endpoint) {
            Pick::Taken(taken) => Some(taken),
            Pick::Full | Pick::Nobody => None,
        }
    }

    fn pick(&self, endpoint: &Arc<Endpoint>) -> Pick {
        for _ in 0..MAX_RACES {
            let mut is_any_eligible = false;
            let eligible = endpoint.candidates.iter().filter_map(|candidate| {
                if !candidate.is_eligible() || !self.fits(candidate) {
                    return None;
                }
                is_any_eligible = true;
                let load = candidate.load(self.region());
                Some((candidate, Load { tier: self.tier(candidate), ..load }))
            });
            let Some((candidate, load)) = choice::best(eligible, |n| rand::random_range(0..n))
            else {
                return if is_any_eligible { Pick::Full } else { Pick::Nobody };
            };
            if let Some(permit) = candidate.take() {
                if load.bucket() == Some(1) {
                    wake::start_another(self, endpoint);
                }
                return Pick::Taken(Taken { permit, candidate: candidate.clone() });
            }
        }
        Pick::Full
    }

    /// A place, waited for. Dropping it gives up what it held.
    pub(crate) async fn take(&mut self) -> Result<Taken, Failure> {
        let _waiting = Waiting::enter(self.app, self.core.config.max_waiting)?;
        let mut changes = self.app.version.subscribe();
        let mut queued_until = None;
        loop {
            changes.borrow_and_update();
            let Some(endpoint) = self.app.endpoint(self.port) else {
                return Err(self.nobody(app::why_nobody([].into_iter())));
            };
            // Before looking, so that nothing that is freed meanwhile is missed.
            let mut freed = pin!(endpoint.queue.freed(self.is_selective()));
            freed.as_mut().enable();
            match self.pick(&endpoint) {
                Pick::Taken(taken) => return Ok(taken),
                Pick::Full => {
                    if wake::cancel_drain(self, &endpoint) {
                        continue;
                    }
                    wake::start_another(self, &endpoint);
                    // Not the time that a start took before.
                    let timeout = self.core.config.queue_timeout;
                    let until = *queued_until.get_or_insert_with(|| Instant::now() + timeout);
                    tokio::select! {
                        () = freed => {}
                        _ = changes.changed() => {}
                        () = tokio::time::sleep_until(until.min(self.deadline)) => {
                            return Err(full());
                        }
                    }
                    continue;
                }
                Pick::Nobody => queued_until = None,
            }
            self.count()?;
            match wake::way(self, &endpoint) {
                Way::Retry => {}
                Way::Startup(machine, startup) => {
                    if let Err(failure) = self.wait_for(&machine, startup).await? {
                        self.tried.push(machine);
                        self.last = Some(failure);
                    }
                }
                Way::Nothing(failure) => {
                    self.last = failure.or(self.last.take());
                    let fitting = endpoint.candidates.iter().filter(|one| self.fits(one));
                    let why = app::why_nobody(fitting);
                    return Err(self.nobody(why));
                }
            }
        }
    }

    /// The machine accepted no connection, though it was started a moment ago: it may be late in
    /// opening its port. Ends when it does; the place is given back meanwhile.
    pub(crate) async fn wait_until_ready(
        &mut self,
        candidate: &Candidate,
        failure: Failure,
    ) -> Result<(), Failure> {
        self.again(failure)?;
        let _waiting = Waiting::enter(self.app, self.core.config.max_waiting)?;
        let startup = wake::ready(self.core, self.app, candidate);
        if let Err(failure) = self.wait_for(&candidate.machine, startup).await? {
            self.exclude(candidate, failure);
        }
        Ok(())
    }

    /// The inner result is the startup's.
    async fn wait_for(
        &self,
        machine: &Machine,
        mut startup: Startup,
    ) -> Result<Result<(), Failure>, Failure> {
        let finished = tokio::time::timeout_at(self.deadline, startup.over()).await;
        match finished {
            Ok(result) => Ok(result),
            Err(_) => {
                let text = "the machine was not ready in time";
                Err(Failure::of(&machine.id, ErrorCode::PM03, text))
            }
        }
    }

    fn nobody(&mut self, why: &str) -> Failure {
        self.last.take().unwrap_or_else(|| {
            if let Some(id) =
                self.preference.machine.as_ref().filter(|_| self.preference.is_machine_forced)
            {
                return Failure::new(
                    ErrorCode::PR02,
                    format!("machine {id} does not exist or takes no traffic at this port"),
                );
            }
            Failure::new(ErrorCode::PR01, why)
        })
    }
}

fn full() -> Failure {
    Failure::new(ErrorCode::PR04, "all machines are at their hard limit")
}

/// One that waits, until dropped.
struct Waiting<'a>(&'a App);

impl<'a> Waiting<'a> {
    fn enter(app: &'a App, most: u32) -> Result<Self, Failure> {
        let before = app.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Self(app);
        if before >= most {
            let text = format!("{before} requests and connections wait for a machine already");
            return Err(Failure::new(ErrorCode::PR06, text));
        }
        Ok(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
