//! What the proxy and a worker tell each other of machines that sleep and wake.

use serde::{Deserialize, Serialize};

/// How a machine is put to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SleepMode {
    /// Its program is told to end, as by any stop.
    Stop,
    /// Its memory is saved. Where that can't be done it is stopped.
    Suspend,
}

/// Why a machine is not put to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhyAwake {
    /// It is not started.
    NotStarted,
    /// Something is being done to it: an update, a restart, a start.
    Operation,
    /// A client has leased it.
    Lease,
    /// A hold is in force.
    Hold,
    /// Somebody runs a program or has a shell in it.
    Session,
    /// Its host does not know how it is: init does not answer, or the VM is paused by its disk.
    HostStatus,
    /// It would be stopped, and is destroyed when it stops.
    AutoDestroy,
}

/// Why a machine was not woken. Errors of the worker itself are `ApiError`s (PM02).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhyNotWoken {
    /// Its host can't start machines now: its disk is full, or it is being drained.
    Capacity,
    /// The start was not over by the deadline. It goes on.
    TimedOut,
    /// The start was tried and failed, or was ended by a stop.
    Failed,
    /// It is in a state, or of a kind, that traffic does not start.
    State,
}

/// A line of the proxy for a machine's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostLine {
    /// When, nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// Something went wrong.
    pub is_error: bool,
    /// The text. Long ones are cut, line ends begin another line.
    pub text: String,
}

impl HostLine {
    /// Most lines of a request.
    pub const MOST: usize = 100;
}
