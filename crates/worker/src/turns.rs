//! Turns among the machines of a host: how many do at once what would only take longer if more did
//! it, and what one machine does once at a time.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Weak},
    time::Duration,
};

use caddis_api::MachineId;
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;

use crate::WorkerConfig;

/// How many machines are saved at once: more would only wait for the disk, with their programs
/// standing still.
const SUSPENDS: usize = 2;
/// How many health checks are tried at once, but for those that wait for an answer since long. One
/// takes a millisecond, or its timeout where nobody answers.
const CHECKS: usize = 256;
/// How many health checks may wait for an answer since long, each with a connection.
const SLOW_CHECKS: usize = 2048;
/// How long a launch counts as one of those under way. A guest that takes longer waits for
/// something else than the processor, or is never coming; others go on beside it then.
const LAUNCH: Duration = Duration::from_secs(5);

/// What a host lets only so many machines do at once.
pub struct Queues {
    /// Start after the host was rebooted.
    pub recoveries: Arc<Semaphore>,
    /// Be suspended.
    pub suspends: Arc<Semaphore>,
    /// Launch a VM, until its program runs: the processors shared by all that were asked for
    /// together, each would be ready when the last one is.
    pub launches: Arc<Semaphore>,
    /// Try a health check.
    pub checks: Arc<Semaphore>,
    /// Wait for the answer to a health check since long.
    pub slow_checks: Arc<Semaphore>,
}

impl Queues {
    /// As many as are configured.
    pub fn new(config: &WorkerConfig) -> Self {
        Self {
            recoveries: Arc::new(Semaphore::new(config.restart_concurrency.max(1))),
            suspends: Arc::new(Semaphore::new(SUSPENDS)),
            launches: Arc::new(Semaphore::new(config.launch_concurrency.max(1))),
            checks: Arc::new(Semaphore::new(CHECKS)),
            slow_checks: Arc::new(Semaphore::new(SLOW_CHECKS)),
        }
    }
}

/// What is done to the same thing once at a time: of two requests to make the same machine, the
/// second waits for what becomes of the first.
pub struct Creations<Id = MachineId>(Mutex<HashMap<Id, Weak<AsyncMutex<()>>>>);

impl<Id> Default for Creations<Id> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<Id: Clone + Eq + Hash> Creations<Id> {
    /// Begins, until what this returns is dropped.
    pub async fn begin(&self, id: &Id) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock();
            turns.retain(|_, turn| turn.strong_count() > 0);
            match turns.get(id).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::default();
                    turns.insert(id.clone(), Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }
}

/// The turns that a machine has.
#[derive(Default)]
pub struct Turns {
    operation: Option<OwnedSemaphorePermit>,
    launch: Option<AbortOnDropHandle<()>>,
}

impl Turns {
    /// Keeps one until the operation ends.
    pub fn keep(&mut self, permit: OwnedSemaphorePermit) {
        self.operation = Some(permit);
    }

    /// Keeps one to launch until the machine runs, but not for longer than [`LAUNCH`].
    pub fn keep_for_launch(&mut self, permit: OwnedSemaphorePermit) {
        let given_back = async move {
            tokio::time::sleep(LAUNCH).await;
            drop(permit);
        };
        self.launch = Some(AbortOnDropHandle::new(tokio::spawn(given_back)));
    }

    /// Whether it has had its turn to launch.
    pub fn may_launch(&self) -> bool {
        self.launch.is_some()
    }

    /// Gives back the one to launch: it is to wait for the next.
    pub fn end_launch(&mut self) {
        self.launch = None;
    }

    /// Gives back all.
    pub fn end(&mut self) {
        *self = Self::default();
    }
}
