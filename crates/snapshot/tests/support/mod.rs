//! A disk in memory that is served over NBD, and QEMU's tools.
#![allow(dead_code, reason = "each test uses some of it")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use caddis_snapshot::{
    SnapshotError,
    nbd::{Contents, serve},
};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::{net::UnixListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub const MIB: u64 = 1 << 20;

/// Pieces of data on a disk that is zeroes otherwise.
#[derive(Default)]
pub struct Disk {
    pub size: u64,
    /// Offset, length, and the byte it is full of; in order.
    pub pieces: Vec<(u64, u64, u8)>,
    /// From here on it is damaged.
    pub damaged_from: Option<u64>,
    /// The store is away.
    pub is_away: AtomicBool,
    pub tried: tokio::sync::Notify,
    /// Bytes that were read.
    pub read: AtomicU64,
}

#[derive(Clone)]
pub struct Shared(pub Arc<Disk>);

#[async_trait]
impl Contents for Shared {
    fn size(&self) -> u64 {
        self.0.size
    }

    async fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SnapshotError> {
        let end = offset + buffer.len() as u64;
        assert!(end <= self.0.size, "it is asked for what is beyond its end");
        if self.0.is_away.load(Ordering::SeqCst) {
            self.0.tried.notify_one();
            return Err(SnapshotError::Store("it is away".to_owned()));
        }
        if self.0.damaged_from.is_some_and(|from| end > from) {
            let source = std::io::Error::other("a damaged chunk");
            return Err(SnapshotError::Source(source));
        }
        self.0.read.fetch_add(buffer.len() as u64, Ordering::SeqCst);
        buffer.fill(0);
        for (start, length, byte) in &self.0.pieces {
            let (from, to) = ((*start).max(offset), (start + length).min(end));
            if from < to {
                buffer[(from - offset) as usize..(to - offset) as usize].fill(*byte);
            }
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

/// A server in this process.
pub struct Server {
    pub directory: TempDir,
    pub disk: Arc<Disk>,
    pub damages: Arc<Mutex<Vec<String>>>,
    ending: CancellationToken,
    serving: JoinHandle<()>,
}

impl Server {
    pub fn new(disk: Disk) -> Self {
        Self::at(tempfile::tempdir().unwrap(), Arc::new(disk))
    }

    pub fn at(directory: TempDir, disk: Arc<Disk>) -> Self {
        let listener = UnixListener::bind(directory.path().join("nbd")).unwrap();
        let (ending, damages) = (CancellationToken::new(), Arc::new(Mutex::new(Vec::new())));
        let told = Arc::clone(&damages);
        let damaged = move |error: SnapshotError| told.lock().push(error.to_string());
        let contents = Shared(Arc::clone(&disk));
        let serving = tokio::spawn(serve(listener, contents, damaged, ending.clone()));
        Self { directory, disk, damages, ending, serving }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("nbd")
    }

    /// For QEMU's tools.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///any?socket={}", self.socket().display())
    }

    /// Ends all connections and accepts none any more.
    pub fn disconnect(&self) {
        self.ending.cancel();
    }

    /// Ends it; the socket is gone too.
    pub async fn end(self) -> (TempDir, Arc<Disk>) {
        self.ending.cancel();
        self.serving.await.unwrap();
        std::fs::remove_file(self.directory.path().join("nbd")).unwrap();
        (self.directory, self.disk)
    }
}

/// Runs a program of QEMU's without holding up the runtime.
pub async fn qemu(program: &'static str, arguments: &[&str]) -> Output {
    let arguments: Vec<_> = arguments.iter().map(|text| (*text).to_owned()).collect();
    let run = move || Command::new(program).args(arguments).output();
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    output.expect("needs QEMU's tools: apt-get install qemu-utils qemu-system-common")
}

/// The same, and it has to succeed.
pub async fn text(program: &'static str, arguments: &[&str]) -> String {
    let output = qemu(program, arguments).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}{stdout}");
    stdout
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
