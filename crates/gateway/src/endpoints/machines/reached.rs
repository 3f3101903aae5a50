//! Whether a machine has reached what a wait is for. Pure.
//!
//! The current state counts, and so does a state that was passed through since the wait began: an
//! event says so even when the machine has gone on before anybody could look.

use caddis_api::{EventId, MachineState, event::MachineEvent};
use caddis_bus::message::MachineRecord;

/// States to wait for; any one will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Targets {
    pub states: Vec<MachineState>,
    /// No transition in progress, whichever state that is.
    pub settled: bool,
}

/// Since when transitions count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Since {
    /// The current state counts however old it is; passing states count when later than this event.
    Now(Option<EventId>),
    /// Only what came after this event counts.
    Event(EventId),
}

/// What was reached, and by which event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reached {
    pub state: MachineState,
    pub event: Option<EventId>,
}

impl Targets {
    fn accepts_current(&self, record: &MachineRecord) -> bool {
        let (state, machine) = (record.machine.state, &record.machine);
        // On its way to the first boot a machine passes through `created`; it stays there only
        // after `skip_launch`.
        let is_settled =
            state != MachineState::Created || (machine.operation.is_none() && !record.launched);
        self.states.contains(&state)
            || (self.settled && state.is_settled() && is_settled)
            || (self.states.contains(&MachineState::Stopped)
                && state == MachineState::Created
                && is_settled)
    }

    fn accepts_passed(&self, event: &MachineEvent) -> bool {
        if !event.is_transition() {
            return false;
        }
        let restarting = event.exit_details().is_some_and(|details| details.exit_event.restarting);
        !restarting && self.states.iter().any(|state| state.as_str() == event.status)
    }
}

/// What of the targets was reached, if any.
pub(super) fn reached(record: &MachineRecord, targets: &Targets, since: &Since) -> Option<Reached> {
    let events = record.machine.events.as_deref().unwrap_or_default();
    let state = record.machine.state;
    if targets.accepts_current(record) {
        // Newest first: the one that brought the state about.
        let brought = |event: &&std::sync::Arc<MachineEvent>| {
            event.is_transition() && event.status == state.as_str()
        };
        let event = events.iter().find(brought).map(|event| event.id.clone());
        let counts = match since {
            Since::Now(_) => true,
            Since::Event(from) => event.as_ref().is_some_and(|event| event > from),
        };
        if counts {
            return Some(Reached { state, event });
        }
    }
    let from = match since {
        Since::Now(from) => from.as_ref(),
        Since::Event(from) => Some(from),
    };
    let later = events.iter().rev().filter(|event| from.is_none_or(|from| event.id > *from));
    // The newest event of a change that still goes on tells where it leads, not what was reached:
    // the exit of a program comes before its VM is gone.
    let under_way = record.machine.operation.as_ref().and(events.first()).map(|event| &event.id);
    let passed = later
        .filter(|event| Some(&event.id) != under_way)
        .filter(|event| targets.accepts_passed(event))
        .find_map(|event| {
            Some(Reached { state: event.status.parse().ok()?, event: Some(event.id.clone()) })
        });
    passed.filter(|_| *since != Since::Now(None))
}

/// Why nothing of the targets will be reached by a machine that is left to itself, where that is
/// so: it has failed, or come to its end, since the wait began or before. A machine that was
/// stopped or suspended may be waited for: someone else may be about to start it.
pub(super) fn out_of_reach(
    record: &MachineRecord,
    targets: &Targets,
    since: &Since,
) -> Option<String> {
    use MachineState::{Created, Failed, Started, Stopped, Suspended};
    let machine = &record.machine;
    let is_scheduled = machine
        .config
        .as_ref()
        .is_some_and(|config| config.field("schedule").is_some_and(|s| !s.is_null()));
    if targets.settled || machine.operation.is_some() || is_scheduled {
        return None;
    }
    let newest = machine.events.iter().flatten().find(|event| event.is_transition())?;
    if matches!(since, Since::Event(from) if newest.id <= *from) {
        return None;
    }
    let only = |states: &[MachineState]| targets.states.iter().all(|state| states.contains(state));
    let why = newest.error().map(|error| format!(": {error}")).unwrap_or_default();
    match machine.state {
        Failed if only(&[Created, Started, Stopped, Suspended]) => {
            Some(format!("its {} failed and is not retried{why}", newest.kind))
        }
        Stopped if only(&[Created, Started, Suspended]) => {
            let exit = newest.exit_details()?.exit_event;
            (!exit.requested_stop && !exit.restarting).then(|| {
                format!(
                    "its program has ended with exit code {} and is not restarted",
                    exit.exit_code
                )
            })
        }
        Started if only(&[Suspended]) => match newest.kind.as_str() {
            "suspend" if !why.is_empty() => Some(format!("its suspend failed{why}")),
            "start" if newest.told()["start_kind"] == "none" => {
                Some("its suspend was cancelled by a start".to_owned())
            }
            _ => None,
        },
        Suspended if only(&[Created, Started]) && newest.kind == "suspend" && !why.is_empty() => {
            Some(format!("its start failed, and it stays suspended{why}"))
        }
        _ => None,
    }
}
