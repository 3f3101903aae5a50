//! What the tests of snapshots have in common.
use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use caddis_api::volume::Filesystem;
use caddis_snapshot::{
    Extent, Location, NewSnapshot, Options, Progress, Snapshot, SnapshotError, SnapshotName,
    SnapshotStore, Source, StoreConfig, StoreKey,
};
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use jiff::Timestamp;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, memory::InMemory,
    path::Path as ObjectPath,
};
use tokio::sync::watch;
use zeroize::Zeroizing;

/// Small chunks, so that little data has many.
pub const CHUNK: usize = 4096;

/// Nothing is too young to be swept, and nothing waits long.
pub fn options() -> Options {
    Options {
        chunk_size: CHUNK as u32,
        grace: Duration::ZERO,
        retries: 3,
        retry_for: Duration::from_secs(20),
        backoff: Duration::from_millis(1),
        ..Options::default()
    }
}

pub fn key() -> StoreKey {
    StoreKey { bytes: Zeroizing::new([7; 32]), id: "key-one".to_owned() }
}

pub fn config(directory: &Path) -> StoreConfig {
    StoreConfig { location: Location::Directory(directory.to_owned()), key: key() }
}

pub fn store(directory: &Path) -> SnapshotStore {
    SnapshotStore::open_with(config(directory), options()).unwrap()
}

pub fn name(organization: &str, volume: &str, id: &str) -> SnapshotName {
    SnapshotName {
        organization: organization.to_owned(),
        volume: format!("vol_{volume}").parse().unwrap(),
        id: format!("vs_{id}").parse().unwrap(),
    }
}

pub fn new(name: &SnapshotName, previous: Option<&SnapshotName>) -> NewSnapshot {
    NewSnapshot {
        name: name.clone(),
        previous: previous.cloned(),
        filesystem: Filesystem::Ext4,
        encrypted: true,
        created_at: Timestamp::from_second(1_700_000_000).unwrap(),
    }
}

/// A volume in memory, which knows where it is zeroes and what changed, and notes what is read.
#[derive(Debug, Clone, Default)]
pub struct Volume {
    pub contents: Vec<u8>,
    /// Bytes that differ from the previous snapshot; unknown when absent.
    pub changed: Option<Vec<(u64, u64)>>,
    /// Offsets and lengths.
    pub reads: Vec<(u64, u64)>,
    /// Fails when as many bytes were read.
    pub fails_after: Option<u64>,
}

/// Extents have this granularity, which is no multiple of the size of chunks' parts in tests.
const GRAIN: usize = 512;

impl Volume {
    pub fn new(contents: Vec<u8>) -> Self {
        Self { contents, ..Self::default() }
    }

    /// Data that can't be compressed, and differs for each seed.
    pub fn random(seed: u64, length: usize) -> Self {
        Self::new(random(seed, length))
    }

    /// The same contents, of which nothing changed.
    pub fn unchanged(&self) -> Self {
        Self { changed: Some(Vec::new()), ..Self::new(self.contents.clone()) }
    }

    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.contents[offset..offset + bytes.len()].copy_from_slice(bytes);
        if let Some(changed) = &mut self.changed {
            changed.push((offset as u64, bytes.len() as u64));
        }
    }

    pub fn bytes_read(&self) -> u64 {
        self.reads.iter().map(|(_, length)| length).sum()
    }

    fn is_unchanged(&self, offset: u64, length: u64) -> bool {
        self.changed.as_ref().is_some_and(|changed| {
            !changed.iter().any(|(from, count)| *from < offset + length && offset < from + count)
        })
    }
}

#[async_trait]
impl Source for Volume {
    fn size(&self) -> u64 {
        self.contents.len() as u64
    }

    async fn extents(&mut self, offset: u64, length: u64) -> Result<Vec<Extent>, SnapshotError> {
        let (begin, end) = (offset as usize, (offset + length) as usize);
        assert!(begin < end && end <= self.contents.len());
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = begin;
        // Not all at once.
        while at < end && extents.len() < 50 {
            let next = ((at / GRAIN + 1) * GRAIN).min(end);
            let extent = Extent {
                offset: at as u64,
                length: (next - at) as u64,
                is_zero: self.contents[at..next].iter().all(|byte| *byte == 0),
                is_unchanged: self.is_unchanged(at as u64, (next - at) as u64),
            };
            match extents.last_mut() {
                Some(last)
                    if (last.is_zero, last.is_unchanged)
                        == (extent.is_zero, extent.is_unchanged) =>
                {
                    last.length += extent.length;
                }
                _ => extents.push(extent),
            }
            at = next;
        }
        Ok(extents)
    }

    async fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), SnapshotError> {
        if self.fails_after.is_some_and(|limit| self.bytes_read() >= limit) {
            return Err(SnapshotError::Source(std::io::Error::other("the VM is gone")));
        }
        self.reads.push((offset, buffer.len() as u64));
        let offset = offset as usize;
        buffer.copy_from_slice(&self.contents[offset..offset + buffer.len()]);
        Ok(())
    }
}

/// xorshift64*, so that tests repeat themselves.
pub fn random(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub async fn take(
    store: &SnapshotStore,
    new: NewSnapshot,
    volume: &mut Volume,
) -> Result<Snapshot, SnapshotError> {
    let (progress, seen) = watch::channel(Progress::default());
    let snapshot = store.take(new, volume, &progress).await?;
    let size = volume.size();
    assert_eq!(*seen.borrow(), Progress { done: size, total: size });
    Ok(snapshot)
}

/// All of a snapshot, read in pieces of an odd size.
pub async fn contents(
    store: &SnapshotStore,
    name: &SnapshotName,
) -> Result<Vec<u8>, SnapshotError> {
    let reader = store.reader(name).await?;
    let mut contents = vec![0xaa; reader.snapshot().volume_size as usize];
    let mut offset = 0;
    for piece in contents.chunks_mut(3 * CHUNK - 7) {
        reader.read(offset, piece).await?;
        offset += piece.len() as u64;
    }
    Ok(contents)
}

/// Files below a directory that hold objects of a kind (`chunks`, `segments`, `snapshots`).
pub fn objects(directory: &Path, kind: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.components().any(|part| part.as_os_str() == kind) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A request to a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `put`, `get`, `head`, `delete` or `list`.
    pub kind: &'static str,
    pub path: String,
}

/// What is to become of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Done,
    /// It fails, and nothing was done.
    Refused,
    /// It fails, though it was done.
    Unanswered,
}

type Hook = dyn Fn(&Request) -> Fate + Send + Sync;

/// Objects in memory, with a hook at each request.
pub struct Hooked {
    pub objects: Arc<InMemory>,
    hook: Arc<Hook>,
}

impl Hooked {
    pub fn new(hook: impl Fn(&Request) -> Fate + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { objects: Arc::default(), hook: Arc::new(hook) })
    }

    /// The same objects with another hook.
    pub fn with(&self, hook: impl Fn(&Request) -> Fate + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { objects: Arc::clone(&self.objects), hook: Arc::new(hook) })
    }

    pub fn store(self: &Arc<Self>) -> SnapshotStore {
        SnapshotStore::over(Arc::clone(self) as _, key(), options()).unwrap()
    }

    /// Keys of all objects with this in them.
    pub async fn keys(&self, part: &str) -> Vec<String> {
        let metas: Vec<_> = self.objects.list(None).try_collect().await.unwrap();
        let mut keys: Vec<_> = metas.iter().map(|meta| meta.location.to_string()).collect();
        keys.retain(|key| key.contains(part));
        keys.sort();
        keys
    }

    async fn around<T>(
        &self,
        kind: &'static str,
        path: &ObjectPath,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        match (self.hook)(&Request { kind, path: path.to_string() }) {
            Fate::Done => work.await,
            Fate::Refused => Err(refused()),
            Fate::Unanswered => work.await.and_then(|_| Err(refused())),
        }
    }
}

fn refused() -> object_store::Error {
    object_store::Error::Generic { store: "test", source: "it is made to fail".into() }
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hooked")
    }
}

impl std::fmt::Display for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hooked")
    }
}

#[async_trait]
impl ObjectStore for Hooked {
    async fn put_opts(
        &self,
        path: &ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.around("put", path, self.objects.put_opts(path, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        _path: &ObjectPath,
        _options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        panic!("nothing is uploaded in parts")
    }

    async fn get_opts(
        &self,
        path: &ObjectPath,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        let kind = if options.head { "head" } else { "get" };
        self.around(kind, path, self.objects.get_opts(path, options)).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<ObjectPath>>,
    ) -> BoxStream<'static, object_store::Result<ObjectPath>> {
        let this = Self { objects: Arc::clone(&self.objects), hook: Arc::clone(&self.hook) };
        let this = Arc::new(this);
        paths
            .then(move |path| {
                let this = Arc::clone(&this);
                async move {
                    let path = path?;
                    this.around("delete", &path, this.objects.delete(&path)).await?;
                    Ok(path)
                }
            })
            .boxed()
    }

    fn list(
        &self,
        prefix: Option<&ObjectPath>,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let path = prefix.cloned().unwrap_or_default();
        match (self.hook)(&Request { kind: "list", path: path.to_string() }) {
            Fate::Done => self.objects.list(prefix),
            _ => futures::stream::iter([Err(refused())]).boxed(),
        }
    }

    async fn list_with_delimiter(
        &self,
        prefix: Option<&ObjectPath>,
    ) -> object_store::Result<ListResult> {
        let path = prefix.cloned().unwrap_or_default();
        self.around("list", &path, self.objects.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(
        &self,
        _from: &ObjectPath,
        _to: &ObjectPath,
        _options: CopyOptions,
    ) -> object_store::Result<()> {
        panic!("nothing is copied")
    }
}
