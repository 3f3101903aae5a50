//! Holds all programs of the VM still, so that none of them sees a moment that is neither before nor after.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const CGROUPS: &str = "/sys/fs/cgroup";
/// A program that waits for a disk stands still only after that.
const PATIENCE: Duration = Duration::from_secs(5);

/// Has all programs stand still, and writes out what is not on the disks yet.
pub fn freeze() -> Result<(), String> {
    let cgroups = cgroups();
    for cgroup in &cgroups {
        set(cgroup, "1").map_err(|error| format!("can't hold {} still: {error}", cgroup.display()))?;
    }
    let deadline = Instant::now() + PATIENCE;
    for cgroup in &cgroups {
        wait(cgroup, deadline)?;
    }
    // The root file system must be whole without this memory: it may be lost.
    nix::unistd::sync();
    Ok(())
}

/// Lets them go on.
pub fn thaw() {
    for cgroup in cgroups() {
        // One that is gone has nothing to go on with.
        let _ = set(&cgroup, "0");
    }
}

/// All below the root, in which there is nobody but init. What is below these goes with them.
fn cgroups() -> Vec<PathBuf> {
    let entries = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.join("cgroup.freeze").exists()).collect()
}

fn set(cgroup: &Path, value: &str) -> std::io::Result<()> {
    fs::write(cgroup.join("cgroup.freeze"), value)
}

fn wait(cgroup: &Path, deadline: Instant) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("can't hold {} still: {error}", cgroup.display());
    let mut events = File::open(cgroup.join("cgroup.events")).map_err(|e| failed(&e))?;
    let mut text = String::new();
    loop {
        text.clear();
        events.rewind().and_then(|()| events.read_to_string(&mut text)).map_err(|e| failed(&e))?;
        if text.lines().any(|line| line == "frozen 1") || text.lines().any(|line| line == "populated 0") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(failed(&"a program of it does not stop in time"));
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout).map_err(|e| failed(&e))?;
    }
}
