//! What is allowed when: a pure function from a machine's situation and a request to what shall
//! happen. No I/O, no locks. Nothing else decides: what an owner does follows from the verdict.
//!
//! `begin` starts an operation now, `supersede` breaks off the one under way first, `queue` lets it
//! end first.
//!
//! The table of all outcomes is in docs/internals/engine.md, checked against this by a test.
//!
//! `cancel` breaks off a suspend that is under way and has the machine go on; once it is saved, a
//! resume is queued instead. An update ends where the machine was, or was on its way to: one that
//! was to run runs the new version.
//!
//! Traffic wakes less than a client starts (nothing that never ran, has failed, or is started by a
//! schedule), and only a started machine is put to sleep when idle: one that nothing keeps awake
//! and that a stop would not destroy.

use caddis_api::{ApiError, ErrorCode, MachineState};
use caddis_bus::message::WhyAwake;

/// Why a host that is being drained starts nothing.
pub const DRAINED: &str = "this host is being drained for a shutdown; it starts machines again \
                           when its server is restarted";

/// A request that may change a machine's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Run it.
    Start,
    /// End it.
    Stop,
    /// End it and run it again.
    Restart,
    /// Save it and end its VM.
    Suspend,
    /// Give it another configuration.
    Update,
    /// Send its program a signal.
    Signal,
    /// Remove it.
    Destroy {
        /// Also when it runs.
        force: bool,
    },
    /// Run it, because there is traffic for it.
    Wake,
    /// End it, because it is idle.
    Sleep {
        /// Save it first, where that can be done.
        suspend: bool,
    },
}

/// What an operation of a verdict is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Boot it.
    Start,
    /// Boot it, then save it.
    StartAndSuspend,
    /// End it.
    Stop,
    /// End it and boot it again.
    Restart,
    /// Save it and end its VM.
    Suspend,
    /// Have it go on where it was saved.
    Resume,
    /// Give it another configuration.
    Update,
    /// Remove it.
    Destroy,
}

/// What shall happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Begin now; nothing is under way.
    Begin(Goal),
    /// Break off what is under way, then begin.
    Supersede(Goal),
    /// Begin when what is under way has ended.
    Queue(Goal),
    /// Break off the suspend and have the machine go on.
    CancelSuspend,
    /// It is about to be started, once its back-off is over: start it now.
    SkipBackOff,
    /// Forget what was queued.
    Unqueue,
    /// The wish is fulfilled already, or will be by what is under way: what was queued after that
    /// is forgotten.
    Done,
    /// What is under way leads there by itself: nothing changes.
    Wait,
    /// It is not put to sleep.
    StayAwake(WhyAwake),
    /// Send the signal to the program that is running.
    Deliver,
    /// A stop is under way: pass this stop's signal on, and its timeout if that is shorter.
    ShortenStop,
    /// No.
    Refuse(ApiError),
}

/// What a machine is doing, as far as it matters to what may happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    /// Its state, which tells what is under way.
    pub state: MachineState,
    /// What begins when that has ended.
    pub next: Next,
    /// An update is under way after which it is stopped.
    pub updates_at_rest: bool,
    /// A suspend is under way that has gone too far to be cancelled.
    pub is_saved: bool,
    /// Its start waits for the back-off of its restart policy.
    pub backs_off: bool,
    /// Its host is being drained for a shutdown.
    pub host_drains: bool,
    /// Epoch of a later placement on another host: this is a copy, which is not run.
    pub superseded_by: Option<u64>,
    /// It has failed by an internal error, and its program still runs.
    pub still_runs: bool,
    /// Its program has ended, and its restart policy starts it again.
    pub restarts: bool,
    /// It is destroyed when it stops.
    pub is_auto_destroyed: bool,
    /// Its schedule starts it, no traffic.
    pub is_scheduled: bool,
    /// What keeps it from being put to sleep, if anything does beside its state.
    pub kept_awake: Option<WhyAwake>,
    /// It can be saved.
    pub can_suspend: bool,
}

/// What begins when what is under way has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing that a request would have to know of.
    Other,
    /// A start.
    Start,
    /// A destroy, which nothing undoes.
    Destroy,
}

#[cfg(test)]
impl Situation {
    /// A machine in a state, of which nothing more is to be said.
    #[cfg(test)]
    pub fn of(state: MachineState) -> Self {
        Self {
            state,
            next: Next::Other,
            updates_at_rest: false,
            is_saved: false,
            backs_off: false,
            host_drains: false,
            superseded_by: None,
            still_runs: false,
            restarts: false,
            is_auto_destroyed: false,
            is_scheduled: false,
            kept_awake: None,
            can_suspend: true,
        }
    }
}

/// Decides.
pub fn decide(situation: &Situation, request: Request) -> Verdict {
    let Situation { state, next, updates_at_rest, .. } = *situation;
    if let Some(epoch) = situation.superseded_by
        && !matches!(request, Request::Stop | Request::Signal | Request::Destroy { .. })
    {
        return Verdict::Refuse(ApiError::precondition(format!(
            "the machine was placed on another host (placement {epoch}), this copy is not run"
        )));
    }
    let verdict = match (next, request) {
        (Next::Destroy, _) => with_destroy_pending(state, request),
        // There will be nothing to save, unless it is started afterwards.
        (Next::Start, Request::Suspend) if updates_at_rest => {
            with_start_pending(MachineState::Stopping, request)
        }
        (_, Request::Suspend) if updates_at_rest => by_state(MachineState::Stopped, request),
        (Next::Other, Request::Wake) if situation.restarts => Verdict::Wait,
        (Next::Start, _) => with_start_pending(state, request),
        (Next::Other, _) => by_state(state, request),
    };
    match verdict {
        Verdict::Begin(goal @ (Goal::Stop | Goal::Suspend))
            if matches!(request, Request::Sleep { .. }) =>
        {
            let goal = if situation.can_suspend { goal } else { Goal::Stop };
            match situation.kept_awake {
                Some(why) => Verdict::StayAwake(why),
                // No traffic would bring it back.
                None if goal == Goal::Stop && situation.is_auto_destroyed => {
                    Verdict::StayAwake(WhyAwake::AutoDestroy)
                }
                None => Verdict::Begin(goal),
            }
        }
        Verdict::Begin(_) | Verdict::Queue(_) | Verdict::CancelSuspend
            if request == Request::Wake && situation.is_scheduled =>
        {
            Verdict::Refuse(ApiError::precondition(
                "traffic does not start a machine with a schedule",
            ))
        }
        Verdict::Queue(_)
            if request == Request::Wake
                && situation.is_auto_destroyed
                && state == MachineState::Stopping =>
        {
            refuse("start", state)
        }
        // It can be tried on another host.
        Verdict::Begin(_) | Verdict::Queue(_) | Verdict::CancelSuspend
            if request == Request::Wake && situation.host_drains =>
        {
            Verdict::Refuse(ApiError::new(ErrorCode::Unavailable, DRAINED))
        }
        Verdict::Begin(Goal::Start | Goal::Resume)
        | Verdict::Queue(Goal::Start)
        | Verdict::CancelSuspend
            if situation.host_drains =>
        {
            Verdict::Refuse(ApiError::precondition(DRAINED))
        }
        // Its program is to be asked to end before its VM is.
        Verdict::Begin(Goal::Start) if situation.still_runs => Verdict::Begin(Goal::Restart),
        Verdict::CancelSuspend if situation.is_saved => Verdict::Queue(Goal::Resume),
        // Traffic does not make a program that fails again and again fail faster.
        Verdict::Done
            if situation.backs_off
                && state == MachineState::Starting
                && request != Request::Wake =>
        {
            Verdict::SkipBackOff
        }
        verdict => verdict,
    }
}

fn by_state(state: MachineState, request: Request) -> Verdict {
    match request {
        Request::Start => start(state),
        Request::Stop => stop(state),
        Request::Restart => restart(state),
        Request::Suspend => suspend(state),
        Request::Update => update(state),
        Request::Signal => signal(state),
        Request::Destroy { force } => destroy(state, force),
        Request::Wake => wake(state),
        Request::Sleep { suspend } => sleep(state, suspend),
    }
}

/// A machine that is started as soon as what is under way has ended: a suspend waits for that too.
fn with_start_pending(state: MachineState, request: Request) -> Verdict {
    match (state, request) {
        (
            MachineState::Creating | MachineState::Pending | MachineState::Stopping,
            Request::Suspend,
        ) => Verdict::Queue(Goal::StartAndSuspend),
        (_, Request::Wake) => start(state),
        _ => by_state(state, request),
    }
}

/// A machine that is destroyed as soon as what is under way has ended: nothing undoes that.
fn with_destroy_pending(state: MachineState, request: Request) -> Verdict {
    match (state, request) {
        (_, Request::Destroy { .. })
        | (MachineState::Stopping, Request::Stop | Request::Signal) => by_state(state, request),
        _ => by_state(MachineState::Destroying, request),
    }
}

fn start(state: MachineState) -> Verdict {
    use MachineState as S;
    match state {
        S::Creating | S::Pending | S::Stopping | S::Updating | S::Replacing => {
            Verdict::Queue(Goal::Start)
        }
        S::Created | S::Stopped | S::Failed => Verdict::Begin(Goal::Start),
        S::Starting | S::Started | S::Restarting => Verdict::Done,
        S::Suspending => Verdict::CancelSuspend,
        S::Suspended => Verdict::Begin(Goal::Resume),
        S::LaunchFailed | S::Destroying | S::Destroyed | S::Replaced | S::Migrated => {
            refuse("start", state)
        }
    }
}

fn wake(state: MachineState) -> Verdict {
    use MachineState as S;
    match state {
        // It was not meant to run yet, or is of no use until somebody looks at it.
        S::Creating | S::Pending | S::Created | S::Failed => refuse("start", state),
        _ => start(state),
    }
}

fn sleep(state: MachineState, suspend: bool) -> Verdict {
    match state {
        MachineState::Started if suspend => Verdict::Begin(Goal::Suspend),
        MachineState::Started => Verdict::Begin(Goal::Stop),
        _ if state.is_settled() => Verdict::StayAwake(WhyAwake::NotStarted),
        _ => Verdict::StayAwake(WhyAwake::Operation),
    }
}

fn stop(state: MachineState) -> Verdict {
    use MachineState as S;
    match state {
        S::Creating | S::Pending => Verdict::Unqueue,
        S::Created | S::Stopped | S::Destroying | S::Destroyed => Verdict::Done,
        S::Starting | S::Restarting | S::Suspending | S::Updating | S::Replacing => {
            Verdict::Supersede(Goal::Stop)
        }
        S::Started | S::Suspended | S::Failed => Verdict::Begin(Goal::Stop),
        S::Stopping => Verdict::ShortenStop,
        S::LaunchFailed | S::Replaced | S::Migrated => refuse("stop", state),
    }
}

fn update(state: MachineState) -> Verdict {
    use MachineState as S;
    match state {
        S::Created | S::Started | S::Stopped | S::Suspended | S::Failed => {
            Verdict::Begin(Goal::Update)
        }
        S::Creating | S::Pending | S::Starting | S::Restarting | S::Suspending | S::Stopping => {
            Verdict::Supersede(Goal::Update)
        }
        S::Updating | S::Replacing => {
            Verdict::Refuse(ApiError::aborted("machine update failed due to concurrent update"))
        }
        S::LaunchFailed | S::Destroying | S::Destroyed | S::Replaced | S::Migrated => {
            refuse("update", state)
        }
    }
}

fn suspend(state: MachineState) -> Verdict {
    use MachineState as S;
    match state {
        S::Started => Verdict::Begin(Goal::Suspend),
        S::Starting | S::Restarting | S::Replacing => Verdict::Queue(Goal::Suspend),
        S::Suspending | S::Suspended => Verdict::Done,
        _ => refuse("suspend", state),
    }
}

fn restart(state: MachineState) -> Verdict {
    use MachineState as S;
    match state {
        S::Started => Verdict::Begin(Goal::Restart),
        _ => start(state),
    }
}

fn signal(state: MachineState) -> Verdict {
    match state {
        MachineState::Started | MachineState::Stopping => Verdict::Deliver,
        _ => Verdict::Refuse(ApiError::precondition("machine not running")),
    }
}

fn destroy(state: MachineState, force: bool) -> Verdict {
    use MachineState as S;
    match state {
        S::Destroying | S::Destroyed => Verdict::Done,
        S::Creating | S::Pending => Verdict::Supersede(Goal::Destroy),
        S::Created | S::Stopped | S::Suspended | S::Failed | S::LaunchFailed => {
            Verdict::Begin(Goal::Destroy)
        }
        _ if force => Verdict::Supersede(Goal::Destroy),
        S::Stopping | S::Suspending => Verdict::Queue(Goal::Destroy),
        _ => Verdict::Refuse(ApiError::precondition(
            "unable to destroy machine, not currently stopped, suspended, failed or created",
        )),
    }
}

fn refuse(what: &str, state: MachineState) -> Verdict {
    Verdict::Refuse(ApiError::precondition(format!(
        "unable to {what} machine from current state: '{state}'"
    )))
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;

    /// The states this engine brings about, in the order of the table.
    const COLUMNS: &[MachineState] = &[
        MachineState::Creating,
        MachineState::Created,
        MachineState::Starting,
        MachineState::Started,
        MachineState::Suspending,
        MachineState::Suspended,
        MachineState::Stopping,
        MachineState::Stopped,
        MachineState::Restarting,
        MachineState::Failed,
        MachineState::Destroying,
        MachineState::Replacing,
    ];

    /// The states in which a start may wait and a suspend would be refused otherwise.
    const AWAITING_START: &[MachineState] = &[MachineState::Creating, MachineState::Stopping];

    /// The states in which a destroy may wait for what is under way.
    const DOOMED: &[MachineState] = &[MachineState::Suspending, MachineState::Stopping];

    fn word(verdict: &Verdict, request: Request) -> &'static str {
        match (verdict, request) {
            (Verdict::Begin(Goal::Start), Request::Restart) => "begin start",
            (Verdict::Queue(Goal::Start), Request::Restart) => "queue start",
            (Verdict::Begin(Goal::Resume), _) => "begin resume",
            (Verdict::CancelSuspend, _) => "cancel",
            (Verdict::SkipBackOff, _) => "skip back-off",
            (Verdict::Begin(_), _) => "begin",
            (Verdict::Supersede(_), _) => "supersede",
            (Verdict::Queue(_), _) => "queue",
            (Verdict::Unqueue, _) => "unqueue",
            (Verdict::Done, _) => "done",
            (Verdict::Wait, _) => "wait",
            (Verdict::StayAwake(_), _) => "refuse",
            (Verdict::Deliver, _) => "deliver",
            (Verdict::ShortenStop, _) => "shorten",
            (Verdict::Refuse(_), _) => "refuse",
        }
    }

    #[test]
    fn the_table_of_the_architecture_is_the_policy() {
        let document = include_str!("../../../docs/internals/engine.md");
        let columns: Vec<_> = COLUMNS.iter().map(|state| state.as_str()).collect();
        assert!(document.contains(&format!("| request | {} |", columns.join(" | "))));
        let mut checked = 0;
        for (name, request) in [
            ("start", Request::Start),
            ("stop", Request::Stop),
            ("restart", Request::Restart),
            ("suspend", Request::Suspend),
            ("update", Request::Update),
            ("signal", Request::Signal),
            ("destroy", Request::Destroy { force: false }),
            ("destroy, forced", Request::Destroy { force: true }),
            ("wake", Request::Wake),
            ("sleep", Request::Sleep { suspend: false }),
        ] {
            let row = |name: &str| {
                let row = document
                    .lines()
                    .find_map(|line| line.strip_prefix(&format!("| {name} |")))
                    .unwrap();
                row.split('|').map(str::trim).map(str::to_owned).collect::<Vec<_>>()
            };
            for (state, cell) in COLUMNS.iter().zip(row(name)) {
                assert_eq!(
                    word(&decide(&Situation::of(*state), request), request),
                    cell,
                    "{name} in {state}"
                );
                checked += 1;
            }
            for (state, cell) in DOOMED.iter().zip(row(&format!("{name}, destroy queued"))) {
                assert_eq!(
                    word(
                        &decide(
                            &Situation { next: Next::Destroy, ..Situation::of(*state) },
                            request
                        ),
                        request
                    ),
                    cell,
                    "{name} in {state}, doomed"
                );
                checked += 1;
            }
            for (state, cell) in AWAITING_START.iter().zip(row(&format!("{name}, start queued"))) {
                assert_eq!(
                    word(
                        &decide(&Situation { next: Next::Start, ..Situation::of(*state) }, request),
                        request
                    ),
                    cell,
                    "{name} in {state}, awaited"
                );
                checked += 1;
            }
        }
        assert_eq!(checked, 10 * (COLUMNS.len() + DOOMED.len() + AWAITING_START.len()));
    }

    #[test]
    fn a_failed_machine_whose_program_still_runs_is_restarted_by_a_start() {
        let failed = Situation { still_runs: true, ..Situation::of(MachineState::Failed) };
        for request in [Request::Start, Request::Restart] {
            assert_eq!(decide(&failed, request), Verdict::Begin(Goal::Restart));
            let draining = Situation { host_drains: true, ..failed };
            assert!(matches!(decide(&draining, request), Verdict::Refuse(_)));
        }
        assert_eq!(decide(&failed, Request::Stop), Verdict::Begin(Goal::Stop));
        let destroy = decide(&failed, Request::Destroy { force: false });
        assert_eq!(destroy, Verdict::Begin(Goal::Destroy));
    }

    #[test]
    fn nothing_begins_over_an_operation_under_way() {
        for state in MachineState::ALL {
            for request in [
                Request::Start,
                Request::Stop,
                Request::Restart,
                Request::Suspend,
                Request::Update,
                Request::Signal,
                Request::Destroy { force: false },
                Request::Destroy { force: true },
                Request::Wake,
                Request::Sleep { suspend: true },
            ] {
                if let Verdict::Begin(_) = decide(&Situation::of(*state), request) {
                    assert!(
                        state.is_settled() || *state == MachineState::LaunchFailed,
                        "{request:?} in {state}"
                    );
                }
            }
        }
    }

    #[test]
    fn nothing_is_put_to_sleep_that_is_not_started_or_is_kept_awake() {
        let sleeps = [Request::Sleep { suspend: true }, Request::Sleep { suspend: false }];
        for (state, request) in MachineState::ALL.iter().flat_map(|s| sleeps.map(|r| (*s, r))) {
            let begins = |situation| matches!(decide(&situation, request), Verdict::Begin(_));
            assert_eq!(begins(Situation::of(state)), state == MachineState::Started, "{state}");
            for why in [WhyAwake::Lease, WhyAwake::Hold, WhyAwake::Session, WhyAwake::HostStatus] {
                let kept = Situation { kept_awake: Some(why), ..Situation::of(state) };
                assert!(!begins(kept), "{state} {why:?}");
            }
        }
        let kept =
            Situation { kept_awake: Some(WhyAwake::Hold), ..Situation::of(MachineState::Started) };
        assert_eq!(decide(&kept, sleeps[0]), Verdict::StayAwake(WhyAwake::Hold));
        let large = Situation { can_suspend: false, ..Situation::of(MachineState::Started) };
        assert_eq!(decide(&large, sleeps[0]), Verdict::Begin(Goal::Stop));
    }

    #[test]
    fn a_machine_that_a_stop_destroys_is_suspended_when_idle_but_not_stopped() {
        let once = Situation { is_auto_destroyed: true, ..Situation::of(MachineState::Started) };
        let sleep = |situation, suspend| decide(&situation, Request::Sleep { suspend });
        let stays = Verdict::StayAwake(WhyAwake::AutoDestroy);
        assert_eq!(sleep(once, true), Verdict::Begin(Goal::Suspend));
        assert_eq!(sleep(once, false), stays);
        assert_eq!(sleep(Situation { can_suspend: false, ..once }, true), stays);
        assert_eq!(decide(&once, Request::Stop), Verdict::Begin(Goal::Stop), "a client may");
    }

    #[test]
    fn traffic_joins_what_starts_anyway_and_hurries_no_restart() {
        let waits = Situation { backs_off: true, ..Situation::of(MachineState::Starting) };
        assert_eq!(decide(&waits, Request::Wake), Verdict::Done);
        assert_eq!(decide(&waits, Request::Start), Verdict::SkipBackOff);
        let ended = Situation { restarts: true, ..Situation::of(MachineState::Stopping) };
        assert_eq!(decide(&ended, Request::Wake), Verdict::Wait);
        let saved = Situation { is_saved: true, ..Situation::of(MachineState::Suspending) };
        assert_eq!(decide(&saved, Request::Wake), Verdict::Queue(Goal::Resume));
    }

    #[test]
    fn traffic_starts_no_machine_that_a_schedule_starts_or_that_goes_away_and_none_in_a_drain() {
        use MachineState as S;
        for state in [S::Stopped, S::Suspended, S::Stopping, S::Suspending] {
            for situation in [
                Situation { is_scheduled: true, ..Situation::of(state) },
                Situation { host_drains: true, ..Situation::of(state) },
                Situation { superseded_by: Some(2), ..Situation::of(state) },
            ] {
                let verdict = decide(&situation, Request::Wake);
                assert!(matches!(verdict, Verdict::Refuse(_)), "{situation:?}: {verdict:?}");
            }
        }
        let last = Situation { is_auto_destroyed: true, ..Situation::of(S::Stopping) };
        assert!(matches!(decide(&last, Request::Wake), Verdict::Refuse(_)));
        for situation in [
            Situation { is_scheduled: true, ..Situation::of(S::Started) },
            Situation { host_drains: true, ..Situation::of(S::Started) },
        ] {
            assert_eq!(decide(&situation, Request::Wake), Verdict::Done, "it runs already");
        }
    }

    #[test]
    fn refusals_say_what_clients_look_for() {
        let Verdict::Refuse(error) =
            decide(&Situation::of(MachineState::Started), Request::Destroy { force: false })
        else {
            panic!()
        };
        assert_eq!(
            error.message,
            "failed_precondition: unable to destroy machine, not currently stopped, suspended, \
             failed or created"
        );
        let Verdict::Refuse(error) = decide(&Situation::of(MachineState::Stopped), Request::Signal)
        else {
            panic!()
        };
        assert_eq!(error.message, "failed_precondition: machine not running");
    }
}
