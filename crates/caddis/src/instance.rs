//! A data directory: who uses it, and what is where.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use caddis_cli::{SERVER_FILE, ServerFile};
use nix::fcntl::{Flock, FlockArg};

/// Names in a data directory.
pub const CATALOG: &str = "catalog.db";
pub const WORKER: &str = "worker";
pub const WORKER_DATABASE: &str = "worker/worker.db";
pub const MACHINES: &str = "worker/machines";
pub const IMAGES: &str = "images";
pub const BOOT: &str = "boot";
pub const TEMPLATES: &str = "templates";
pub const VOLUMES: &str = "volumes";
pub const SNAPSHOTS: &str = "snapshots";
pub const ROOT_TOKEN: &str = "root.token";
pub const INSTALLATION_KEY: &str = "installation.key";
pub const RESERVE: &str = "reserve";
pub const NETWORK_STATE: &str = "network.json";
const LOCK: &str = "lock";

/// How long another process may still have the directory. A VM process that a server was just
/// starting when it was killed holds copies of all its descriptors, this lock and its port among
/// them, until its own program runs.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Takes the lock within that time.
fn lock_in(patience: Duration, file: File) -> Option<Flock<File>> {
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Some(lock),
        Err((file, _)) => file,
    };
    let (sender, locked) = mpsc::channel();
    // Nothing ends a wait for a lock: where it takes too long, the thread ends with this process.
    thread::spawn(move || sender.send(Flock::lock(file, FlockArg::LockExclusive)));
    locked.recv_timeout(patience).ok()?.ok()
}

/// A data directory that this process alone uses. Given back when dropped.
pub struct Instance {
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Instance {
    /// Makes the directory when missing and takes it.
    pub fn take(directory: &Path) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("can't create the data directory {}", directory.display()))?;
        let directory = fs::canonicalize(directory)?;
        let path = directory.join(LOCK);
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.with_context(|| format!("can't open {}", path.display()))?;
        match lock_in(TIMEOUT, file) {
            Some(lock) => Ok(Self { directory, _lock: lock }),
            None => bail!(
                "the data directory {} is in use by a running caddis serve",
                directory.display()
            ),
        }
    }

    /// Where it is, with no links in the path.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Says where the server is, for the command line.
    pub fn announce(&self, server: &ServerFile) -> Result<()> {
        fs::write(self.path(SERVER_FILE), serde_json::to_vec(server)?)
            .context("can't write the server's address")
    }

    /// The server is no longer there.
    pub fn withdraw(&self) {
        // A stale address is told by the first request to it.
        let _ = fs::remove_file(self.path(SERVER_FILE));
    }
}

/// Writes a secret, readable by its owner only, whole or not at all.
pub fn write_secret(path: &Path, text: &str) -> Result<()> {
    let draft = path.with_extension("new");
    let attempted = || format!("can't write {}", path.display());
    // What is left of an earlier try may be readable by others.
    let _ = fs::remove_file(&draft);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .with_context(attempted)?;
    file.write_all(text.as_bytes()).with_context(attempted)?;
    file.sync_all().with_context(attempted)?;
    fs::rename(&draft, path).with_context(attempted)?;
    match path.parent() {
        Some(directory) => {
            File::open(directory).and_then(|directory| directory.sync_all()).with_context(attempted)
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_taken_once_and_waited_for_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let first = Instance::take(directory.path()).unwrap();
        let open = || File::open(directory.path().join(LOCK)).unwrap();
        assert!(lock_in(Duration::from_millis(50), open()).is_none(), "it is in use");
        let file = open();
        let waiting = thread::spawn(move || lock_in(Duration::from_secs(60), file).is_some());
        drop(first);
        assert!(waiting.join().unwrap(), "it is free in time");
    }
}
