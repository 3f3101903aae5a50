//! What workers were told last of something that they are told all of at once.

use std::{collections::HashMap, sync::Arc};

use caddis_api::WorkerId;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// What a worker was told last; held while it is told.
pub(crate) type OfWorker<T> = Arc<tokio::sync::Mutex<Option<Told<T>>>>;

/// What a worker has taken.
#[derive(Debug)]
pub(crate) struct Told<T> {
    /// The number under which it was told: where that is still the catalog's, no other gateway has
    /// told it since.
    pub revision: u64,
    pub content: T,
}

/// What workers know.
#[derive(Debug)]
pub(crate) struct Workers<T> {
    told: Mutex<HashMap<WorkerId, OfWorker<T>>>,
    /// All of them are to be told.
    pub due: Notify,
}

impl<T> Default for Workers<T> {
    fn default() -> Self {
        Self { told: Mutex::default(), due: Notify::default() }
    }
}

impl<T> Workers<T> {
    pub(crate) fn of(&self, worker: &WorkerId) -> OfWorker<T> {
        self.told.lock().entry(worker.clone()).or_default().clone()
    }

    /// It may be another process than before, which knows nothing.
    pub(crate) fn forget(&self, worker: &WorkerId) {
        self.told.lock().remove(worker);
    }
}
