//! Where the time of a start went: what the `start` event tells, and `caddis machine start
//! --timing` shows.

use std::time::Duration;

use caddis_vmm::StartKind;
use serde_json::{Value, json};

use crate::{live::RunningVm, steps::Step};

/// Steps so far, in order.
#[derive(Debug, Default)]
pub struct Timing {
    steps: Vec<Value>,
}

impl Timing {
    /// A step of the operation took so long.
    pub fn step(&mut self, step: Step, took: Duration) {
        self.push("host", step.as_str(), took);
    }

    /// What launching consisted of.
    pub fn launched(&mut self, live: &RunningVm) {
        for (name, took) in live.vm.start_steps() {
            self.push("vmm", name, *took);
        }
    }

    /// What the host did.
    pub fn steps(self) -> Value {
        Value::Array(self.steps)
    }

    /// All of it, with what the guest did.
    pub fn finish(mut self, live: &RunningVm) -> Value {
        let guest = live.guest.borrow();
        // Of a VM that was restored, what came before it waited is its template's.
        let waited =
            guest.boot_steps.iter().position(|(name, _)| name == "wait").map_or(0, |wait| wait + 1);
        let kind = live.vm.start().kind;
        if kind == StartKind::Resume {
            // Its boot was another start's.
            return Value::Array(self.steps);
        }
        let restored = kind == StartKind::Template;
        for (name, micros) in guest.boot_steps.iter().skip(if restored { waited } else { 0 }) {
            self.push("guest", name, Duration::from_micros(*micros));
        }
        Value::Array(self.steps)
    }

    fn push(&mut self, place: &str, step: &str, took: Duration) {
        // Microseconds are exact in a double for longer than any start.
        let milliseconds = took.as_micros() as f64 / 1000.0;
        self.steps.push(json!({ "where": place, "step": step, "ms": milliseconds }));
    }
}
