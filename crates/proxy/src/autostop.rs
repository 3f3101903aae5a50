//! Puts machines to sleep: by the periodic rule of the reference (runtime-semantics §3.3), without
//! ever cutting a stream that it was not allowed to, and by idle timeouts of services.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    Autostop, MachineState, Sleep,
    app::{App, Candidate, Compiled},
    core::Core,
    machine::Machine,
    routes::ServiceKey,
    wake::LAG,
};

/// How long connections to a machine may take to close before it is put to sleep.
const DISCONNECT: Duration = Duration::from_secs(2);
/// Time until a machine that could not be put to sleep is tried again.
const AFTER_FAILURE: Duration = Duration::from_secs(30);

/// A running machine with a service that the periodic rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Running {
    /// What the service has in progress, and its soft limit.
    pub in_use: u32,
    pub soft: u32,
    /// What all services of the machine have in progress.
    pub open_streams: u32,
    pub quiet_for: Duration,
    pub is_held: bool,
    /// Whether streams may be drained.
    pub may_drain: bool,
}

/// The one to put to sleep, of the machines that run in a region. `keep` of them go on running; one
/// that did something within `interval` is not idle.
pub(crate) fn excess(running: &[Running], keep: u32, interval: Duration) -> Option<usize> {
    if running.len() <= keep as usize {
        return None;
    }
    let over_soft = running.iter().filter(|one| one.in_use >= one.soft).count();
    let is_one_too_many = match running {
        [] => false,
        [only] => only.in_use == 0,
        _ => running.len() > over_soft + 1,
    };
    if !is_one_too_many {
        return None;
    }
    let may_sleep = |one: &Running| {
        let is_idle = one.open_streams == 0 && one.quiet_for >= interval;
        let is_drained = one.may_drain && one.open_streams > 0 && running.len() > 1;
        !one.is_held && (is_idle || is_drained)
    };
    running
        .iter()
        .enumerate()
        .filter(|(_, one)| may_sleep(one))
        .min_by_key(|(_, one)| (one.in_use, one.open_streams, std::cmp::Reverse(one.quiet_for)))
        .map(|(index, _)| index)
}

/// Applies the periodic rule until the proxy ends.
pub(crate) async fn run(core: Arc<Core>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(core.config.autostop_interval) => {}
            () = core.stopping.cancelled() => return,
        }
        for app in core.table.all() {
            if app.has_periodic_rule() {
                pass(&core, &app);
            }
        }
    }
}

/// Running machines that the periodic rule is for, by service and region.
fn groups(compiled: &Compiled) -> BTreeMap<(ServiceKey, &str), Vec<&Candidate>> {
    let mut groups: BTreeMap<(ServiceKey, &str), Vec<&Candidate>> = BTreeMap::new();
    for candidate in &compiled.services {
        let service = candidate.service();
        if service.has_periodic_rule() && runs(candidate) {
            let region = candidate.route.region.as_str();
            let group = groups.entry((service.key(), region)).or_default();
            // A machine counts once, also where two of its services have the port.
            if group.last().is_none_or(|last| last.machine.id != candidate.machine.id) {
                group.push(candidate);
            }
        }
    }
    groups
}

/// The one of a group that traffic does not need.
fn excess_of(core: &Core, compiled: &Compiled, group: &[&Candidate]) -> Option<usize> {
    let running: Vec<Running> = group.iter().map(|one| observe(one)).collect();
    let keep = group.iter().map(|one| keeps(&compiled.primary_region, one)).max();
    excess(&running, keep.unwrap_or(0), core.config.autostop_interval)
}

/// Whether the periodic rule would choose it now.
fn is_excess(core: &Core, app: &App, candidate: &Candidate) -> bool {
    let compiled = app.compiled();
    let groups = groups(&compiled);
    let group = groups.get(&(candidate.service().key(), candidate.route.region.as_str()));
    group.is_some_and(|group| {
        let chosen = excess_of(core, &compiled, group).map(|index| &group[index].machine.id);
        chosen == Some(&candidate.machine.id)
    })
}

fn pass(core: &Arc<Core>, app: &Arc<App>) {
    let compiled = app.compiled();
    for ((_, region), group) in groups(&compiled) {
        match excess_of(core, &compiled, &group) {
            Some(index) => {
                let candidate = group[index].clone();
                let reason = format!(
                    "{} machines run in {region}, which is one more than traffic needs",
                    group.len()
                );
                let (core, app) = (core.clone(), app.clone());
                core.tasks.clone().spawn(async move {
                    put_to_sleep(&core, &app, &candidate, reason).await;
                });
            }
            None => {
                for candidate in group {
                    let why = kept_for(candidate, &observe(candidate));
                    candidate.machine.decided("kept running", why);
                }
            }
        }
    }
}

fn kept_for(candidate: &Candidate, one: &Running) -> String {
    match (&candidate.route.hold, one.open_streams) {
        (Some(hold), _) => hold.clone(),
        _ if one.is_held => "it is leased".to_owned(),
        (None, 0) => "the region has no machine in excess, or it was busy a moment ago".to_owned(),
        (None, open) => format!("it has {open} open streams"),
    }
}

fn runs(candidate: &Candidate) -> bool {
    candidate.state() == MachineState::Started
        && !candidate.route.cordoned
        && candidate.machine.is_open()
}

fn observe(candidate: &Candidate) -> Running {
    let activity = candidate.machine.activity();
    let load = candidate.load("");
    Running {
        in_use: load.in_use,
        soft: load.soft,
        open_streams: activity.open_streams,
        quiet_for: activity.quiet_for,
        is_held: candidate.route.is_held(),
        may_drain: candidate.service().max_drain.is_some(),
    }
}

/// Machines that go on running in this one's region.
fn keeps(primary: &Option<String>, candidate: &Candidate) -> u32 {
    let is_primary = primary.as_ref().is_none_or(|primary| *primary == candidate.route.region);
    if is_primary { candidate.service().min_machines_running } else { 0 }
}

/// The machine's service whose idle timeout ends first.
fn idle_rule(app: &App, machine: &Machine) -> Option<Candidate> {
    let compiled = app.compiled();
    let of_machine = compiled.of_machine(&machine.id);
    of_machine
        .iter()
        .filter(|candidate| candidate.service().idle_rule().is_some())
        .min_by_key(|candidate| candidate.service().idle_rule())
        .cloned()
}

/// Has the machines with an idle timeout looked after. Called after each change of the routes.
pub(crate) fn watch_idle(core: &Arc<Core>, app: &Arc<App>) {
    for candidate in &app.compiled().services {
        let has_rule = candidate.service().idle_rule().is_some();
        if has_rule && !candidate.machine.is_watched.swap(true, Ordering::AcqRel) {
            let (core, app) = (core.clone(), app.clone());
            let machine = candidate.machine.clone();
            core.tasks.clone().spawn(async move {
                tokio::select! {
                    () = watch_machine(&core, &app, &machine) => {}
                    () = machine.gone.cancelled() => {}
                    () = core.stopping.cancelled() => {}
                }
            });
        }
    }
}

/// Event-driven: wakes at the deadline, at a change of this machine's route, and when its last
/// stream ends.
async fn watch_machine(core: &Arc<Core>, app: &Arc<App>, machine: &Arc<Machine>) {
    loop {
        let candidate = idle_rule(app, machine);
        let Some(candidate) = candidate.filter(runs) else {
            machine.rerouted.notified().await;
            continue;
        };
        if let Some(hold) = &candidate.route.hold {
            machine.decided("kept running", hold.as_str());
            machine.rerouted.notified().await;
            continue;
        }
        let timeout = candidate.service().idle_timeout.unwrap_or(Duration::MAX);
        if machine.open_streams() > 0 {
            tokio::select! {
                () = machine.quiet() => {}
                () = machine.rerouted.notified() => {}
            }
            continue;
        }
        let deadline = machine.last_active() + timeout;
        if deadline > Instant::now() {
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => {}
                () = machine.rerouted.notified() => {}
            }
            continue;
        }
        let mut changes = app.version.subscribe();
        changes.borrow_and_update();
        let reason = format!("nothing was in progress for {timeout:?}");
        match put_to_sleep(core, app, &candidate, reason).await {
            Attempt::Asleep => {}
            // Others must go on running first.
            Attempt::NotNow => tokio::select! {
                _ = changes.changed() => {}
                () = machine.rerouted.notified() => {}
                () = tokio::time::sleep(AFTER_FAILURE) => {}
            },
            // The attempt itself has changed the app, so that changes say nothing.
            Attempt::Refused => tokio::time::sleep(AFTER_FAILURE).await,
        }
    }
}

/// What became of an attempt to put a machine to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    /// It sleeps.
    Asleep,
    /// It is needed, or was wanted meanwhile.
    NotNow,
    /// Its host refused, or failed.
    Refused,
}

/// Drains a machine and puts it to sleep, unless something speaks against it. Whether it sleeps.
async fn put_to_sleep(
    core: &Arc<Core>,
    app: &Arc<App>,
    candidate: &Candidate,
    reason: String,
) -> Attempt {
    let machine = &candidate.machine;
    // An idle timeout ends when nothing is open.
    let service = candidate.service();
    let drain = service.max_drain.filter(|_| service.has_periodic_rule());
    let (how, action) = match candidate.service().autostop {
        Autostop::Suspend => (Sleep::Suspend, "suspended"),
        Autostop::Off | Autostop::Stop => (Sleep::Stop, "stopped"),
    };
    let worker = &candidate.route.worker;
    if machine.open_streams() > 0 && drain.is_some() {
        // Nobody is to be cut off for a machine that then stays awake.
        if let Err(error) = core.machines.may_sleep(&machine.id, worker, how).await {
            machine.decided("kept running", error.to_string());
            return Attempt::Refused;
        }
        if !is_excess(core, app, candidate) {
            return Attempt::NotNow;
        }
    }
    if !begin(app, candidate, drain.is_some()) {
        return Attempt::NotNow;
    }
    if machine.open_streams() > 0 {
        let is_allowed = drain.is_some();
        if !is_allowed || !drained(app, candidate, drain.unwrap_or_default()).await {
            machine.cancel_drain();
            machine.end_drain();
            machine.decided("kept running", "it was wanted while it was drained");
            app.changed();
            return Attempt::NotNow;
        }
    }
    let begun = {
        let _one_at_a_time = app.decide.lock();
        machine.begin_sleep().then(|| machine.wakes())
    };
    let Some(wakes) = begun else {
        machine.end_drain();
        app.changed();
        return Attempt::NotNow;
    };
    // A suspended machine would keep them open for ever.
    if tokio::time::timeout(DISCONNECT, machine.disconnect()).await.is_err() {
        tracing::warn!(machine = %machine.id, "connections did not close in time");
    }
    machine.end_drain();
    if is_woken_since(app, machine, wakes) {
        app.changed();
        return Attempt::NotNow;
    }
    machine.decided(action, reason.as_str());
    let result = core.machines.sleep(&machine.id, worker, how, &reason).await;
    let _one_at_a_time = app.decide.lock();
    let is_wanted = machine.wakes() != wakes;
    match &result {
        Ok(()) if !is_wanted => app.assume(candidate, false, LAG),
        Ok(()) => {}
        Err(error) => {
            tracing::info!(machine = %machine.id, %error, "can't put a machine to sleep");
            if !is_wanted {
                machine.decided("kept running", error.to_string());
            }
        }
    }
    machine.sleep_ended();
    app.changed();
    match result {
        Ok(()) => Attempt::Asleep,
        // A request called it off: its end is the next thing to wait for.
        Err(_) if is_wanted => Attempt::NotNow,
        Err(_) => Attempt::Refused,
    }
}

/// Whether a request had the machine started while its connections were closed: it goes on.
fn is_woken_since(app: &App, machine: &Machine, wakes: u64) -> bool {
    let _one_at_a_time = app.decide.lock();
    let is_woken = machine.wakes() != wakes;
    if is_woken {
        machine.sleep_ended();
    }
    is_woken
}

/// Closes the machine for new traffic, if nothing speaks against its going to sleep now.
fn begin(app: &App, candidate: &Candidate, may_drain: bool) -> bool {
    let _one_at_a_time = app.decide.lock();
    let Some(now) = app.current(candidate) else { return false };
    let machine = &now.machine;
    if !runs(&now) || machine.has_startups() {
        return false;
    }
    if now.route.is_held() {
        machine.decided("kept running", kept_for(&now, &observe(&now)));
        return false;
    }
    let compiled = app.compiled();
    let key = now.service().key();
    let alike: HashSet<_> = compiled
        .services
        .iter()
        .filter(|other| {
            other.service().key() == key && other.route.region == now.route.region && runs(other)
        })
        .map(|other| &other.machine.id)
        .collect();
    if alike.len() <= keeps(&compiled.primary_region, &now) as usize {
        let keep = now.service().min_machines_running;
        machine.decided("kept running", format!("min_machines_running is {keep}"));
        return false;
    }
    if !may_drain && machine.open_streams() > 0 {
        return false;
    }
    machine.begin_drain()
}

/// Has streams end. Whether the machine may go to sleep after that.
async fn drained(app: &App, candidate: &Candidate, limit: Duration) -> bool {
    let machine = &candidate.machine;
    machine.decided("draining", format!("{} open streams", machine.open_streams()));
    machine.tell_drain();
    let held = async {
        let mut changes = app.version.subscribe();
        loop {
            changes.borrow_and_update();
            let is_held = app.current(candidate).is_none_or(|now| now.route.is_held());
            if is_held || changes.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = machine.quiet() => true,
        () = tokio::time::sleep(limit) => true,
        () = machine.drain_cancelled() => false,
        () = held => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(60);

    fn running(in_use: u32) -> Running {
        Running {
            in_use,
            soft: 10,
            open_streams: in_use,
            quiet_for: INTERVAL,
            is_held: false,
            may_drain: false,
        }
    }

    #[test]
    fn the_periodic_rule_is_that_of_the_reference_minus_cut_streams() {
        let idle = running(0);
        let busy = running(1);
        let full = running(10);
        let held = Running { is_held: true, ..idle };
        let recent = Running { quiet_for: INTERVAL / 2, ..idle };
        let drainable = Running { may_drain: true, ..busy };
        let other_service = Running { open_streams: 1, ..idle };
        let longest = Running { quiet_for: INTERVAL * 2, ..idle };
        let table: &[(&[Running], u32, Option<usize>)] = &[
            (&[], 0, None),
            (&[idle], 0, Some(0)),
            (&[idle], 1, None),
            (&[busy], 0, None),
            (&[drainable], 0, None),
            (&[held], 0, None),
            (&[recent], 0, None),
            (&[other_service], 0, None),
            (&[busy, idle], 0, Some(1)),
            (&[busy, idle], 1, Some(1)),
            (&[busy, idle], 2, None),
            // The reference would cut streams here.
            (&[busy, busy], 0, None),
            (&[busy, drainable], 0, Some(1)),
            // One at its soft limit needs another beside it.
            (&[full, idle], 0, None),
            (&[full, idle, idle], 0, Some(1)),
            (&[full, full, idle, idle], 0, Some(2)),
            (&[idle, longest, idle], 0, Some(1)),
            (&[held, recent, idle], 0, Some(2)),
        ];
        for (running, keep, expected) in table {
            assert_eq!(excess(running, *keep, INTERVAL), *expected, "{running:?}, keep {keep}");
        }
    }
}
