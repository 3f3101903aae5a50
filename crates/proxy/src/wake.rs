//! Starts machines for requests: one at a time for an app's port and region, however many wait.
//!
//! A *startup* is the way of a machine's service from asleep to ready: the machine is started, the
//! port accepts, the checks pass. It goes on when those who wait for it leave. Requests for another
//! service of the machine wait for the start only.

use std::{io, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{net::TcpStream, sync::watch, time::Instant};

use crate::{
    ErrorCode, MachineState,
    app::{App, Candidate, Endpoint},
    core::Core,
    error::Failure,
    machine::Machine,
    select::Search,
    startup::{Progress, Startup},
};

/// Pause between attempts to connect to a port that is not open yet: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const MAX_PAUSE: Duration = Duration::from_millis(20);
/// The next attempt to connect begins after a quarter of the time waited so far, within these: a
/// machine whose network is not up drops the packet, and the kernel sends another one after a
/// second only.
const ATTEMPT: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Attempts at once.
const MAX_ATTEMPTS: usize = 8;
/// A machine that failed to start is left alone for so long.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// How long the routes may lag behind a start or stop that was ours.
pub(crate) const LAG: Duration = Duration::from_secs(2);

/// What a request without a machine can wait for.
pub(crate) enum Way {
    /// A drain was called off: look again.
    Retry,
    /// A machine is about to be ready.
    Startup(Arc<Machine>, Startup),
    /// Nothing, and why the last start failed, if one did.
    Nothing(Option<Failure>),
}

/// Calls off the drain of a machine that can take the request. Whether there was one.
pub(crate) fn cancel_drain(search: &Search<'_>, endpoint: &Endpoint) -> bool {
    let is_fit = |candidate: &&Candidate| {
        search.fits(candidate)
            && candidate.state() == MachineState::Started
            && !candidate.route.cordoned
            && candidate.service().healthy
    };
    endpoint.candidates.iter().filter(is_fit).any(|candidate| candidate.machine.cancel_drain())
}

/// Joins the start that is under way, or begins one.
pub(crate) fn way(search: &Search<'_>, endpoint: &Endpoint) -> Way {
    let (core, app) = (search.core, search.app);
    let _one_at_a_time = app.decide.lock();
    let fitting = || endpoint.candidates.iter().filter(|candidate| search.fits(candidate));
    // A place may have become free, or a machine ready, before the lock was had.
    if cancel_drain(search, endpoint) || fitting().any(Candidate::is_eligible) {
        return Way::Retry;
    }
    for candidate in fitting() {
        if let Some(startup) = candidate.startup() {
            return Way::Startup(candidate.machine.clone(), startup);
        }
    }
    let usable = |candidate: &&Candidate| candidate.recent_failure().is_none();
    let on_its_way = |candidate: &&Candidate| {
        let is_on = match candidate.state() {
            MachineState::Starting => true,
            MachineState::Started => candidate.was_started_within(core.config.recently_started),
            _ => false,
        };
        is_on && !candidate.route.cordoned && candidate.machine.is_open()
    };
    if let Some(candidate) = fitting().filter(on_its_way).find(usable) {
        return Way::Startup(candidate.machine.clone(), launch(core, app, candidate));
    }
    match machine_to_wake(search, fitting().filter(usable)) {
        Some(candidate) => Way::Startup(candidate.machine.clone(), launch(core, app, candidate)),
        None => Way::Nothing(fitting().find_map(Candidate::recent_failure)),
    }
}

/// All that run are at their soft limit: starts one more, if none was a moment ago.
pub(crate) fn start_another(search: &Search<'_>, endpoint: &Endpoint) {
    let (core, app) = (search.core, search.app);
    let may_help = |candidate: &&Candidate| {
        candidate.may_wake() && search.fits(candidate) && candidate.recent_failure().is_none()
    };
    // Without the lock: mostly there is none.
    if !endpoint.candidates.iter().any(|candidate| may_help(&candidate)) {
        return;
    }
    let _one_at_a_time = app.decide.lock();
    let helpers = endpoint.candidates.iter().filter(may_help);
    let Some(candidate) = machine_to_wake(search, helpers) else { return };
    let window = core.config.recently_started;
    let is_helped = endpoint.candidates.iter().any(|other| {
        other.route.region == candidate.route.region
            && !other.route.cordoned
            && (other.startup().is_some()
                || other.state() == MachineState::Starting
                || (other.state() == MachineState::Started && other.was_started_within(window)))
    });
    if !is_helped {
        launch(core, app, candidate);
    }
}

/// The nearest one, a suspended one first: it is quicker.
fn machine_to_wake<'a>(
    search: &Search<'_>,
    candidates: impl Iterator<Item = &'a Candidate>,
) -> Option<&'a Candidate> {
    candidates.filter(|candidate| candidate.may_wake()).min_by_key(|candidate| {
        (search.tier(candidate), candidate.state() != MachineState::Suspended)
    })
}

/// The way of a machine that runs to its being ready.
pub(crate) fn ready(core: &Arc<Core>, app: &Arc<App>, candidate: &Candidate) -> Startup {
    let _one_at_a_time = app.decide.lock();
    candidate.startup().unwrap_or_else(|| launch(core, app, candidate))
}

/// Called with the app's lock held.
fn launch(core: &Arc<Core>, app: &Arc<App>, candidate: &Candidate) -> Startup {
    let is_asleep = candidate.state().is_asleep() || candidate.machine.is_sleeping();
    let first = if is_asleep { Progress::Waking } else { Progress::Running };
    let (progress, startup) = watch::channel(first);
    let service = candidate.service().key();
    if is_asleep {
        candidate.machine.count_wake();
    }
    candidate.machine.begin_startup(service, startup.clone());
    let (core, app, candidate) = (core.clone(), app.clone(), candidate.clone());
    // A shutdown waits for requests, not for a start that none of them needs.
    tokio::spawn(async move {
        let machine = &candidate.machine;
        let result = tokio::select! {
            result = start(&core, &app, &candidate, &progress) => result,
            () = core.cut.cancelled() => {
                Err(Failure::of(&machine.id, ErrorCode::PM02, "the proxy is shutting down"))
            }
            () = machine.gone.cancelled() => {
                Err(Failure::of(&machine.id, ErrorCode::PM09, "the machine was destroyed"))
            }
        };
        if let Err(failure) = &result {
            // That one service was not ready in time says nothing about the others.
            let is_awake = matches!(*progress.borrow(), Progress::Running);
            let is_of_service = is_awake && failure.code == ErrorCode::PM03;
            machine.failed(is_of_service.then_some(service), failure.clone(), AFTER_FAILURE);
            machine.decided("start failed", failure.text.clone());
            core.report(&app, failure, None);
        }
        {
            let _one_at_a_time = app.decide.lock();
            machine.end_startup(service);
        }
        progress.send_replace(Progress::Done(result));
        app.changed();
    });
    Startup::new(startup)
}

async fn start(
    core: &Arc<Core>,
    app: &Arc<App>,
    candidate: &Candidate,
    progress: &watch::Sender<Progress>,
) -> Result<(), Failure> {
    let is_asleep = matches!(*progress.borrow(), Progress::Waking);
    if is_asleep {
        wake(core, app, candidate, progress).await?;
    }
    match until_ready(core, app, candidate).await {
        // It ended by itself, or an update left it as it was: no reason to fail who waits.
        Err(failure) if !is_asleep && failure.code == ErrorCode::PM08 => {
            let Some(now) = app.current(candidate).filter(Candidate::may_wake) else {
                return Err(failure);
            };
            {
                let _one_at_a_time = app.decide.lock();
                now.machine.count_wake();
            }
            progress.send_replace(Progress::Waking);
            wake(core, app, &now, progress).await?;
            until_ready(core, app, &now).await
        }
        result => result,
    }
}

/// Has the machine started by its host.
async fn wake(
    core: &Arc<Core>,
    app: &Arc<App>,
    candidate: &Candidate,
    progress: &watch::Sender<Progress>,
) -> Result<(), Failure> {
    let machine = &candidate.machine;
    let is_resume = candidate.state() == MachineState::Suspended;
    let action = if is_resume { "resumed" } else { "started" };
    machine.decided(action, "traffic came and no running machine could take it");
    let call = core.machines.wake(&machine.id, &candidate.route.worker);
    match tokio::time::timeout(core.config.wake_timeout, call).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            let text = format!("failed to start machine {}: {error}", machine.id);
            return Err(Failure::of(&machine.id, error.code(), text));
        }
        Err(_) => {
            let text = format!(
                "machine {} did not start within {:?}",
                machine.id, core.config.wake_timeout
            );
            return Err(Failure::of(&machine.id, ErrorCode::PM03, text));
        }
    }
    app.assume(candidate, true, LAG);
    machine.touch();
    machine.reopen();
    progress.send_replace(Progress::Running);
    Ok(())
}

/// Waits until the port accepts and the checks pass.
async fn until_ready(
    core: &Arc<Core>,
    app: &Arc<App>,
    candidate: &Candidate,
) -> Result<(), Failure> {
    let machine = &candidate.machine;
    let limit = core.config.ready_timeout + candidate.service().grace;
    let deadline = Instant::now() + limit;
    let opened = tokio::time::timeout_at(deadline, until_it_accepts(app, candidate)).await;
    let port = candidate.service().internal_port;
    match opened {
        Ok(result) => machine.keep_probe(port, result?),
        Err(_) => {
            let text = format!(
                "machine {} was started, but did not accept a connection to port {port} within \
                 {:?}; does the app listen on 0.0.0.0:{port}?",
                machine.id, limit
            );
            return Err(Failure::of(&machine.id, ErrorCode::PM03, text));
        }
    }
    let checked = tokio::time::timeout_at(deadline, until_healthy(app, candidate)).await;
    let Ok(outcome) = checked else {
        let text = format!(
            "machine {} accepted connections, but its checks did not pass within {:?}",
            machine.id, limit
        );
        return Err(Failure::of(&machine.id, ErrorCode::PM03, text));
    };
    outcome
}

async fn until_it_accepts(app: &App, candidate: &Candidate) -> Result<TcpStream, Failure> {
    let mut pause = FIRST_PAUSE;
    let began = Instant::now();
    // One that was not answered goes on beside the next one: the machine may be about to answer.
    let mut attempts = FuturesUnordered::new();
    loop {
        // The address may be another after a start.
        let now = app.current(candidate);
        let candidate = now.as_ref().unwrap_or(candidate);
        if attempts.len() == MAX_ATTEMPTS {
            attempts.clear();
        }
        attempts.push(TcpStream::connect(candidate.address()));
        let limit = (began.elapsed() / 4).clamp(ATTEMPT.0, ATTEMPT.1);
        match tokio::time::timeout(limit, attempts.next()).await {
            Ok(Some(Ok(stream))) => {
                return Ok(stream);
            }
            Ok(Some(Err(error))) if error.kind() == io::ErrorKind::PermissionDenied => {
                let text = format!("connecting to {}: {error}", candidate.address());
                return Err(Failure::of(&candidate.machine.id, ErrorCode::PC06, text));
            }
            Ok(_) | Err(_) => {}
        }
        let state = candidate.state();
        if !matches!(state, MachineState::Started | MachineState::Starting) {
            return Err(ended_early(candidate));
        }
        // Nothing tells when a port in the machine opens.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Some(Ok(stream)) = attempts.next() => return Ok(stream),
        }
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

fn ended_early(candidate: &Candidate) -> Failure {
    let id = &candidate.machine.id;
    Failure::of(id, ErrorCode::PM08, format!("machine {id} ended before it was ready"))
}

async fn until_healthy(app: &App, candidate: &Candidate) -> Result<(), Failure> {
    let mut changes = app.version.subscribe();
    loop {
        changes.borrow_and_update();
        let Some(now) = app.current(candidate) else { return Ok(()) };
        match now.state() {
            MachineState::Started if now.service().healthy => return Ok(()),
            MachineState::Started | MachineState::Starting => {}
            _ => return Err(ended_early(candidate)),
        }
        // The sender lives as long as the app that is borrowed here.
        if changes.changed().await.is_err() {
            return Ok(());
        }
    }
}
