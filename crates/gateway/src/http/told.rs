//! What workers were told of network policies.

use std::{collections::HashMap, sync::Arc};

use caddis_api::WorkerId;
use caddis_bus::message::AppPolicies;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// What a worker was told last; held while it is told.
pub(crate) type OfWorker = Arc<tokio::sync::Mutex<Option<Told>>>;

/// What it has taken.
#[derive(Debug)]
pub(crate) struct Told {
    /// The number under which it was told: where that is still the catalog's, no other gateway has
    /// told it since.
    pub revision: u64,
    pub apps: Vec<AppPolicies>,
}

/// What workers know.
#[derive(Debug, Default)]
pub(crate) struct ToldPolicies {
    workers: Mutex<HashMap<WorkerId, OfWorker>>,
    /// All of them are to be told.
    pub due: Notify,
}

impl ToldPolicies {
    /// What a worker knows.
    pub fn of(&self, worker: &WorkerId) -> OfWorker {
        self.workers.lock().entry(worker.clone()).or_default().clone()
    }

    /// It may be another process than before, which knows nothing.
    pub fn forget(&self, worker: &WorkerId) {
        self.workers.lock().remove(worker);
    }
}
