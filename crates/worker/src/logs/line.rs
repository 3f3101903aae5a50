//! Lines of logs.

use caddis_api::{EventId, event::MachineEvent};
use caddis_bus::message::HostLine;
use serde::{Deserialize, Serialize};

use super::split;
use crate::runner;

/// One line in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Number, unique on this worker, rising in the order of writing.
    #[serde(rename = "n")]
    pub number: u64,
    /// Guest's or our clock, nanoseconds since the Unix epoch.
    #[serde(rename = "t")]
    pub time_ns: u64,
    /// Where it came from: `stdout`, `stderr`, `init`, `runner` or `proxy`.
    #[serde(rename = "s")]
    pub source: String,
    /// The record of the guest it was in, and the boot that counts them: absent for our own lines.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub record: Option<(u64, u64)>,
    /// The event of the machine that it tells of: only for our own lines.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub event: Option<EventId>,
    /// `error`, where its source does not tell.
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// The line is too long and goes on in the next one of its source.
    #[serde(rename = "p", default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// The text.
    #[serde(rename = "m")]
    pub message: String,
}

/// A line that is to be written.
pub(super) struct NewLine {
    pub time_ns: u64,
    pub source: &'static str,
    pub record: Option<(u64, u64)>,
    pub event: Option<EventId>,
    pub level: Option<&'static str>,
    pub partial: bool,
    pub message: String,
}

impl NewLine {
    /// A line of a record of the guest.
    pub fn of_record(
        source: &'static str,
        time_ns: u64,
        record: (u64, u64),
        message: String,
    ) -> Self {
        Self {
            time_ns,
            source,
            record: Some(record),
            event: None,
            level: None,
            partial: false,
            message,
        }
    }

    /// The lines about an event.
    pub fn of_event(event: &MachineEvent) -> impl Iterator<Item = Self> {
        let (id, time_ns) = (event.id.clone(), event.timestamp.as_u64().saturating_mul(1_000_000));
        runner::lines(event).into_iter().map(move |(level, message)| Self {
            time_ns,
            source: "runner",
            record: None,
            event: Some(id.clone()),
            level: (level == runner::Level::Error).then(|| level.as_str()),
            partial: false,
            message,
        })
    }

    /// The lines that the proxy tells of a machine.
    pub fn of_proxy(told: &HostLine) -> impl Iterator<Item = Self> {
        let HostLine { time_ns, is_error, ref text } = *told;
        let lines = split(text.as_bytes(), false).into_iter();
        lines.map(move |(message, partial)| Self {
            time_ns,
            source: "proxy",
            record: None,
            event: None,
            level: is_error.then(|| runner::Level::Error.as_str()),
            partial,
            message,
        })
    }
}
