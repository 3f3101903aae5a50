//! Where a boot's time goes.

use std::time::Instant;

/// Named steps and the microseconds each took.
#[derive(Debug)]
pub struct Timing {
    last: Instant,
    steps: Vec<(String, u64)>,
}

impl Timing {
    /// Begins with the time the kernel took.
    pub fn begin() -> Self {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
        let seconds = uptime
            .split_whitespace()
            .next()
            .and_then(|word| word.parse::<f64>().ok())
            .unwrap_or(0.0);
        Self { last: Instant::now(), steps: vec![("kernel".to_owned(), (seconds * 1e6) as u64)] }
    }

    /// Of what is nobody's start.
    pub fn unused() -> Self {
        Self { last: Instant::now(), steps: Vec::new() }
    }

    /// What was done since the last call.
    pub fn step(&mut self, name: &str) {
        let now = Instant::now();
        let took = u64::try_from(now.duration_since(self.last).as_micros()).unwrap_or(u64::MAX);
        self.steps.push((name.to_owned(), took));
        self.last = now;
    }

    /// All so far.
    pub fn steps(&self) -> Vec<(String, u64)> {
        self.steps.clone()
    }
}
