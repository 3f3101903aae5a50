//! Taking a snapshot: the source is read in order, chunk by chunk; hashing, compressing, encrypting
//! and uploading run beside it, for a few chunks at a time.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    sync::Arc,
};

use futures::{StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinSet};

use super::{
    Inner,
    claims::{Claim, Work},
    keys::{Id, Keys, Kind},
    manifest::{self, Entry, Manifest, SEGMENT},
};
use crate::{Extent, NewSnapshot, Progress, Snapshot, SnapshotError, SnapshotName, Source};

/// Chunks that are worked on at the same time.
const AT_ONCE: usize = 16;
/// Listings and lists of chunks that are fetched at the same time.
const FETCHED_AT_ONCE: usize = 16;
/// Bytes of which the extents are asked at once.
const ASKED: u64 = 1 << 30;

impl Inner {
    pub(super) async fn take(
        self: &Arc<Self>,
        new: NewSnapshot,
        source: &mut dyn Source,
        progress: &watch::Sender<Progress>,
    ) -> Result<Snapshot, SnapshotError> {
        let organization = &new.name.organization;
        let keys = Arc::new(self.keys(organization)?);
        // First the claim, at which a sweep of this process gives way, too.
        let claim = Claim::new(self, organization, Work::Take).await?;
        let _shared = self.gate(organization).read_owned().await;
        claim.wait_for_sweeps().await?;
        let previous = match &new.previous {
            Some(name) => self.previous(&keys, name, organization).await?,
            None => None,
        };
        let uploads = Arc::new(Uploads {
            store: Arc::clone(self),
            keys: Arc::clone(&keys),
            organization: organization.clone(),
            lists: previous.as_ref().map(|it| it.lists.clone()).unwrap_or_default(),
            seen: Mutex::default(),
        });
        let volume_size = source.size();
        let mut taking = Taking {
            chunk_size: u64::from(self.options.chunk_size),
            volume_size,
            cursor: Cursor { source, volume_size, asked: 0, pending: VecDeque::new() },
            previous,
            uploads,
            running: JoinSet::new(),
            read_size: 0,
        };
        progress.send_replace(Progress { done: 0, total: volume_size });
        let (segments, digest) = taking.segments(progress).await?;
        let counted = std::mem::take(&mut *taking.uploads.seen.lock());
        let snapshot = Snapshot {
            name: new.name,
            created_at: new.created_at,
            volume_size,
            filesystem: new.filesystem,
            encrypted: new.encrypted,
            stored_size: counted.stored,
            added_size: counted.added,
            read_size: taking.read_size,
            digest,
        };
        let manifest = Manifest { snapshot, chunk_size: self.options.chunk_size, segments };
        claim.is_current()?;
        self.put_manifest(&keys, &manifest).await?;
        if let Err(error) = claim.is_there().await {
            // What it consists of may have been swept.
            self.objects.delete(&Self::manifest_key(&manifest.snapshot.name)).await?;
            return Err(error);
        }
        claim.release().await;
        Ok(manifest.snapshot)
    }

    /// The previous snapshot, and which of its chunks are still there; none when it can't be used.
    async fn previous(
        &self,
        keys: &Keys,
        name: &SnapshotName,
        organization: &str,
    ) -> Result<Option<Previous>, SnapshotError> {
        let unusable = |error: SnapshotError| match error {
            SnapshotError::Store(_) => Err(error),
            error => {
                tracing::warn!(snapshot = %name.id, %error, "reading all of the volume instead");
                Ok(None)
            }
        };
        if name.organization != *organization {
            let reason = "the previous snapshot is of another organization";
            let error = io::Error::new(io::ErrorKind::InvalidInput, reason);
            return Err(SnapshotError::Source(error));
        }
        let manifest = match self.manifest(keys, name).await {
            Ok(manifest) => manifest,
            Err(error) => return unusable(error),
        };
        if manifest.chunk_size != self.options.chunk_size {
            return Ok(None);
        }
        let fetched = futures::stream::iter(0..manifest.segments.len())
            .map(|index| manifest.segment(index))
            .map(async |segment| self.entries(keys, name, &segment).await)
            .buffered(FETCHED_AT_ONCE)
            .try_collect::<Vec<_>>()
            .await;
        let segments = match fetched {
            Ok(segments) => segments,
            Err(error) => return unusable(error),
        };
        let ids = (0..manifest.segments.len()).filter_map(|index| manifest.segment(index).id);
        let lists = ids.collect();
        let mut wanted = HashMap::new();
        for entry in segments.iter().flatten().filter(|entry| !entry.is_zero()) {
            wanted.insert(entry.id.short(), entry.stored);
        }
        let lost = self.lost(organization, wanted).await?;
        if !lost.is_empty() {
            tracing::warn!(
                snapshot = %name.id,
                chunks = lost.len(),
                "chunks of the previous snapshot are missing in the store; reading them again"
            );
        }
        let volume_size = manifest.snapshot.volume_size;
        Ok(Some(Previous { volume_size, segments, lists, lost }))
    }

    /// Which of these chunks are not in the store, or are cut short there.
    async fn lost(
        &self,
        organization: &str,
        mut wanted: HashMap<u128, u32>,
    ) -> Result<HashSet<u128>, SnapshotError> {
        let mut directories: Vec<u8> = wanted.keys().map(Id::first).collect();
        directories.sort_unstable();
        directories.dedup();
        let mut listed = futures::stream::iter(directories)
            .map(|first| self.objects.list(&Self::chunks_prefix(organization, first)).boxed())
            .flatten_unordered(FETCHED_AT_ONCE);
        while let Some(meta) = listed.try_next().await? {
            let Some(id) = meta.location.filename().and_then(Id::parse) else { continue };
            let found = wanted.get(&id.short());
            if found.is_some_and(|stored| u64::from(*stored) == meta.size) {
                wanted.remove(&id.short());
            }
        }
        Ok(wanted.into_keys().collect())
    }
}

struct Previous {
    volume_size: u64,
    segments: Vec<Vec<Entry>>,
    /// Ids of these segments.
    lists: HashSet<Id>,
    lost: HashSet<u128>,
}

impl Previous {
    /// What it has for a chunk of this offset and length.
    fn entry(&self, offset: u64, length: u64, chunk_size: u64) -> Option<Entry> {
        // The last one may be shorter than it would be in a volume that has grown.
        if length != chunk_size.min(self.volume_size.checked_sub(offset)?) {
            return None;
        }
        let index = usize::try_from(offset / chunk_size).ok()?;
        let entry = *self.segments.get(index / SEGMENT)?.get(index % SEGMENT)?;
        (!self.lost.contains(&entry.id.short())).then_some(entry)
    }
}

struct Taking<'a> {
    chunk_size: u64,
    volume_size: u64,
    cursor: Cursor<'a>,
    previous: Option<Previous>,
    uploads: Arc<Uploads>,
    /// Which of the segment, and what it has become. Aborted when this is dropped.
    running: JoinSet<Result<(usize, Entry), SnapshotError>>,
    read_size: u64,
}

impl Taking<'_> {
    /// Takes all, and gives the ids of the segments and the digest.
    async fn segments(
        &mut self,
        progress: &watch::Sender<Progress>,
    ) -> Result<(Vec<Option<String>>, String), SnapshotError> {
        let mut segments = Vec::new();
        let mut digest = self.uploads.keys.digest();
        digest.update(&self.volume_size.to_le_bytes()).update(&self.chunk_size.to_le_bytes());
        let mut offset = 0;
        while offset < self.volume_size {
            let end = self.volume_size.min(offset + SEGMENT as u64 * self.chunk_size);
            let mut entries = Vec::with_capacity(SEGMENT);
            while offset < end {
                let length = self.chunk_size.min(end - offset);
                entries.push(Entry::ZERO);
                self.chunk(offset, length, &mut entries).await?;
                offset += length;
                progress.send_replace(Progress { done: offset, total: self.volume_size });
            }
            while self.finish_one(&mut entries).await? {}
            for entry in &entries {
                digest.update(&entry.id.0);
            }
            segments.push(self.uploads.segment(&entries).await?.map(|id| id.to_string()));
        }
        Ok((segments, format!("blake3:{}", digest.finalize().to_hex())))
    }

    /// Takes the chunk that is the last of these entries.
    async fn chunk(
        &mut self,
        offset: u64,
        length: u64,
        entries: &mut [Entry],
    ) -> Result<(), SnapshotError> {
        let extents = self.cursor.advance(offset + length).await?;
        if extents.iter().all(|extent| extent.is_zero) {
            return Ok(());
        }
        let index = entries.len() - 1;
        let chunk_size = self.chunk_size;
        let previous = self.previous.as_ref().and_then(|it| it.entry(offset, length, chunk_size));
        if let Some(entry) = previous
            && extents.iter().all(|extent| extent.is_unchanged)
        {
            self.uploads.seen.lock().count(entry);
            entries[index] = entry;
            return Ok(());
        }
        while self.running.len() >= AT_ONCE {
            self.finish_one(entries).await?;
        }
        let mut contents = vec![0; length as usize];
        for extent in extents.iter().filter(|extent| !extent.is_zero) {
            let from = (extent.offset - offset) as usize;
            let part = &mut contents[from..from + extent.length as usize];
            self.cursor.source.read(extent.offset, part).await?;
            self.read_size += extent.length;
        }
        let uploads = Arc::clone(&self.uploads);
        self.running.spawn(async move { Ok((index, uploads.chunk(contents, previous).await?)) });
        Ok(())
    }

    /// Waits for one of the chunks that are worked on; false when there is none.
    async fn finish_one(&mut self, entries: &mut [Entry]) -> Result<bool, SnapshotError> {
        match self.running.join_next().await {
            None => Ok(false),
            Some(Ok(finished)) => {
                let (index, entry) = finished?;
                entries[index] = entry;
                Ok(true)
            }
            Some(Err(error)) => Err(ended(error)),
        }
    }
}

/// The extents of a source, cut at the ends of chunks.
struct Cursor<'a> {
    source: &'a mut dyn Source,
    volume_size: u64,
    /// Up to where extents are known.
    asked: u64,
    pending: VecDeque<Extent>,
}

impl Cursor<'_> {
    /// The extents from where the last ones ended up to `end`.
    async fn advance(&mut self, end: u64) -> Result<Vec<Extent>, SnapshotError> {
        while self.asked < end {
            let length = ASKED.min(self.volume_size - self.asked);
            let extents = self.source.extents(self.asked, length).await?;
            let limit = self.asked + length;
            for extent in extents {
                let next = extent.offset.checked_add(extent.length);
                let next = next.filter(|next| *next <= limit && extent.length > 0);
                let (Some(next), true) = (next, extent.offset == self.asked) else {
                    return Err(bad_extents(&extent));
                };
                self.pending.push_back(extent);
                self.asked = next;
            }
            if limit == self.asked + length {
                let reason = format!("it has no extents from {} on", self.asked);
                return Err(SnapshotError::Source(io::Error::other(reason)));
            }
        }
        let mut extents = Vec::new();
        while let Some(mut extent) = self.pending.pop_front() {
            if extent.offset >= end {
                self.pending.push_front(extent);
                break;
            }
            let length = extent.length.min(end - extent.offset);
            extents.push(Extent { length, ..extent });
            if length < extent.length {
                extent.offset += length;
                extent.length -= length;
                self.pending.push_front(extent);
            }
        }
        Ok(extents)
    }
}

fn bad_extents(extent: &Extent) -> SnapshotError {
    let reason = format!("its extents have gaps at {}", extent.offset);
    SnapshotError::Source(io::Error::new(io::ErrorKind::InvalidData, reason))
}

fn ended(error: tokio::task::JoinError) -> SnapshotError {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => SnapshotError::Store(error.to_string()),
    }
}

/// What the chunks of a snapshot amount to. 16 bytes are kept per chunk.
#[derive(Default)]
struct Seen {
    ids: HashSet<u128>,
    stored: u64,
    added: u64,
}

impl Seen {
    /// Counts a chunk once; tells whether this is the first of its kind.
    fn count(&mut self, entry: Entry) -> bool {
        if entry.is_zero() || !self.ids.insert(entry.id.short()) {
            return false;
        }
        self.stored += u64::from(entry.stored);
        true
    }
}

struct Uploads {
    store: Arc<Inner>,
    keys: Arc<Keys>,
    organization: String,
    /// Segments that are in the store and were read.
    lists: HashSet<Id>,
    seen: Mutex<Seen>,
}

impl Uploads {
    /// Puts a chunk into the store, if it is not there; `previous` is there.
    async fn chunk(
        self: &Arc<Self>,
        contents: Vec<u8>,
        previous: Option<Entry>,
    ) -> Result<Entry, SnapshotError> {
        let (keys, level) = (Arc::clone(&self.keys), self.store.options.level);
        let sealed = tokio::task::spawn_blocking(move || {
            if is_zero(&contents) {
                return Ok((Entry::ZERO, None));
            }
            let id = keys.chunk_id(&contents);
            if let Some(entry) = previous.filter(|entry| entry.id == id) {
                return Ok((entry, None));
            }
            let object = keys.seal(Kind::Chunk, &id.0, &contents, level)?;
            // At most the chunk's size and a few bytes.
            Ok((Entry { id, stored: object.len() as u32 }, Some(object)))
        });
        let refused = |reason: &str| SnapshotError::Store(format!("a chunk {reason}"));
        let (entry, object) = sealed.await.map_err(ended)?.map_err(refused)?;
        let is_first = self.seen.lock().count(entry);
        let Some(object) = object.filter(|_| is_first) else {
            return Ok(entry);
        };
        let key = Inner::chunk_key(&self.organization, &entry.id);
        // One of another size is replaced: another version of zstd made it, or it was cut short.
        let found = self.store.objects.head(&key).await?;
        if found.is_none_or(|meta| meta.size != u64::from(entry.stored)) {
            self.store.objects.put(&key, object).await?;
            self.seen.lock().added += u64::from(entry.stored);
        }
        Ok(entry)
    }

    /// Puts a segment into the store; none for one of zeroes. One that nobody has read is written
    /// again: it may be damaged.
    async fn segment(&self, entries: &[Entry]) -> Result<Option<Id>, SnapshotError> {
        if entries.iter().all(Entry::is_zero) {
            return Ok(None);
        }
        let contents = manifest::encode(entries);
        let id = self.keys.segment_id(&contents);
        if !self.lists.contains(&id) {
            let object = self
                .keys
                .seal(Kind::Segment, &id.0, &contents, self.store.options.level)
                .map_err(|reason| SnapshotError::Store(format!("a list of chunks {reason}")))?;
            self.store.objects.put(&Inner::segment_key(&self.organization, &id), object).await?;
        }
        Ok(Some(id))
    }
}

fn is_zero(contents: &[u8]) -> bool {
    const ZEROES: [u8; 4096] = [0; 4096];
    contents.chunks(ZEROES.len()).all(|part| *part == ZEROES[..part.len()])
}
