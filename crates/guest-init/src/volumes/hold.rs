//! File systems held still, and let go on.
//!
//! ```text
//! opened ▸ synced ▸ frozen ▸ init is told ▸ [ThawVolumes, or the time is over] ▸ thawed
//! ```
//! One process does all of it: while programs wait, nothing is started, looked up or opened.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use caddis_guest_protocol::spec::MountSpec;
use nix::{
    errno::Errno,
    time::{ClockId, clock_gettime},
};

use super::{open_root, with_filesystem};
use crate::{filesystem, kernel};

/// File systems that stand still: the places of their volumes, and their roots.
pub type Still = Vec<(String, File)>;

/// Holds the file systems of all still, and says since when, microseconds, if there are any; when
/// it is `deadline` before all do, none. The kernel hurries until [`let_go`].
pub fn freeze(mounts: &[MountSpec], deadline: Instant) -> Result<(String, Still), String> {
    let mut roots = Vec::new();
    for spec in with_filesystem(mounts) {
        roots.push((spec.path.clone(), open_root(spec)?));
    }
    // So that holding them takes no time: writers wait for that. The second time writes out what
    // was written during the first, which may have been long.
    for _ in 0..2 {
        for (path, root) in &roots {
            nix::unistd::syncfs(root).map_err(|error| failed(path, error))?;
        }
    }
    // The kernel waits three times per file system for its processors to have seen that it is
    // being frozen, for two or three ticks of 4 ms each, and writers wait with it.
    kernel::hurry(true);
    let (mut held, mut since) = (Vec::new(), None);
    for (path, root) in roots {
        since.get_or_insert_with(now);
        let frozen = filesystem::freeze(&root).map_err(|error| failed(&path, error));
        let frozen = frozen.map(|()| held.push((path, root)));
        let is_late = Instant::now() >= deadline;
        let late = || Err("holding the volumes still took too long".to_owned());
        if let Err(reason) = frozen.and_then(|()| if is_late { late() } else { Ok(()) }) {
            // What goes on already need not.
            let _ = let_go(held);
            return Err(reason);
        }
    }
    Ok((since.map(said).unwrap_or_default(), held))
}

fn failed(path: &str, error: nix::Error) -> String {
    format!("can't hold the volume at {path} still: {error}")
}

/// Lets file systems go on that stand still, and says when, by the clock of [`freeze`].
pub fn let_go(still: Still) -> Result<String, String> {
    let thawed = still.iter().map(|(path, root)| thaw_one(path, root)).fold(Ok(()), Result::and);
    let until = now();
    kernel::hurry(false);
    thawed.map(|()| said(until))
}

/// The same for all volumes, whoever holds them; those that go on are left.
pub fn thaw(mounts: &[MountSpec]) -> Result<String, String> {
    let thaw = |spec: &MountSpec| thaw_one(&spec.path, &open_root(spec)?);
    let thawed = with_filesystem(mounts).map(thaw).fold(Ok(()), Result::and);
    let until = now();
    kernel::hurry(false);
    thawed.map(|()| said(until))
}

fn thaw_one(path: &str, root: &File) -> Result<(), String> {
    match filesystem::thaw(root) {
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(error) => Err(format!("can't let the volume at {path} go on: {error}")),
    }
}

/// Time of the kernel's clock that is never set.
fn now() -> Duration {
    // It can't fail for this clock.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

fn said(time: Duration) -> String {
    time.as_micros().to_string()
}
