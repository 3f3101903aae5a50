//! Layers: from compressed bytes to files below one directory.
//!
//! ```text
//!  blob ─▶ inflate (own thread: decompress, hash, count) ─▶ tar (headers, limits)
//!       ─▶ unpack (files, whiteouts)
//! ```

pub(crate) mod compression;
pub(crate) mod inflate;
mod numbers;
pub(crate) mod pax;
pub(crate) mod sparse;
pub(crate) mod tar;
pub(crate) mod tree;
pub(crate) mod unpack;

use std::sync::atomic::{AtomicU64, Ordering};

use crate::ImageError;

/// What all layers of one image may still cost; each step takes its share and fails when there is
/// none left.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: AtomicU64,
    entries: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limits: &crate::Limits) -> Self {
        Self {
            bytes: AtomicU64::new(limits.unpacked_bytes),
            entries: AtomicU64::new(limits.entries),
        }
    }

    pub(crate) fn take_bytes(&self, bytes: u64) -> Result<(), ImageError> {
        take(&self.bytes, bytes).ok_or_else(|| {
            ImageError::too_large(
                "the unpacked image",
                "its layers inflate to more than limits.unpacked_bytes",
            )
        })
    }

    pub(crate) fn take_entry(&self) -> Result<(), ImageError> {
        take(&self.entries, 1).ok_or_else(|| {
            ImageError::too_large("the unpacked image", "it has more files than limits.entries")
        })
    }
}

fn take(left: &AtomicU64, amount: u64) -> Option<()> {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(amount))
        .ok()
        .map(drop)
}
