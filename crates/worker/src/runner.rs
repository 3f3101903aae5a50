//! Lines about a machine in its own log: what its host did with it, and how its program ended.
//!
//! A line follows from one recorded event and from nothing else, and carries its id in the file. So
//! it is written once: a server that was killed after it recorded the event writes the line when it
//! is started again. An event gets a line here, or by a text of its own in `request.message`.

use caddis_api::{
    MachineState, Signal,
    event::{ExitDetails, MachineEvent},
};
use serde_json::Value;

/// How much a line matters, as the log shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The usual course.
    Info,
    /// Something went wrong.
    Error,
}

impl Level {
    /// Its name in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Error => "error",
        }
    }
}

/// The lines that an event makes, in order.
pub fn lines(event: &MachineEvent) -> Vec<(Level, String)> {
    let told = event.told();
    let text = |key: &str| told[key].as_str().filter(|text| !text.is_empty());
    if let Some(details) = event.exit_details() {
        return exit(&details, told);
    }
    if let Some(message) = text("message") {
        let level = if text("level") == Some("info") { Level::Info } else { Level::Error };
        return vec![(level, message.to_owned())];
    }
    if let Some(error) = text("error") {
        return vec![(Level::Error, failed(event, error))];
    }
    let is = |state: MachineState| event.status == state.as_str();
    let line = match event.kind.as_str() {
        "start" if is(MachineState::Starting) && event.source == "proxy" => {
            Some("Starting machine: there is traffic for it".to_owned())
        }
        "stop" | "suspend" if !told["reason"].is_null() => {
            let doing = if event.kind == "stop" { "Stopping" } else { "Suspending" };
            text("reason").map(|reason| format!("{doing} idle machine: {reason}"))
        }
        "start" if is(MachineState::Starting) => {
            told["delay_ms"].as_u64().map(|delay| restart(delay, told))
        }
        "start" | "restart" if is(MachineState::Started) => Some(started(told)),
        "suspend" if is(MachineState::Suspended) => {
            Some(format!("Machine suspended{}", took(told)))
        }
        _ => None,
    };
    line.map(|line| (Level::Info, line)).into_iter().collect()
}

fn started(told: &Value) -> String {
    let kind = match told["start_kind"].as_str() {
        Some("resume") => return format!("Machine resumed{}", took(told)),
        Some("none") => {
            return "Suspend cancelled by a start, the machine keeps running".to_owned();
        }
        Some("cold") => "cold boot",
        Some("template") => "from a template",
        _ => return format!("Machine started{}", took(told)),
    };
    let reason = told["start_reason"].as_str().filter(|reason| !reason.is_empty());
    let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("Machine started{} ({kind}{reason})", took(told))
}

/// Steps of the host that come before a start, or are its end.
const NOT_OF_THE_START: [&str; 4] = ["back_off", "signal", "await_exit", "power_off"];

/// ` in 313ms`, where it is known.
fn took(told: &Value) -> String {
    let steps = told["timing"].as_array().map(Vec::as_slice).unwrap_or_default();
    let counts = |step: &&Value| {
        step["where"] == "host"
            && step["step"].as_str().is_some_and(|name| !NOT_OF_THE_START.contains(&name))
    };
    let milliseconds: Vec<_> =
        steps.iter().filter(counts).filter_map(|step| step["ms"].as_f64()).collect();
    match milliseconds.iter().sum::<f64>() {
        _ if milliseconds.is_empty() => String::new(),
        sum if sum < 1000.0 => format!(" in {sum:.0}ms"),
        sum => format!(" in {:.1}s", sum / 1000.0),
    }
}

fn restart(delay_ms: u64, told: &Value) -> String {
    let count = told["restart_count"]
        .as_u64()
        .map(|count| format!(" (restart {count})"))
        .unwrap_or_default();
    match delay_ms {
        0 => format!("Restarting machine{count}"),
        _ => format!("Restarting machine in {}s{count}", delay_ms.div_ceil(1000)),
    }
}

fn exit(details: &ExitDetails, told: &Value) -> Vec<(Level, String)> {
    let exit = &details.exit_event;
    let signal = Signal::from_number(exit.guest_signal)
        .map(|signal| format!(" ({signal})"))
        .unwrap_or_default();
    let code = format!("exit code {}{signal}", exit.exit_code);
    let message = exit.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
    let what = match exit.cause.as_deref() {
        None => format!("Machine exited with {code}{message}"),
        Some("guest_oom") => {
            format!("Machine exited with {code}, out of memory: killed by the guest's kernel")
        }
        Some("host_oom") => format!("VM killed by the host, out of memory{message}"),
        Some("vmm_crashed") => format!("VM crashed{message}"),
        Some("powered_off") => "Machine powered off or rebooted from inside".to_owned(),
        Some("host_reboot") => "Machine ended: the host was rebooted".to_owned(),
        Some("killed") if message.is_empty() => {
            format!("Machine killed: it did not stop in time, {code}")
        }
        Some("killed") => format!("Machine killed{message}"),
        Some(cause) => format!("Machine exited with {code}, {cause}{message}"),
    };
    let after = match (exit.requested_stop, exit.restarting) {
        (_, true) => "",
        (true, false) => ", stop requested",
        (false, false) => ", not restarting",
    };
    let failed = !exit.requested_stop && exit.exit_code != 0;
    let mut lines = vec![(if failed { Level::Error } else { Level::Info }, what + after)];
    if let Some(limit) = told["max_restart_count"].as_u64() {
        // The field's words: people search for them.
        lines.push((Level::Error, format!("machine has reached its max restart count of {limit}")));
    }
    lines
}

fn failed(event: &MachineEvent, error: &str) -> String {
    let kind = match event.kind.as_str() {
        // A resume that came to nothing.
        "suspend" if event.status == MachineState::Suspended.as_str() => {
            return format!("Start failed, the machine stays suspended: {error}");
        }
        kind => kind,
    };
    let goes_on = if event.status == MachineState::Started.as_str() {
        ", the machine keeps running"
    } else {
        ""
    };
    let mut letters = kind.chars();
    let kind: String =
        letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect();
    format!("{kind} failed{goes_on}: {error}")
}

#[cfg(test)]
mod tests {
    use caddis_api::{EventId, UnixMillis};
    use serde_json::json;

    use super::*;

    fn text(kind: &str, status: &str, told: Value) -> String {
        let event = MachineEvent {
            id: EventId::following(None, UnixMillis::new(1)),
            kind: kind.to_owned(),
            status: status.to_owned(),
            source: "flyd".to_owned(),
            timestamp: UnixMillis::new(1),
            request: None,
            details: None,
        };
        let lines = lines(&event.telling(told));
        lines
            .iter()
            .map(|(level, line)| format!("[{}]{line}", level.as_str()))
            .collect::<Vec<_>>()
            .join(" | ")
    }

    fn exit(code: i32, signal: i32, requested: bool, more: Value) -> Value {
        let mut event = json!({
            "exit_code": code, "guest_exit_code": code, "guest_signal": signal, "signal": -1,
            "oom_killed": false,
            "requested_stop": requested, "restarting": false,
            "exited_at": "2026-08-21T10:00:00.000Z",
        });
        event.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        json!({ "exit_event": event, "restart_count": 0 })
    }

    #[test]
    fn starts_tell_their_kind_and_time() {
        let timing = json!([
            { "where": "host", "step": "await_exit", "ms": 5000.0 },
            { "where": "host", "step": "launch", "ms": 200.4 },
            { "where": "vmm", "step": "fork", "ms": 11.0 },
            { "where": "host", "step": "configure", "ms": 112.4 },
        ]);
        let request = json!({ "start_kind": "template", "timing": timing });
        assert_eq!(
            text("start", "started", request.clone()),
            "[info]Machine started in 313ms (from a template)"
        );
        assert_eq!(
            text("restart", "started", request),
            "[info]Machine started in 313ms (from a template)"
        );
        let slow = json!([{ "where": "host", "step": "boot", "ms": 2340.0 }]);
        let cold =
            json!({ "start_kind": "cold", "start_reason": "no template yet", "timing": slow });
        assert_eq!(
            text("start", "started", cold),
            "[info]Machine started in 2.3s (cold boot: no template yet)"
        );
        assert_eq!(
            text("start", "started", json!({ "start_kind": "resume" })),
            "[info]Machine resumed"
        );
        let none = json!({ "start_kind": "none", "start_reason": "the suspend was cancelled" });
        assert_eq!(
            text("start", "started", none),
            "[info]Suspend cancelled by a start, the machine keeps running"
        );
        assert_eq!(text("start", "starting", Value::Null), "");
        let waits = json!({ "delay_ms": 4000, "restart_count": 3 });
        assert_eq!(text("start", "starting", waits), "[info]Restarting machine in 4s (restart 3)");
        let at_once = json!({ "delay_ms": 0, "restart_count": 1 });
        assert_eq!(text("start", "starting", at_once), "[info]Restarting machine (restart 1)");
    }

    #[test]
    fn exits_tell_their_code_and_cause() {
        for (request, expected) in [
            (
                exit(0, -1, false, json!({})),
                "[info]Machine exited with exit code 0, not restarting",
            ),
            (exit(0, -1, true, json!({})), "[info]Machine exited with exit code 0, stop requested"),
            (
                exit(3, -1, false, json!({ "restarting": true })),
                "[error]Machine exited with exit code 3",
            ),
            (
                exit(139, 11, false, json!({})),
                "[error]Machine exited with exit code 139 (SIGSEGV), not restarting",
            ),
            (
                exit(137, 9, false, json!({ "cause": "guest_oom" })),
                "[error]Machine exited with exit code 137 (SIGKILL), out of memory: killed by the \
                 guest's kernel, not restarting",
            ),
            (
                exit(
                    -1,
                    -1,
                    false,
                    json!({ "cause": "vmm_crashed", "message": "signal 11", "restarting": true }),
                ),
                "[error]VM crashed: signal 11",
            ),
            (
                exit(137, -1, true, json!({ "cause": "killed" })),
                "[info]Machine killed: it did not stop in time, exit code 137, stop requested",
            ),
        ] {
            assert_eq!(text("exit", "stopped", request), expected);
        }
        let mut given_up = exit(1, -1, false, json!({}));
        given_up["max_restart_count"] = json!(10);
        let expected = "[error]Machine exited with exit code 1, not restarting | [error]machine \
                        has reached its max restart count of 10";
        assert_eq!(text("exit", "stopped", given_up), expected);
    }

    #[test]
    fn failures_tell_their_reason_and_what_became_of_the_machine() {
        let error = json!({ "error": "disk is full" });
        for (kind, status, expected) in [
            ("start", "failed", "[error]Start failed: disk is full"),
            (
                "suspend",
                "started",
                "[error]Suspend failed, the machine keeps running: disk is full",
            ),
            (
                "suspend",
                "suspended",
                "[error]Start failed, the machine stays suspended: disk is full",
            ),
            ("update", "started", "[error]Update failed, the machine keeps running: disk is full"),
            ("stop", "stopped", "[error]Stop failed: disk is full"),
        ] {
            assert_eq!(text(kind, status, error.clone()), expected);
        }
        assert_eq!(text("suspend", "suspended", Value::Null), "[info]Machine suspended");
        assert_eq!(
            text("host_status", "started", json!({ "message": "x", "level": "info" })),
            "[info]x"
        );
        assert_eq!(text("oom", "started", json!({ "message": "x" })), "[error]x");
        for (kind, status) in [
            ("launch", "created"),
            ("stop", "stopping"),
            ("cordon", "started"),
            ("destroy", "destroyed"),
        ] {
            assert_eq!(text(kind, status, Value::Null), "");
        }
    }
}
