//! Slots: a leased uid, the name of a tap and the name of a cgroup, bound to a machine while its VM lives.

use std::{path::PathBuf, sync::Arc};

/// One leased slot. Dropping the last clone gives it back, unless the VM process still holds its lock.
#[derive(Debug, Clone)]
pub struct Slot {
    inner: Arc<SlotInner>,
}

#[derive(Debug)]
struct SlotInner {
    index: u32,
}

impl Slot {
    /// Number of the slot, from 0.
    pub fn index(&self) -> u32 {
        self.inner.index
    }
    /// The uid and gid its VM process runs as; no other process of the host has them at the same time.
    pub fn uid(&self) -> u32 {
        unimplemented!()
    }
    /// Name of its tap device, at most 15 characters.
    pub fn tap_name(&self) -> String {
        format!("caddis{}", self.inner.index)
    }
    /// Name of its cgroup below the pool's.
    pub fn cgroup_name(&self) -> String {
        format!("slot-{}", self.inner.index)
    }
}

/// All slots of the host. Several servers on one host (tests, demo) share them safely: a slot is held by an exclusive
/// lock on a file.
#[derive(Debug, Clone)]
pub struct SlotPool {
    _directory: PathBuf,
}
