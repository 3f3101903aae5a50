//! Templates: VMs saved at the point where init waits to hear which machine it is, from which
//! machines are started.
//!
//! One exists per [`Shape`]. Its memory is sealed and mapped copy-on-write by each VM that starts
//! from it; on disk it is kept with a digest that is compared once, when it is read.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::{Mutex, MutexGuard};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::Shape;

pub(super) mod build;
pub(crate) mod file;

pub(crate) use file::Sealed;

/// Templates kept at most, on disk and in memory: each takes what a booted guest has touched, 70 MB
/// or so.
const MOST: usize = 8;
/// After a first failure to build or restore one it is built again so much later; twice as late
/// after each further one.
const FIRST_BACKOFF: Duration = Duration::from_secs(5);
/// But never later than this.
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// Ending of files.
const ENDING: &str = "template";

/// The shape of machines that say nothing about it.
pub const DEFAULT_SHAPE: Shape = Shape { vcpus: 1, memory_mib: 256 };

enum Entry {
    /// Being read from disk, which takes less time than a boot.
    Reading,
    /// Being built, which takes more.
    Building,
    Ready {
        sealed: Arc<Sealed>,
        used: Instant,
        /// A VM was restored from it.
        proved: bool,
    },
    Failed {
        /// When it is tried again.
        retry_at: Instant,
        reason: String,
    },
}

/// Which template a start gets.
pub(crate) enum Found {
    Ready(Arc<Sealed>),
    /// None yet, and the caller is the one to get it.
    Missing,
    /// None yet; it is being read from disk.
    Reading,
    /// None yet; it is being built.
    Building,
    /// It failed a short while ago, for this reason.
    Failed(String),
}

/// All templates of a driver.
pub(crate) struct Templates {
    directory: PathBuf,
    entries: Mutex<HashMap<Shape, Entry>>,
    /// How often in a row each failed, to be built or to be restored.
    failures: Mutex<HashMap<Shape, u32>>,
    /// Tells that an entry has changed. Never sent to with `entries` locked: who waits looks at
    /// them.
    changed: watch::Sender<()>,
}

impl Templates {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            entries: Mutex::default(),
            failures: Mutex::default(),
            changed: watch::Sender::default(),
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Shape, Entry>> {
        self.entries.lock()
    }

    /// The template of a shape, if it is there.
    pub(crate) fn find(&self, shape: Shape) -> Found {
        let mut entries = self.entries();
        match entries.get_mut(&shape) {
            Some(Entry::Ready { sealed, used, .. }) => {
                *used = Instant::now();
                Found::Ready(sealed.clone())
            }
            Some(Entry::Reading) => Found::Reading,
            Some(Entry::Building) => Found::Building,
            Some(Entry::Failed { retry_at, reason }) if Instant::now() < *retry_at => {
                Found::Failed(reason.clone())
            }
            Some(Entry::Failed { .. }) | None => {
                entries.insert(shape, Entry::Reading);
                Found::Missing
            }
        }
    }

    /// It is not on disk, or not as it should be, and is built now.
    pub(crate) fn build(&self, shape: Shape) {
        self.entries().insert(shape, Entry::Building);
        self.changed.send_replace(());
    }

    /// Waits while the template of a shape is being read from disk, but no longer than `patience`.
    pub(crate) async fn until_read(&self, shape: Shape, patience: Duration) {
        let mut changed = self.changed.subscribe();
        let read =
            changed.wait_for(|()| !matches!(self.entries().get(&shape), Some(Entry::Reading)));
        // Without it the start is a cold boot, and says so.
        let _ = tokio::time::timeout(patience, read).await;
    }

    /// Takes in what was read or built, and lets the one go that was used longest ago when there
    /// are too many.
    pub(crate) fn settle(&self, shape: Shape, key: &str, result: Result<Sealed, String>) {
        let mut entries = self.entries();
        match result {
            Ok(sealed) => {
                info!(vcpus = shape.vcpus, memory_mib = shape.memory_mib, key, "template ready");
                entries.insert(
                    shape,
                    Entry::Ready { sealed: Arc::new(sealed), used: Instant::now(), proved: false },
                );
            }
            Err(error) => {
                warn!(
                    vcpus = shape.vcpus,
                    memory_mib = shape.memory_mib,
                    error,
                    "no template: starts are cold boots"
                );
                entries.insert(shape, self.failed(shape, error));
            }
        }
        let ready = |entry: &Entry| match entry {
            Entry::Ready { used, .. } => Some(*used),
            _ => None,
        };
        while entries.values().filter_map(ready).count() > MOST {
            let oldest = entries
                .iter()
                .filter_map(|(shape, entry)| ready(entry).map(|used| (used, *shape)))
                .min();
            let Some((_, shape)) = oldest else { break };
            entries.remove(&shape);
        }
        drop(entries);
        self.changed.send_replace(());
    }

    fn failed(&self, shape: Shape, reason: String) -> Entry {
        let mut failures = self.failures.lock();
        let count = failures.entry(shape).or_default();
        let backoff = FIRST_BACKOFF.saturating_mul(1 << (*count).min(8)).min(MAX_BACKOFF);
        *count += 1;
        Entry::Failed { retry_at: Instant::now() + backoff, reason }
    }

    /// The failed one that is to be tried again first, and when.
    pub(crate) fn next_retry(&self) -> Option<(Shape, Instant)> {
        let retry = |(shape, entry): (&Shape, &Entry)| match entry {
            Entry::Failed { retry_at, .. } => Some((*shape, *retry_at)),
            _ => None,
        };
        self.entries().iter().filter_map(retry).min_by_key(|(_, at)| *at)
    }

    /// Those that failed and why, until they are tried again.
    pub(crate) fn failures(&self) -> Vec<(Shape, String)> {
        let failure = |(shape, entry): (&Shape, &Entry)| match entry {
            Entry::Failed { reason, .. } => Some((*shape, reason.clone())),
            _ => None,
        };
        let mut failures: Vec<_> = self.entries().iter().filter_map(failure).collect();
        failures.sort();
        failures
    }

    /// Tells of each change of an entry.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// A VM was restored from it.
    pub(crate) fn prove(&self, shape: Shape) {
        self.failures.lock().remove(&shape);
        if let Some(Entry::Ready { proved, .. }) = self.entries().get_mut(&shape) {
            *proved = true;
        }
    }

    /// A template that could not be restored is not tried again: it is built anew, at once if it
    /// ever was any good, else after a wait.
    pub(crate) fn discard(&self, shape: Shape, key: &str, reason: &str) {
        {
            let mut entries = self.entries();
            if !matches!(entries.remove(&shape), Some(Entry::Ready { proved: true, .. })) {
                let reason = format!("the template could not be restored: {reason}");
                entries.insert(shape, self.failed(shape, reason));
            }
        }
        self.changed.send_replace(());
        // Where it can't be removed, it is found out to be as bad again.
        let _ = fs::remove_file(self.path(shape, key));
    }

    /// The shapes of all that are on disk, those used last first. Files that `key` does not give
    /// the names of are of another QEMU, kernel, init or processor, and removed. Blocks.
    pub(crate) fn on_disk(&self, key: impl Fn(Shape) -> String) -> Vec<Shape> {
        let mut shapes = Vec::new();
        for path in self.files() {
            match shape_of(&path).filter(|shape| path == self.path(*shape, &key(*shape))) {
                Some(shape) => shapes.push(shape),
                None => {
                    info!(path = %path.display(), "template removed, it no longer matches this \
                        host");
                    let _ = fs::remove_file(path);
                }
            }
        }
        shapes
    }

    /// Whether there is a file of it.
    pub(crate) fn is_on_disk(&self, shape: Shape, key: &str) -> bool {
        self.path(shape, key).exists()
    }

    /// Reads a template from disk. A file that is damaged is removed, with a warning. Blocks.
    pub(crate) fn read(&self, shape: Shape, key: &str) -> Option<Sealed> {
        let path = self.path(shape, key);
        match file::read(&path, key, shape.memory_mib << 20) {
            Ok(sealed) => {
                // So that the file which is removed for want of room is the one longest unused.
                let _ = fs::File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
                Some(sealed)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                warn!(path = %path.display(), %error, "template unusable, rebuilding it");
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Keeps a template on disk for the next server. Blocks.
    pub(crate) fn keep(&self, shape: Shape, key: &str, sealed: &Sealed) {
        let path = self.path(shape, key);
        if let Err(error) = file::write(&path, key, sealed) {
            warn!(path = %path.display(), %error, "template not saved to disk, the next server \
                rebuilds it");
        }
        self.remove_old();
    }

    fn path(&self, shape: Shape, key: &str) -> PathBuf {
        self.directory.join(format!("{}x{}-{key}.{ENDING}", shape.vcpus, shape.memory_mib))
    }

    /// Removes files beyond the most that are kept, those first that were unused longest.
    fn remove_old(&self) {
        for path in self.files().into_iter().skip(MOST) {
            let _ = fs::remove_file(path);
        }
    }

    /// Those used last first.
    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let used = |entry: &fs::DirEntry| entry.metadata().and_then(|file| file.modified()).ok();
        let mut files: Vec<_> = entries.map(|entry| (used(&entry), entry.path())).collect();
        files.retain(|(_, path)| path.extension().is_some_and(|ending| ending == ENDING));
        files.sort_by(|one, other| other.cmp(one));
        files.into_iter().map(|(_, path)| path).collect()
    }
}

/// The shape in a file's name.
fn shape_of(path: &Path) -> Option<Shape> {
    let (vcpus, memory_mib) = path.file_stem()?.to_str()?.split_once('-')?.0.split_once('x')?;
    Some(Shape { vcpus: vcpus.parse().ok()?, memory_mib: memory_mib.parse().ok()? })
}

/// Names a template by all that it depends on.
pub(crate) fn key(parts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> Sealed {
        let make = || {
            let memory = file::memory("test", 4096).unwrap();
            file::seal(&memory).unwrap();
            memory
        };
        Sealed { memory: make(), state: make() }
    }

    fn shape(memory_mib: u64) -> Shape {
        Shape { vcpus: 1, memory_mib }
    }

    #[test]
    fn one_start_gets_a_missing_template_and_a_failure_is_not_repeated_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let templates = Templates::new(directory.path().to_owned());
        assert!(matches!(templates.find(shape(1)), Found::Missing));
        assert!(matches!(templates.find(shape(1)), Found::Reading));
        templates.build(shape(1));
        assert!(matches!(templates.find(shape(1)), Found::Building));
        templates.settle(shape(1), "k", Err("told to".to_owned()));
        assert!(matches!(templates.find(shape(1)), Found::Failed(reason) if reason == "told to"));
        assert_eq!(templates.failures(), [(shape(1), "told to".to_owned())]);
        let waits = |times: u32| {
            (0..times).map(|_| {
                let begun = Instant::now();
                templates.settle(shape(1), "k", Err("told to".to_owned()));
                let (_, at) = templates.next_retry().unwrap();
                at.duration_since(begun).as_secs()
            })
        };
        assert_eq!(
            waits(5).collect::<Vec<_>>(),
            [10, 20, 40, 60, 60],
            "twice as late each time, a minute at most"
        );
        templates.settle(shape(1), "k", Ok(sealed()));
        assert_eq!((templates.next_retry(), templates.failures()), (None, Vec::new()));
        templates.prove(shape(1));
        templates.discard(shape(1), "k", "broken");
        assert!(matches!(templates.find(shape(1)), Found::Missing));
        assert!(matches!(templates.find(shape(2)), Found::Missing));
        templates.settle(shape(2), "k", Ok(sealed()));
        assert!(matches!(templates.find(shape(2)), Found::Ready(_)));
        templates.prove(shape(2));
        templates.discard(shape(2), "k", "broken");
        assert!(
            matches!(templates.find(shape(2)), Found::Missing),
            "one that was good is built anew at once"
        );
        templates.settle(shape(2), "k", Ok(sealed()));
        templates.discard(shape(2), "k", "broken");
        assert!(
            matches!(templates.find(shape(2)), Found::Failed(_)),
            "one that never was, after a while"
        );
    }

    /// Longer than any test takes.
    const FOR_EVER: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_template_that_is_being_read_is_waited_for_and_one_that_is_being_built_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let templates = Templates::new(directory.path().to_owned());
        templates.until_read(shape(1), FOR_EVER).await;
        assert!(
            matches!(templates.find(shape(1)), Found::Missing),
            "nobody waits for what nobody reads"
        );
        let read = async {
            // The one that waits has its turn first.
            tokio::task::yield_now().await;
            templates.settle(shape(1), "k", Ok(sealed()));
        };
        tokio::join!(templates.until_read(shape(1), FOR_EVER), read);
        assert!(matches!(templates.find(shape(1)), Found::Ready(_)));

        assert!(matches!(templates.find(shape(2)), Found::Missing));
        let damaged = async {
            tokio::task::yield_now().await;
            templates.build(shape(2));
        };
        tokio::join!(templates.until_read(shape(2), FOR_EVER), damaged);
        assert!(matches!(templates.find(shape(2)), Found::Building));
    }

    #[tokio::test(start_paused = true)]
    async fn a_template_that_a_disk_does_not_give_is_waited_for_a_bounded_time() {
        let directory = tempfile::tempdir().unwrap();
        let templates = Templates::new(directory.path().to_owned());
        assert!(matches!(templates.find(shape(1)), Found::Missing));
        templates.until_read(shape(1), FOR_EVER).await;
        assert!(matches!(templates.find(shape(1)), Found::Reading), "still, but the start goes on");
    }

    #[test]
    fn there_are_never_more_than_the_most() {
        let directory = tempfile::tempdir().unwrap();
        let templates = Templates::new(directory.path().to_owned());
        for size in 0..2 * MOST as u64 {
            templates.settle(shape(size), "k", Ok(sealed()));
            templates.keep(shape(size), "k", &sealed());
            let _ = templates.find(shape(0));
        }
        assert_eq!(templates.files().len(), MOST);
        assert!(matches!(templates.find(shape(0)), Found::Ready(_)), "the one in use stays");
        assert!(matches!(templates.find(shape(1)), Found::Missing), "the one unused longest went");
    }

    #[test]
    fn files_of_another_qemu_kernel_or_processor_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let templates = Templates::new(directory.path().to_owned());
        templates.keep(shape(1), "then", &sealed());
        templates.keep(shape(2), "now", &sealed());
        fs::write(directory.path().join("what.template"), "").unwrap();
        assert_eq!(templates.on_disk(|_| "now".to_owned()), [shape(2)]);
        assert_eq!(templates.files().len(), 1);
    }

    #[test]
    fn a_key_depends_on_each_of_its_parts_and_where_they_end() {
        assert_ne!(key(&["a", "b"]), key(&["a", "c"]));
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
    }
}
