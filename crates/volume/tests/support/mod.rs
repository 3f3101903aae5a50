//! A store in a temporary directory, and the real tools to look at its disks with.
#![allow(dead_code, reason = "each test uses some of it")]

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use caddis_snapshot::{
    SnapshotError,
    nbd::{Contents, serve},
};
use caddis_volume::{
    Filesystem, InstallationKey, NewCopy, NewVolume, SizeGib, StoreConfig, Volume, VolumeError,
    VolumeId, VolumeKey, VolumeStore, Writer,
};
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

pub fn id(text: &str) -> VolumeId {
    text.parse().unwrap()
}

pub fn key() -> InstallationKey {
    InstallationKey::new([7; 32], "one")
}

pub fn gib(size: u32) -> SizeGib {
    SizeGib::new(size).unwrap()
}

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

pub struct Host {
    pub directory: TempDir,
    pub config: StoreConfig,
    pub store: VolumeStore,
}

impl Host {
    pub fn new() -> Self {
        Self::with(|_| ())
    }

    /// With a directory of a plain name, `volumes`.
    pub fn plain() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = StoreConfig::new(directory.path().join("volumes"), key());
        let store = VolumeStore::open(config.clone()).unwrap();
        Self { directory, config, store }
    }

    /// The same with another configuration.
    pub fn reopen_with(mut self, change: impl FnOnce(&mut StoreConfig)) -> Self {
        change(&mut self.config);
        self.reopen()
    }

    pub fn with(change: impl FnOnce(&mut StoreConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // A name that the tools have to be told of with care.
        let volumes = directory.path().join("a,b \"c\"=d/volumes");
        let mut config = StoreConfig::new(volumes, key());
        change(&mut config);
        let store = VolumeStore::open(config.clone()).unwrap();
        Self { directory, config, store }
    }

    pub fn reopen(self) -> Self {
        let Self { directory, config, store } = self;
        drop(store);
        let store = VolumeStore::open(config.clone()).unwrap();
        Self { directory, config, store }
    }

    pub async fn create(
        &self,
        name: &str,
        size: u32,
        filesystem: Filesystem,
        encrypted: bool,
    ) -> Result<Volume, VolumeError> {
        let (id, size, created_at) = (id(name), gib(size), at(0));
        self.store.create(NewVolume { id, size, filesystem, encrypted, created_at }).await
    }

    /// A plain one without a file system, which is quick to make.
    pub async fn raw(&self, name: &str, size: u32) -> VolumeId {
        self.create(name, size, Filesystem::Raw, false).await.unwrap().id
    }

    /// One without contents, for a backing.
    pub async fn restoring(&self, name: &str, size: u32, encrypted: bool) -> VolumeId {
        let (id, size, created_at) = (id(name), gib(size), at(0));
        let filesystem = Filesystem::Raw;
        let new = NewVolume { id, size, filesystem, encrypted, created_at };
        self.store.create_for_restore(new).await.unwrap().id
    }

    pub fn place(&self, name: &str) -> PathBuf {
        self.config.directory.join("volumes").join(name)
    }

    pub fn trash(&self, name: &str) -> PathBuf {
        self.config.directory.join("trash").join(name)
    }

    pub fn disk(&self, name: &str) -> PathBuf {
        self.place(name).join("disk.qcow2")
    }

    /// What is below the directory of the volumes, but for what is always there.
    pub fn contents(&self) -> Vec<String> {
        ["volumes", "trash", "tmp"].iter().flat_map(|name| self.names(name)).collect()
    }

    pub fn names(&self, directory: &str) -> Vec<String> {
        let path = self.config.directory.join(directory);
        let entries = fs::read_dir(path).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| format!("{directory}/{}", entry.unwrap().file_name().to_str().unwrap()))
            .collect();
        names.sort();
        names
    }

    /// Opens a volume, once whatever a process had of it is gone.
    pub async fn open_soon(&self, volume: &VolumeId) -> Writer {
        loop {
            match self.store.open_writer(volume, "a test").await {
                Err(VolumeError::InUse { .. }) => tokio::task::yield_now().await,
                opened => return opened.unwrap(),
            }
        }
    }

    /// Its disk as QEMU has to be told to open it, with a secret in a file.
    pub async fn node(&self, volume: &VolumeId) -> Node {
        let writer = self.store.open_writer(volume, "a test").await.unwrap();
        let node = Node::new(writer.path(), writer.key(), self.directory.path());
        writer.release();
        node
    }
}

pub fn copy_to(name: &str, size: Option<u32>) -> NewCopy {
    NewCopy { id: id(name), size: size.map(gib), created_at: at(0) }
}

/// A disk for QEMU's tools.
pub struct Node {
    pub secret: Option<String>,
    pub json: String,
}

impl Node {
    pub fn new(disk: &Path, key: Option<&VolumeKey>, scratch: &Path) -> Self {
        let file = serde_json::json!({ "driver": "file", "filename": disk.to_str().unwrap() });
        let mut node = serde_json::json!({ "driver": "qcow2", "file": file });
        let secret = key.map(|key| {
            node["encrypt"] = serde_json::json!({ "format": "luks", "key-secret": "k" });
            let (_, path) = tempfile::NamedTempFile::new_in(scratch).unwrap().keep().unwrap();
            fs::write(&path, key.passphrase().as_bytes()).unwrap();
            format!("secret,id=k,file={},format=raw", path.to_str().unwrap())
        });
        Self { secret, json: format!("json:{node}") }
    }

    fn object(&self) -> Vec<&str> {
        self.secret.iter().flat_map(|secret| ["--object", secret]).collect()
    }

    /// Runs commands of qemu-io.
    pub fn io(&self, commands: &[&str]) -> Output {
        let mut command = Command::new("qemu-io");
        command.args(self.object());
        for text in commands {
            command.args(["-c", text]);
        }
        command.arg(&self.json).output().expect("needs qemu-utils: apt-get install qemu-utils")
    }

    pub fn write(&self, pattern: u8, offset: &str, length: &str) {
        let output = self.io(&[&format!("write -P {pattern} {offset} {length}"), "flush"]);
        expect_success(&output);
    }

    /// Whether all bytes of a place have this value.
    pub fn has(&self, pattern: u8, offset: &str, length: &str) -> bool {
        let output = self.io(&[&format!("read -P {pattern} {offset} {length}")]);
        output.status.success()
            && !String::from_utf8_lossy(&output.stdout).contains("verification failed")
    }

    /// The whole disk, in the clear.
    pub fn to_raw(&self, path: &Path) {
        let mut command = Command::new("qemu-img");
        command.arg("convert").args(self.object()).args(["-O", "raw", &self.json]).arg(path);
        expect_success(&command.output().unwrap());
    }
}

/// What a volume is restored from: pieces of data on a disk of zeroes, served in this process.
pub struct Backing {
    pub directory: TempDir,
    pub served: Arc<Served>,
    _ending: DropGuard,
}

pub struct Served {
    size: u64,
    /// Offset, length, and the byte it is full of; in order.
    pieces: Vec<(u64, u64, u8)>,
    /// From here on the store is away; at the next, it is damaged.
    pub away_from: AtomicU64,
    pub damaged_from: AtomicU64,
    /// Somebody wanted what is away.
    pub wanted: Notify,
    pub read: AtomicU64,
}

struct Pieces(Arc<Served>);

#[async_trait]
impl Contents for Pieces {
    fn size(&self) -> u64 {
        self.0.size
    }

    async fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SnapshotError> {
        let end = offset + buffer.len() as u64;
        if end > self.0.away_from.load(Ordering::SeqCst) {
            self.0.wanted.notify_one();
            return Err(SnapshotError::Store("it is away".to_owned()));
        }
        if end > self.0.damaged_from.load(Ordering::SeqCst) {
            return Err(SnapshotError::Source(std::io::Error::other("damaged")));
        }
        self.0.read.fetch_add(buffer.len() as u64, Ordering::SeqCst);
        for (byte, at) in buffer.iter_mut().zip(offset..) {
            let piece = self
                .0
                .pieces
                .iter()
                .find(|(start, length, _)| (*start..start + length).contains(&at));
            *byte = piece.map_or(0, |piece| piece.2);
        }
        Ok(())
    }

    async fn zeroes(&self, offset: u64, length: u64) -> Result<(bool, u64), SnapshotError> {
        for (start, count, _) in &self.0.pieces {
            if offset < *start {
                return Ok((true, length.min(start - offset)));
            }
            if offset < start + count {
                return Ok((false, length.min(start + count - offset)));
            }
        }
        Ok((true, length))
    }
}

impl Backing {
    pub fn new(pieces: Vec<(u64, u64, u8)>, size: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let [away_from, damaged_from] = [u64::MAX; 2].map(AtomicU64::new);
        let (wanted, read) = (Notify::new(), AtomicU64::new(0));
        let served = Served { size, pieces, away_from, damaged_from, wanted, read };
        let (served, ending) = (Arc::new(served), CancellationToken::new());
        let listener = tokio::net::UnixListener::bind(directory.path().join("nbd")).unwrap();
        tokio::spawn(serve(listener, Pieces(served.clone()), |_| (), ending.clone()));
        Self { directory, served, _ending: ending.drop_guard() }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("nbd")
    }
}

/// Runs `body` on a small file system of its own, in a mount namespace of its own, below which
/// `mount` mounts it. Needs root.
pub fn on_a_file_system<F: Future<Output = ()>>(
    mount: impl FnOnce(&Path) -> bool + Send,
    body: impl FnOnce(Host) -> F + Send,
) {
    use nix::mount::MsFlags;
    let directory = tempfile::tempdir().unwrap();
    let run = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("this test needs root");
        let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        nix::mount::mount(none, "/", none, private, none).unwrap();
        let path = directory.path();
        if !mount(path) {
            return;
        }
        let config = StoreConfig::new(path.join("volumes"), key());
        let store = VolumeStore::open(config.clone()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        runtime.block_on(body(Host { directory, config, store }));
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
}

/// Of memory, with room for so many bytes.
pub fn tmpfs(size: u64) -> impl FnOnce(&Path) -> bool {
    move |path| {
        let (options, none) = (format!("size={size}"), nix::mount::MsFlags::empty());
        nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), none, Some(&*options)).unwrap();
        true
    }
}

pub fn run(program: &str, arguments: &[&OsStr]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    expect_success(&output);
    String::from_utf8(output.stdout).unwrap()
}

pub fn expect_success(output: &Output) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}{}", String::from_utf8_lossy(&output.stdout));
}
