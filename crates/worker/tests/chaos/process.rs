//! What this process takes of its host.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;

/// Descriptors and memory.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    pub descriptors: usize,
    pub memory_kib: usize,
}

impl Taken {
    pub fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Self {
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
            memory_kib: resident.trim().strip_suffix(" kB").unwrap().parse().unwrap(),
        }
    }

    /// Whether it is no more than what was taken before, but for what an allocator keeps and others
    /// take meanwhile.
    pub fn is_flat_since(self, before: Self) -> bool {
        self.descriptors <= before.descriptors + 8
            && self.memory_kib <= before.memory_kib * 3 / 2 + 48 * 1024
    }
}
