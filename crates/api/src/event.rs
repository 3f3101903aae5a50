//! Events of a machine, as the API shows them: newest first.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::EventId;

/// What happened, when, and who caused it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineEvent {
    /// Sorts by time.
    pub id: EventId,
    /// `launch`, `start`, `exit`, `stop`, `restart`, `destroy`, …; `cordon`, `uncordon`, `host_status` and `oom` are no
    /// change of its state.
    #[serde(rename = "type")]
    pub kind: String,
    /// State the machine was in after it.
    pub status: String,
    /// `user`, `flyd` (the worker) or `proxy`.
    pub source: String,
    /// Milliseconds since the Unix epoch.
    pub timestamp: u64,
    /// Details; `exit_event` and `restart_count` on `exit` events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Value>,
}

/// Kinds of events that tell something of a machine and leave it in its state.
const NOTES: [&str; 4] = ["cordon", "uncordon", "host_status", "oom"];

impl MachineEvent {
    /// Whether it tells of a change of the machine's state, or of one that came to nothing.
    pub fn is_transition(&self) -> bool {
        !NOTES.contains(&self.kind.as_str())
    }

    /// Why what it tells of came to nothing.
    pub fn error(&self) -> Option<&str> {
        self.request.as_ref()?.get("error")?.as_str()
    }

    /// The exit of an `exit` event.
    pub fn exit_details(&self) -> Option<ExitDetails> {
        (self.kind == "exit").then(|| serde_json::from_value(self.request.clone()?).ok()).flatten()
    }
}

/// `request` of an `exit` event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExitDetails {
    /// How the program ended.
    pub exit_event: ExitEvent,
    /// How often the restart policy has restarted it within its window, this time not counted.
    pub restart_count: u32,
}

/// How the program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExitEvent {
    /// The program's exit status, or 128 + signal number; -1 when nobody knows.
    pub exit_code: i32,
    /// The same, as the guest reported it.
    pub guest_exit_code: i32,
    /// The signal that ended the program, -1 for none.
    pub guest_signal: i32,
    /// The signal that ended the VM, -1 for none.
    pub signal: i32,
    /// Killed for want of memory.
    pub oom_killed: bool,
    /// Someone asked for the stop.
    pub requested_stop: bool,
    /// The restart policy starts it again.
    pub restarting: bool,
    /// RFC 3339 with milliseconds.
    pub exited_at: String,
    /// Why, when the program did not end by itself: `guest_oom`, `host_oom`, `vmm_crashed`, `powered_off`,
    /// `host_reboot`, `host_drain`, `killed`. Our addition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Text that explains the cause. Our addition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}
