//! Which things a task in the background is busy with, so that there is one task for each.

use std::{collections::HashSet, hash::Hash};

use parking_lot::{Mutex, MutexGuard};

/// The things that tasks of this process are busy with.
pub(crate) struct Underway<K>(Mutex<HashSet<K>>);

impl<K> Default for Underway<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> Underway<K> {
    /// Notes that a task begins; false if one is busy with it.
    pub fn begin(&self, thing: K) -> bool {
        self.lock().insert(thing)
    }

    /// Notes that the task has ended.
    pub fn end(&self, thing: &K) {
        self.lock().remove(thing);
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<K>> {
        self.0.lock()
    }
}
