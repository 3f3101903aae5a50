//! Places at machines: what counts towards the limits, taken and given back. The counters are of
//! this process; when a machine's host counts instead, this is the part that asks it.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, futures::Notified};

use crate::machine::Machine;

/// Wakes what waits for a place at a port of an app.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Those who take any place, in the order of arrival: one is told of each.
    any: Notify,
    /// Those who can't use every place: all are told, as one of them may not pass it on.
    selective: Notify,
}

impl Queue {
    /// Ends when a place was freed.
    pub(crate) fn freed(&self, is_selective: bool) -> Notified<'_> {
        if is_selective { self.selective.notified() } else { self.any.notified() }
    }

    fn tell(&self) {
        self.selective.notify_waiters();
        self.any.notify_one();
    }
}

/// What one service of one machine has in progress.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    in_use: AtomicU32,
    /// Those of the ports that lead here by the newest routes.
    pub(crate) queues: ArcSwap<Vec<Arc<Queue>>>,
}

impl Slot {
    pub(crate) fn in_use(&self) -> u32 {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Counts one more, unless that would exceed the hard limit.
    fn take(&self, hard: Option<u32>) -> bool {
        let limit = hard.unwrap_or(u32::MAX);
        self.in_use
            .fetch_update(Ordering::SeqCst, Ordering::Relaxed, |in_use| {
                (in_use < limit).then(|| in_use + 1)
            })
            .is_ok()
    }
}

/// A place at a machine, until dropped. While there is one the machine has an open stream.
#[derive(Debug)]
pub(crate) struct Permit {
    pub(crate) machine: Arc<Machine>,
    slot: Arc<Slot>,
}

impl Permit {
    /// A place, if there is one and the machine is not on its way to sleep.
    pub(crate) fn take(
        machine: &Arc<Machine>,
        slot: &Arc<Slot>,
        hard: Option<u32>,
    ) -> Option<Self> {
        if !slot.take(hard) {
            return None;
        }
        machine.begin_stream();
        let permit = Self { machine: machine.clone(), slot: slot.clone() };
        // Only now: whoever puts the machine to sleep closes it first and then counts its streams,
        // so that one of us sees the other.
        machine.is_open().then_some(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.slot.in_use.fetch_sub(1, Ordering::SeqCst);
        self.machine.end_stream();
        for queue in self.slot.queues.load().iter() {
            queue.tell();
        }
    }
}
