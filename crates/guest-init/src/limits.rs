//! Limits of a machine's processes. Init has its own: what a machine may be bounded to would not do
//! for it.

use std::fs;

use caddis_guest_protocol::MachineSpec;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

/// Open files a program begins with, as the reference's init sets it.
const OPEN_FILES: u64 = 10_240;
/// Open files a process can have at most.
const MOST_OPEN_FILES: &str = "/proc/sys/fs/nr_open";

/// Soft and hard limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    files: (u64, u64),
    processes: (u64, u64),
}

impl Limits {
    /// Those of a machine; the kernel allows them from here on.
    pub fn of(spec: &MachineSpec) -> Result<Self, String> {
        let (files, processes) = (spec.open_files, spec.user_processes);
        let text = fs::read_to_string(MOST_OPEN_FILES)
            .map_err(|e| format!("can't read {MOST_OPEN_FILES}: {e}"))?;
        let most = text.trim().parse().unwrap_or(OPEN_FILES);
        // Databases want many, and raise their soft limit themselves; a soft limit that high has
        // others loop over all of them.
        let hard = files.hard.unwrap_or(most.max(files.soft.unwrap_or(0)));
        if hard > most {
            fs::write(MOST_OPEN_FILES, hard.to_string())
                .map_err(|e| format!("can't allow {hard} open files: {e}"))?;
        }
        let files = (files.soft.unwrap_or(OPEN_FILES).min(hard), hard);
        // The kernel's own limit is a part of the memory. There is nobody else in this VM to be
        // kept from it.
        let hard = processes.hard.unwrap_or(RLIM_INFINITY);
        let processes = (processes.soft.unwrap_or(hard).min(hard), hard);
        // Each program and session takes some of init's.
        setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES.max(most))
            .map_err(|e| format!("can't set the open files limit of init: {e}"))?;
        Ok(Self { files, processes })
    }

    /// As numbers, and back.
    pub fn to_numbers(self) -> [u64; 4] {
        [self.files.0, self.files.1, self.processes.0, self.processes.1]
    }

    /// As [`Self::to_numbers`] gives them.
    pub fn from_numbers([files, most_files, processes, most_processes]: [u64; 4]) -> Self {
        Self { files: (files, most_files), processes: (processes, most_processes) }
    }

    /// In the child: they are its own from here on.
    pub fn take(self) -> nix::Result<()> {
        setrlimit(Resource::RLIMIT_NOFILE, self.files.0, self.files.1)?;
        setrlimit(Resource::RLIMIT_NPROC, self.processes.0, self.processes.1)
    }
}
