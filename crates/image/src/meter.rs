//! Progress of one image, added up from all that works on it at once.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::watch;

use crate::Progress;

/// Counts and publishes.
#[derive(Debug)]
pub(crate) struct Meter {
    sender: watch::Sender<Progress>,
    pull_total: u64,
    pulled: AtomicU64,
    unpack_total: u64,
    unpacked: AtomicU64,
}

impl Meter {
    pub(crate) fn new(
        sender: watch::Sender<Progress>,
        pull_total: u64,
        unpack_total: u64,
    ) -> Arc<Self> {
        let (pulled, unpacked) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { sender, pull_total, pulled, unpack_total, unpacked })
    }

    /// So many more bytes came in; negative when a transfer had to start over.
    pub(crate) fn pulled(&self, bytes: i64) {
        if bytes >= 0 {
            self.pulled.fetch_add(bytes.unsigned_abs(), Ordering::Relaxed);
        } else {
            self.pulled.fetch_sub(bytes.unsigned_abs(), Ordering::Relaxed);
        }
        self.publish();
    }

    /// So many more compressed bytes were unpacked.
    pub(crate) fn unpacked(&self, bytes: u64) {
        self.unpacked.fetch_add(bytes, Ordering::Relaxed);
        self.publish();
    }

    /// The last step, which has no measure.
    pub(crate) fn building(&self) {
        self.sender.send_replace(Progress {
            step: "build".to_owned(),
            bytes_done: 0,
            bytes_total: 0,
        });
    }

    fn publish(&self) {
        let pulled = self.pulled.load(Ordering::Relaxed);
        let (step, bytes_done, bytes_total) = if pulled < self.pull_total {
            ("pull", pulled, self.pull_total)
        } else {
            (
                "unpack",
                self.unpacked.load(Ordering::Relaxed).min(self.unpack_total),
                self.unpack_total,
            )
        };
        self.sender.send_if_modified(|progress| {
            // Hundreds of updates a second would help nobody: one per cent is enough.
            let worth_it = progress.step != step
                || bytes_done < progress.bytes_done
                || bytes_done - progress.bytes_done >= bytes_total / 100
                || bytes_done == bytes_total;
            if worth_it {
                *progress = Progress { step: step.to_owned(), bytes_done, bytes_total };
            }
            worth_it
        });
    }
}
