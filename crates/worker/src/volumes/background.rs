//! What is done with volumes beside their machines: snapshots are taken of them, and what they are
//! restored from is copied. One thing at a time with each volume, and none while something more
//! urgent wants it: that breaks it off, and it is begun anew later.
//!
//! ```text
//!   begin ─▶ Work ── done ──▶ free ◀── dropped ── Wanted ◀── want: Work is cancelled, and its end
//!     │ there is some, or it is wanted                              waited for
//!     ▼
//!   None: when something changes, it is tried again
//! ```

use std::{collections::HashMap, sync::Arc};

use caddis_api::VolumeId;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Of all volumes of a host. Clones are the same.
#[derive(Clone)]
pub struct Background {
    uses: Arc<Mutex<HashMap<VolumeId, Use>>>,
    changed: watch::Sender<()>,
    ending: CancellationToken,
}

#[derive(Default)]
struct Use {
    /// How many want it for something more urgent.
    wanted: usize,
    /// Breaks off what is being done.
    work: Option<CancellationToken>,
}

/// Something is done with a volume, until this is dropped.
pub struct Work {
    background: Background,
    volume: VolumeId,
    /// It is to be broken off.
    pub cancelled: CancellationToken,
}

/// Nothing is done with a volume until this is dropped.
pub struct Wanted {
    background: Background,
    volume: VolumeId,
}

impl Background {
    /// Of no volume, until the worker ends.
    pub fn new(ending: &CancellationToken) -> Self {
        let changed = watch::Sender::new(());
        Self { uses: Arc::default(), changed, ending: ending.clone() }
    }

    /// Begins something with a volume; `None` while something else is done with it, or it is
    /// wanted.
    pub fn begin(&self, volume: &VolumeId) -> Option<Work> {
        let mut uses = self.uses.lock();
        let entry = uses.entry(volume.clone()).or_default();
        if entry.wanted > 0 || entry.work.is_some() || self.ending.is_cancelled() {
            return None;
        }
        let cancelled = self.ending.child_token();
        entry.work = Some(cancelled.clone());
        Some(Work { background: self.clone(), volume: volume.clone(), cancelled })
    }

    /// Breaks off what is being done with a volume, waits for its end, and keeps others from
    /// beginning something.
    pub async fn want(&self, volume: &VolumeId) -> Wanted {
        let mut changed = self.changed.subscribe();
        let wanted = {
            let mut uses = self.uses.lock();
            let entry = uses.entry(volume.clone()).or_default();
            entry.wanted += 1;
            entry.work.iter().for_each(CancellationToken::cancel);
            Wanted { background: self.clone(), volume: volume.clone() }
        };
        while self.has_work(volume) {
            // The sender is ours.
            let _ = changed.changed().await;
        }
        wanted
    }

    /// Whether something is being done with a volume.
    pub fn has_work(&self, volume: &VolumeId) -> bool {
        self.uses.lock().get(volume).is_some_and(|entry| entry.work.is_some())
    }

    /// Told when something has ended, or is not wanted any more.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn end(&self, volume: &VolumeId, end: impl FnOnce(&mut Use)) {
        {
            let mut uses = self.uses.lock();
            if let Some(entry) = uses.get_mut(volume) {
                end(entry);
                if entry.wanted == 0 && entry.work.is_none() {
                    uses.remove(volume);
                }
            }
        }
        self.changed.send_replace(());
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.background.end(&self.volume, |entry| entry.work = None);
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.background.end(&self.volume, |entry| entry.wanted -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_wanted_is_given_back_first_and_nobody_else_begins_something_meanwhile() {
        let ending = CancellationToken::new();
        let background = Background::new(&ending);
        let volume: VolumeId = "vol_1".parse().unwrap();
        let work = background.begin(&volume).unwrap();
        assert!(background.begin(&volume).is_none(), "one thing at a time");
        assert!(background.begin(&"vol_2".parse().unwrap()).is_some(), "with each");
        let cancelled = work.cancelled.clone();
        let ends = async {
            cancelled.cancelled().await;
            drop(work);
        };
        let (wanted, ()) = tokio::join!(background.want(&volume), ends);
        let other = background.want(&volume).await;
        drop(wanted);
        assert!(background.begin(&volume).is_none(), "still wanted by another");
        drop(other);
        drop(background.begin(&volume).unwrap());
        assert!(background.uses.lock().is_empty());
        ending.cancel();
        assert!(background.begin(&volume).is_none(), "the worker ends");
    }
}
