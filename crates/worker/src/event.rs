//! Makes events, in the words that clients know.

use caddis_api::{
    EventId, MachineState, UnixMillis,
    event::{ExitDetails, ExitEvent, MachineEvent},
    time,
};
use serde_json::{Value, json};

use crate::{
    restart::{self, Verdict},
    row::{MachineRow, ProgramEnd},
};

/// Kind of the event that tells of a process, none of the machine's programs itself, that was
/// killed for want of memory.
pub const OOM: &str = "oom";

/// Longest text of an event, bytes.
const LONGEST_TEXT: usize = 4096;
/// Most entries of a list in an event.
const LONGEST_LIST: usize = 100;

/// Who caused an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A client.
    User,
    /// The worker; the field's name for it is `flyd`.
    Worker,
    /// The proxy, because of traffic or of none.
    Proxy,
}

/// A new event that follows the machine's last one; `told` is what it tells beyond its kind, or
/// null.
pub fn new(
    last: Option<&EventId>,
    now: UnixMillis,
    source: Source,
    kind: &str,
    status: MachineState,
    told: Value,
) -> MachineEvent {
    let event = MachineEvent {
        id: EventId::following(last, now),
        kind: kind.to_owned(),
        status: status.as_str().to_owned(),
        source: match source {
            Source::User => "user".to_owned(),
            Source::Worker => "flyd".to_owned(),
            Source::Proxy => "proxy".to_owned(),
        },
        timestamp: now,
        request: None,
        details: None,
    };
    event.telling(bounded(told))
}

/// What is told, with long texts cut: a machine is published with many of its events, in one
/// message.
fn bounded(told: Value) -> Value {
    match told {
        Value::String(text) => Value::String(bounded_text(text)),
        Value::Array(values) => values.into_iter().take(LONGEST_LIST).map(bounded).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (name, bounded(value))).collect()
        }
        other => other,
    }
}

/// A text as it is told of a machine: cut where it is long.
pub fn bounded_text(mut text: String) -> String {
    if text.len() > LONGEST_TEXT {
        text.truncate(text.floor_char_boundary(LONGEST_TEXT));
        text.push('…');
    }
    text
}

/// The details of an `exit` event.
pub fn exit_request(
    row: &MachineRow,
    end: &ProgramEnd,
    requested: bool,
    restarting: bool,
    now: UnixMillis,
) -> Value {
    let report = end.report.as_ref();
    let guest_signal = report.and_then(|report| report.signal).unwrap_or(-1);
    let exited_at = report.map_or(now, |report| UnixMillis::new(report.exited_at_ns / 1_000_000));
    let details = ExitDetails {
        exit_event: ExitEvent {
            exit_code: end.exit_code(),
            guest_exit_code: end.exit_code(),
            guest_signal,
            signal: -1,
            oom_killed: report.is_some_and(|report| report.oom_killed)
                || matches!(end.cause, Some(crate::row::EndCause::HostOom)),
            requested_stop: requested,
            restarting,
            exited_at: time::milliseconds(exited_at.into()),
            cause: end.cause.map(|cause| cause.as_str().to_owned()),
            message: end.message.clone(),
        },
        restart_count: u32::try_from(restart::recent(&row.restarts, now).count())
            .unwrap_or(u32::MAX),
    };
    json!(details)
}

/// Whether a verdict means that the program runs again.
pub fn restarts(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Restart { .. })
}
