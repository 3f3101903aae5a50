//! What passed through the proxy, in numbers.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use caddis_api::MachineId;
use parking_lot::Mutex;

use crate::{AppName, ErrorCode};

/// At most one error of a kind is reported in so many milliseconds.
const REPORT_INTERVAL: u64 = 10_000;

/// Connections of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionCounters {
    /// Open now.
    pub open: usize,
    /// Closed at once, as there were too many, since the proxy started or the app was first routed.
    pub refused: u64,
}

/// Numbers of one app since the proxy started or the app was first routed.
#[derive(Debug, Clone)]
pub struct AppCounters {
    /// The app.
    pub app: AppName,
    /// Requests and connections that wait for a machine now.
    pub waiting: u32,
    /// Connections to addresses of its own.
    pub connections: ConnectionCounters,
    /// Clients of UDP services that are kept at a machine now.
    pub udp_flows: usize,
    /// Datagrams that were dropped: no machine took them, or a buffer or limit was full.
    pub dropped_datagrams: u64,
    /// Errors by code.
    pub errors: BTreeMap<ErrorCode, u64>,
    /// Its machines.
    pub machines: Vec<MachineCounters>,
}

/// Numbers of one machine.
#[derive(Debug, Clone)]
pub struct MachineCounters {
    /// The machine.
    pub machine: MachineId,
    /// Connections opened to it.
    pub connections: u64,
    /// HTTP requests sent to it.
    pub requests: u64,
    /// Bytes of bodies and streams sent to it.
    pub bytes_in: u64,
    /// Bytes of bodies and streams that it sent.
    pub bytes_out: u64,
    /// Streams open now, and when that last changed.
    pub activity: Activity,
    /// What the proxy last did about it.
    pub last_decision: Option<Decision>,
}

/// What a machine has to do: what its going to sleep depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activity {
    /// Requests and connections in progress.
    pub open_streams: u32,
    /// For how long nothing began or ended.
    pub quiet_for: Duration,
}

/// What the proxy did, or decided not to do, about a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// When.
    pub at: SystemTime,
    /// What: for example "started", "suspended", "kept running".
    pub action: &'static str,
    /// Why.
    pub reason: String,
}

impl Decision {
    pub(crate) fn now(action: &'static str, reason: impl Into<String>) -> Self {
        Self { at: SystemTime::now(), action, reason: reason.into() }
    }
}

/// When an error that anybody can cause was last reported, by the proxy's clock. 0: never.
#[derive(Debug, Default)]
pub(crate) struct Reported(AtomicU64);

impl Reported {
    /// Whether it may be reported now.
    pub(crate) fn may_report(&self, now: u64) -> bool {
        let before = self.0.load(Ordering::Relaxed);
        let is_due = before == 0 || now >= before + REPORT_INTERVAL;
        is_due && self.0.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// Counters of one machine as they are kept.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub connections: AtomicU64,
    pub requests: AtomicU64,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    pub decision: Mutex<Option<Decision>>,
}

pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

pub(crate) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
