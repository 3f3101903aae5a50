//! Holds all programs of the VM still, so that none of them sees a moment that is neither before
//! nor after.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, Write as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const CGROUPS: &str = "/sys/fs/cgroup";
/// A program that waits for a disk stands still only after that.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What stands still. After a resume each step is dear under emulation, so all that can be is done
/// before.
#[derive(Debug, Default)]
pub struct Freezer {
    held: Vec<File>,
}

impl Freezer {
    /// Has all programs stand still.
    pub fn freeze(&mut self) -> Result<(), String> {
        let cgroups = cgroups();
        self.held.clear();
        for cgroup in &cgroups {
            let failed = |error| format!("can't freeze {}: {error}", cgroup.display());
            let mut switch =
                File::options().write(true).open(cgroup.join("cgroup.freeze")).map_err(failed)?;
            switch.write_all(b"1").map_err(failed)?;
            self.held.push(switch);
        }
        let deadline = Instant::now() + TIMEOUT;
        cgroups.iter().try_for_each(|cgroup| wait(cgroup, deadline))
    }

    /// Lets them go on.
    pub fn thaw(&mut self) {
        for mut switch in self.held.drain(..) {
            // One that is gone has nothing to go on with.
            let _ = switch.write_all(b"0");
        }
    }
}

/// All below the root, in which there is nobody but init. What is below these goes with them.
fn cgroups() -> Vec<PathBuf> {
    let entries = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.join("cgroup.freeze").exists()).collect()
}

fn wait(cgroup: &Path, deadline: Instant) -> Result<(), String> {
    let failed =
        |error: &dyn std::fmt::Display| format!("can't freeze {}: {error}", cgroup.display());
    let mut events = File::open(cgroup.join("cgroup.events")).map_err(|e| failed(&e))?;
    let mut text = String::new();
    loop {
        text.clear();
        events.rewind().and_then(|()| events.read_to_string(&mut text)).map_err(|e| failed(&e))?;
        if text.lines().any(|line| line == "frozen 1")
            || text.lines().any(|line| line == "populated 0")
        {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(failed(&"a program of it does not stop in time"));
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout)
            .map_err(|e| failed(&e))?;
    }
}
