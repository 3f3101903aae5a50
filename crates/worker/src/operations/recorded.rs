//! Operations are recorded as the releases before wrote and read them.
#![allow(clippy::unwrap_used, reason = "tests")]

use caddis_api::{MachineState, Signal, UnixMillis};
use serde_json::json;

use super::*;
use crate::restart::Verdict;

/// What the last release recorded of each operation.
fn recorded() -> Vec<(Value, OperationKind)> {
    let plan = StopPlan { signal: Signal::TERM, timeout_ms: 5000, is_default: true };
    let stop = json!({ "signal": "SIGTERM", "timeout_ms": 5000, "is_default": true });
    let start = |reason, suspend_after| OperationKind::Start(Start { reason, suspend_after });
    let flags = |not_before: u64, automatic: bool, recovery: bool| {
        json!({
            "kind": "start",
            "not_before": not_before, "automatic": automatic, "recovery": recovery,
        })
    };
    let with = |kind: &str, mut fields: Value| {
        fields["kind"] = json!(kind);
        fields
    };
    vec![
        (json!({ "kind": "create" }), OperationKind::Create),
        (flags(0, false, false), start(StartReason::User, false)),
        (
            flags(7, true, false),
            start(StartReason::RestartPolicy { not_before: UnixMillis::new(7) }, false),
        ),
        (flags(0, true, false), start(StartReason::Schedule, false)),
        (flags(0, true, true), start(StartReason::Recovery, false)),
        (
            json!({
                "kind": "start",
                "not_before": 0, "automatic": false, "recovery": false, "suspend_after": true,
            }),
            start(StartReason::User, true),
        ),
        (with("stop", stop.clone()), OperationKind::Stop(Stop(plan.clone()))),
        (
            with("restart", stop.clone()),
            OperationKind::Restart(Restart { plan: plan.clone(), unhealthy: None }),
        ),
        (
            json!({ "kind": "update", "stop": stop, "run": true }),
            OperationKind::Update(Update { stop: plan, run: true }),
        ),
        (json!({ "kind": "suspend" }), OperationKind::Suspend(Suspend { by_traffic: false })),
        (
            json!({ "kind": "resume", "spoiled": true }),
            OperationKind::Resume(Resume { spoiled: true, by_traffic: false }),
        ),
        (
            json!({ "kind": "rest", "reason": "no" }),
            OperationKind::Rest(Rest { reason: "no".to_owned() }),
        ),
        (
            json!({ "kind": "wake", "failure": null }),
            OperationKind::CancelSuspend(CancelSuspend { failure: None, by_traffic: false }),
        ),
        (
            json!({ "kind": "exit", "then": { "verdict": "restart", "after_ms": 1000 } }),
            OperationKind::Exit(Exit { then: Verdict::Restart { after_ms: 1000 } }),
        ),
        (json!({ "kind": "destroy" }), OperationKind::Destroy),
        (
            json!({ "kind": "abandon", "into": "stopped", "of": "stop", "reason": "no" }),
            OperationKind::Abandon(Abandon {
                into: MachineState::Stopped,
                of: "stop".to_owned(),
                reason: "no".to_owned(),
            }),
        ),
    ]
}

#[test]
fn each_operation_is_read_and_written_as_by_the_last_release() {
    for (json, kind) in recorded() {
        assert_eq!(serde_json::from_value::<OperationKind>(json.clone()).unwrap(), kind, "{json}");
        assert_eq!(serde_json::to_value(&kind).unwrap(), json);
        // As it is in a machine's record.
        let mut row = json;
        let more = json!({
            "step": 0, "attempt": 1, "started_at": 5, "deadline": 9, "last_error": null,
            "retry_at": null,
        });
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let operation: Operation = serde_json::from_value(row.clone()).unwrap();
        assert_eq!(operation.kind, kind);
        assert_eq!(serde_json::to_value(&operation).unwrap(), row);
    }
}

#[test]
fn what_traffic_asks_for_is_to_the_last_release_as_if_a_client_had() {
    let plan = StopPlan { signal: Signal::TERM, timeout_ms: 5000, is_default: true };
    for goal in [Goal::Start, Goal::Suspend, Goal::Resume] {
        let kind = OperationKind::of(goal, plan.clone(), Source::Proxy);
        let mut json = serde_json::to_value(&kind).unwrap();
        assert_eq!(serde_json::from_value::<OperationKind>(json.clone()).unwrap(), kind);
        assert_eq!(kind.rules().asked_by(), Source::Proxy);
        json.as_object_mut().unwrap().remove("by_traffic");
        let by_a_client = OperationKind::of(goal, plan.clone(), Source::User);
        assert_eq!(serde_json::from_value::<OperationKind>(json).unwrap(), by_a_client);
    }
}

#[test]
fn a_start_after_an_update_is_a_start_like_any_to_the_last_release() {
    let start = Start::because(StartReason::Update);
    let mut json = serde_json::to_value(&start).unwrap();
    assert_eq!(serde_json::from_value::<OperationKind>(json.clone()).unwrap(), start);
    json.as_object_mut().unwrap().remove("after_update");
    assert_eq!(json, serde_json::to_value(OperationKind::START).unwrap());
}
