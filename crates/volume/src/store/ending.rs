//! Work on a volume that ends some moments after it was dropped, since a process has to end first.

use std::sync::Arc;

use tokio::sync::{oneshot, watch};

use super::{Busy, Inner};
use crate::VolumeId;

/// Ends the work when it is dropped. Who wants the volume then waits by [`Inner::settled`].
#[derive(Debug)]
pub(super) struct EndsWhenDropped {
    inner: Arc<Inner>,
    id: VolumeId,
    ended: watch::Receiver<()>,
    _end: oneshot::Sender<()>,
}

impl EndsWhenDropped {
    /// For the task that has the volume, which ends when the second is ready.
    pub(super) fn new(busy: &Busy) -> (Self, oneshot::Receiver<()>) {
        let (end, told) = oneshot::channel();
        let (inner, id, ended) = (busy.inner.clone(), busy.id.clone(), busy.ended.subscribe());
        (Self { inner, id, ended, _end: end }, told)
    }
}

impl Drop for EndsWhenDropped {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        if self.ended.has_changed().is_ok() && state.busy.contains_key(&self.id) {
            state.ending.insert(self.id.clone(), self.ended.clone());
        }
    }
}

impl Inner {
    /// Waits for work on a volume that was dropped to have ended.
    pub(super) async fn settled(&self, id: &VolumeId) {
        let ending = self.state.lock().ending.get(id).cloned();
        if let Some(mut ending) = ending {
            // It never changes, so this is when it is closed.
            let _ = ending.changed().await;
        }
    }
}
