//! Events of a machine, as the API shows them: newest first.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{EventId, UnixMillis};

/// What happened, when, and who caused it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineEvent {
    /// Ids sort by time.
    pub id: EventId,
    /// `launch`, `start`, `exit`, `stop`, `restart`, `destroy`, …; `cordon`, `uncordon`,
    /// `host_status` and `oom` do not change its state.
    #[serde(rename = "type")]
    pub kind: String,
    /// State the machine was in after it.
    pub status: String,
    /// `user`, `flyd` (the worker) or `proxy`.
    pub source: String,
    /// Milliseconds since the Unix epoch.
    #[schema(value_type = u64)]
    pub timestamp: UnixMillis,
    /// Of `exit` events: `exit_event` and `restart_count`. Others have none, since clients read it
    /// as the former.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Value>,
    /// Details of other events: `start_kind` and `timing` of a start, `error`, `message`, …. Caddis
    /// extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
}

/// Kind of the event that tells how the program ended.
pub const EXIT: &str = "exit";

/// Kinds of events that tell something of a machine and leave it in its state.
const NOTES: [&str; 4] = ["cordon", "uncordon", "host_status", "oom"];

impl MachineEvent {
    /// Whether it tells of a change of the machine's state, or of one that came to nothing.
    pub fn is_transition(&self) -> bool {
        !NOTES.contains(&self.kind.as_str())
    }

    /// Why what it tells of came to nothing.
    pub fn error(&self) -> Option<&str> {
        self.details.as_ref()?.get("error")?.as_str()
    }

    /// What it tells beyond its kind and status: of an exit its request, of others its details;
    /// null for nothing.
    pub fn told(&self) -> &Value {
        let told = if self.kind == EXIT { &self.request } else { &self.details };
        told.as_ref().unwrap_or(&Value::Null)
    }

    /// The same with this told of it.
    #[must_use]
    pub fn telling(self, told: Value) -> Self {
        let told = Some(told).filter(|told| !told.is_null());
        let (request, details) = if self.kind == EXIT { (told, None) } else { (None, told) };
        Self { request, details, ..self }
    }

    /// As it is written today: earlier releases wrote what any event tells as its request.
    #[must_use]
    pub fn renewed(mut self) -> Self {
        match self.request.take() {
            Some(told) if self.details.is_none() => self.telling(told),
            request => Self { request, ..self },
        }
    }

    /// The exit of an `exit` event.
    pub fn exit_details(&self) -> Option<ExitDetails> {
        (self.kind == EXIT).then(|| serde_json::from_value(self.request.clone()?).ok()).flatten()
    }
}

/// `request` of an `exit` event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExitDetails {
    /// How the program ended.
    pub exit_event: ExitEvent,
    /// Restarts by the restart policy within its window, not counting this one.
    pub restart_count: u32,
}

/// How the program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExitEvent {
    /// The program's exit status, or 128 + signal number; -1 if unknown.
    pub exit_code: i32,
    /// The same, as the guest reported it.
    pub guest_exit_code: i32,
    /// The signal that ended the program, -1 for none.
    pub guest_signal: i32,
    /// The signal that ended the VM, -1 for none.
    pub signal: i32,
    /// Killed because memory ran out.
    pub oom_killed: bool,
    /// The stop was requested.
    pub requested_stop: bool,
    /// The restart policy restarts it.
    pub restarting: bool,
    /// RFC 3339 with milliseconds.
    pub exited_at: String,
    /// Why, when the program did not end by itself: `guest_oom`, `host_oom`, `vmm_crashed`,
    /// `powered_off`, `host_reboot`, `host_drain`, `killed`. Caddis extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Text that explains the cause. Caddis extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_exits_have_a_request_also_of_events_written_earlier() {
        for (kind, told, field) in [
            ("start", json!({ "start_kind": "cold" }), "details"),
            ("exit", json!({ "exit_event": {}, "restart_count": 0 }), "request"),
        ] {
            let earlier = json!({
                "id": "01K9", "type": kind, "status": "started", "source": "flyd", "timestamp": 1,
                "request": told,
            });
            let event = serde_json::from_value::<MachineEvent>(earlier).unwrap().renewed();
            let shown = serde_json::to_value(&event).unwrap();
            assert_eq!((&shown[field], event.told()), (&told, &told), "{kind}");
            assert_eq!(shown.as_object().unwrap().len(), 6, "{shown}");
            assert_eq!(event.clone().renewed(), event);
            let silent = event.telling(Value::Null);
            assert_eq!(
                serde_json::to_value(silent.renewed()).unwrap().as_object().unwrap().len(),
                5
            );
        }
    }
}
