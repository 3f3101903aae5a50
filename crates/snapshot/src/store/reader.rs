//! Reading a snapshot.

use std::{collections::VecDeque, io, ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::{
    Inner,
    keys::{Keys, Kind, OVERHEAD},
    manifest::{Entry, Manifest, SEGMENT},
    objects::Fault,
};
use crate::{Snapshot, SnapshotError};

/// Chunks that are kept decoded.
const CHUNKS: usize = 64;
/// Segments that are kept, of 36 KiB each.
const SEGMENTS: usize = 64;
/// Chunks of one read that are fetched at the same time.
const AT_ONCE: usize = 8;

/// Reads a snapshot, of which each chunk is verified. Clones share what was read last.
#[derive(Clone)]
pub struct Reader {
    inner: Arc<Open>,
}

struct Open {
    store: Arc<Inner>,
    keys: Keys,
    manifest: Manifest,
    segments: Recent<Arc<Vec<Entry>>>,
    chunks: Recent<Bytes>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reader").field(&self.inner.manifest.snapshot.name).finish()
    }
}

impl Reader {
    pub(super) fn new(store: Arc<Inner>, keys: Keys, manifest: Manifest) -> Self {
        let (segments, chunks) = (Recent::new(SEGMENTS), Recent::new(CHUNKS));
        Self { inner: Arc::new(Open { store, keys, manifest, segments, chunks }) }
    }

    /// What it reads.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.inner.manifest.snapshot
    }

    /// Fills a buffer with what is at an offset. Several that want the same chunk fetch it once.
    ///
    /// # Errors
    /// `Damaged` for a chunk that is missing or not what it should be; `Store` when the store is
    /// away; `Source` for a part that is not in the volume.
    pub async fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SnapshotError> {
        let end = self.end(offset, buffer.len() as u64)?;
        let size = u64::from(self.inner.manifest.chunk_size);
        let chunks = offset / size..end.div_ceil(size);
        let mut fetched = futures::stream::iter(chunks)
            .map(async |index| Ok::<_, SnapshotError>((index, self.inner.chunk(index).await?)))
            .buffered(AT_ONCE);
        while let Some((index, chunk)) = fetched.try_next().await? {
            let begin = index * size;
            let (from, to) = (offset.max(begin), end.min(begin + size));
            let target = &mut buffer[within(from - offset..to - offset)];
            match chunk {
                Some(chunk) => target.copy_from_slice(&chunk[within(from - begin..to - begin)]),
                None => target.fill(0),
            }
        }
        Ok(())
    }

    /// Whether the volume is zeroes at `offset`, and for how many bytes from there this is so, at
    /// most `length`. Reads lists of chunks only.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn zeroes(&self, offset: u64, length: u64) -> Result<(bool, u64), SnapshotError> {
        let end = self.end(offset, length)?;
        let size = u64::from(self.inner.manifest.chunk_size);
        let mut first = None;
        let mut index = offset / size;
        while index * size < end {
            let is_zero = self.inner.entry(index).await?.is_zero();
            if *first.get_or_insert(is_zero) != is_zero {
                return Ok((!is_zero, index * size - offset));
            }
            index += 1;
        }
        Ok((first.unwrap_or(true), length))
    }

    /// The end of a part of the volume.
    fn end(&self, offset: u64, length: u64) -> Result<u64, SnapshotError> {
        let size = self.snapshot().volume_size;
        offset.checked_add(length).filter(|end| *end <= size).ok_or_else(|| {
            let reason = format!("{length} bytes at {offset} are not within its {size} bytes");
            SnapshotError::Source(io::Error::new(io::ErrorKind::InvalidInput, reason))
        })
    }
}

/// A range of offsets within a buffer.
fn within(range: Range<u64>) -> Range<usize> {
    // Never more than the buffer's length, which is a usize.
    range.start as usize..range.end as usize
}

impl Open {
    async fn entry(&self, index: u64) -> Result<Entry, SnapshotError> {
        let segment = index / SEGMENT as u64;
        let cell = self.segments.get(segment);
        let segment = cell
            .get_or_try_init(async || {
                let name = &self.manifest.snapshot.name;
                let segment = self.manifest.segment(usize::try_from(segment).unwrap_or(usize::MAX));
                let entries = self.store.entries(&self.keys, name, &segment).await?;
                Ok::<_, SnapshotError>(Arc::new(entries))
            })
            .await?;
        let within = (index % SEGMENT as u64) as usize;
        Ok(segment.get(within).copied().unwrap_or(Entry::ZERO))
    }

    /// Contents of a chunk; none where it is zeroes.
    async fn chunk(&self, index: u64) -> Result<Option<Bytes>, SnapshotError> {
        let entry = self.entry(index).await?;
        if entry.is_zero() {
            return Ok(None);
        }
        let cell = self.chunks.get(index);
        // When this is dropped or fails, the next one that waits does it.
        let chunk = cell.get_or_try_init(|| self.fetch(index, entry)).await?;
        Ok(Some(chunk.clone()))
    }

    async fn fetch(&self, index: u64, entry: Entry) -> Result<Bytes, SnapshotError> {
        let name = &self.manifest.snapshot.name;
        let size = u64::from(self.manifest.chunk_size);
        let begin = index * size;
        let end = self.manifest.snapshot.volume_size.min(begin + size);
        let damaged = |reason: &str| SnapshotError::Damaged {
            name: name.clone(),
            reason: format!("the chunk of bytes {begin} to {end} {reason}"),
        };
        let length = (end - begin) as usize;
        let key = Inner::chunk_key(&name.organization, &entry.id);
        let object = match self.store.objects.get(&key, length + OVERHEAD).await {
            Ok(object) => object,
            Err(Fault::Missing) => return Err(damaged("is missing")),
            Err(Fault::TooLarge) => return Err(damaged("is larger than it can be")),
            Err(fault) => return Err(fault.into()),
        };
        // About a millisecond.
        let contents =
            self.keys.open_addressed(Kind::Chunk, &entry.id, &object, length).map_err(damaged)?;
        if contents.len() != length {
            return Err(damaged("is of another length"));
        }
        Ok(contents.into())
    }
}

/// What was used last, by index.
struct Recent<T> {
    room: usize,
    used: Mutex<VecDeque<(u64, Arc<OnceCell<T>>)>>,
}

impl<T> Recent<T> {
    fn new(room: usize) -> Self {
        Self { room, used: Mutex::new(VecDeque::with_capacity(room)) }
    }

    fn get(&self, index: u64) -> Arc<OnceCell<T>> {
        let mut used = self.used.lock();
        let found = used.iter().position(|(found, _)| *found == index);
        let cell = found.and_then(|at| used.remove(at)).map(|(_, cell)| cell).unwrap_or_default();
        used.push_back((index, Arc::clone(&cell)));
        if used.len() > self.room {
            used.pop_front();
        }
        cell
    }
}
