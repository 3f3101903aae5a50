//! What volumes hold, as far as nobody reads their files: contents that tests write, for snapshots
//! that are taken of them.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::Path,
    sync::Arc,
};

use async_trait::async_trait;
use caddis_api::VolumeId;
use caddis_snapshot::{Extent, SnapshotError, Source};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::host::Exports;

/// What is written at once, bytes.
pub const BLOCK: usize = 64 << 10;

/// Exports of volumes. Clones are the same.
#[derive(Clone, Default)]
pub struct FakeExports {
    volumes: Arc<Mutex<HashMap<VolumeId, Contents>>>,
    /// Reads wait while this is so.
    held: watch::Sender<bool>,
    /// How many connections wait.
    waiting: watch::Sender<usize>,
}

#[derive(Clone, Default)]
struct Contents {
    /// Blocks that were written, by their number, with when.
    blocks: BTreeMap<u64, (u8, u64)>,
    writes: u64,
    /// When it was last connected to.
    seen: u64,
    /// Blocks that were read, in all.
    reads: u64,
    /// So many connections fail.
    failing: usize,
}

struct FakeSource {
    exports: FakeExports,
    volume: VolumeId,
    size: u64,
    contents: Contents,
    /// What was written later than this has changed since the previous snapshot.
    since: Option<u64>,
}

impl FakeExports {
    fn with<T>(&self, volume: &VolumeId, work: impl FnOnce(&mut Contents) -> T) -> T {
        work(self.volumes.lock().entry(volume.clone()).or_default())
    }

    /// Fills a block of a volume.
    pub fn write(&self, volume: &VolumeId, block: u64, byte: u8) {
        self.with(volume, |contents| {
            contents.writes += 1;
            contents.blocks.insert(block, (byte, contents.writes));
        });
    }

    /// How many blocks of a volume were read so far.
    pub fn reads(&self, volume: &VolumeId) -> u64 {
        self.with(volume, |contents| contents.reads)
    }

    /// So many connections to a volume fail from now on.
    pub fn fail(&self, volume: &VolumeId, times: usize) {
        self.with(volume, |contents| contents.failing = times);
    }

    /// Has reads wait from now on, or not any more.
    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Waits until so many sources wait.
    pub async fn until_waiting(&self, count: usize) {
        let mut waiting = self.waiting.subscribe();
        // The sender is ours.
        let _ = waiting.wait_for(|waiting| *waiting >= count).await;
    }
}

/// Counts who waits, also when it is dropped.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|count| *count += 1);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[async_trait]
impl Exports for FakeExports {
    async fn connect(
        &self,
        volume: &VolumeId,
        _: &Path,
        _: &str,
        changed: Option<&str>,
    ) -> Result<Box<dyn Source>, SnapshotError> {
        let refused = || SnapshotError::Source(io::Error::other("told to fail"));
        let (contents, since) = self.with(volume, |contents| {
            if contents.failing > 0 {
                contents.failing -= 1;
                return Err(refused());
            }
            let since = changed.map(|_| contents.seen);
            contents.seen = contents.writes;
            Ok((contents.clone(), since))
        })?;
        let (exports, volume) = (self.clone(), volume.clone());
        Ok(Box::new(FakeSource { exports, volume, size: 1 << 30, contents, since }))
    }
}

#[async_trait]
impl Source for FakeSource {
    fn size(&self) -> u64 {
        self.size
    }

    async fn extents(&mut self, offset: u64, length: u64) -> Result<Vec<Extent>, SnapshotError> {
        if *self.exports.held.borrow() {
            let _waiting = Waiting::begin(&self.exports.waiting);
            let mut held = self.exports.held.subscribe();
            // The sender is ours.
            let _ = held.wait_for(|held| !held).await;
        }
        let (block, end) = (BLOCK as u64, offset + length);
        let (mut at, mut extents) = (offset, Vec::new());
        while at < end {
            let number = at / block;
            let written = self.contents.blocks.get(&number);
            // Up to the end of this block, or of what was never written.
            let next = match written {
                Some(_) => (number + 1) * block,
                None => {
                    let next = self.contents.blocks.range(number..).next();
                    next.map_or(end, |(next, _)| next * block)
                }
            };
            let length = next.min(end) - at;
            let is_unchanged = match (self.since, written) {
                (Some(since), Some((_, when))) => *when <= since,
                (Some(_), None) => true,
                (None, _) => false,
            };
            extents.push(Extent { offset: at, length, is_zero: written.is_none(), is_unchanged });
            at += length;
        }
        Ok(extents)
    }

    async fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), SnapshotError> {
        let block = BLOCK as u64;
        for (at, byte) in (offset..).zip(buffer.iter_mut()) {
            *byte = self.contents.blocks.get(&(at / block)).map_or(0, |(byte, _)| *byte);
        }
        let read = (buffer.len() as u64).div_ceil(block);
        self.exports.with(&self.volume, |contents| contents.reads += read);
        Ok(())
    }
}
