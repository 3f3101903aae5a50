//! What a VM process has of its volumes, found by names that say what for and of which volume: a
//! server that adopts the process knows nothing else.
//!
//! ```text
//! device ▸ volumeN ▸ machine-volumeN ▸ file
//! snapshot      volumeN ▸ filter-volumeN ▸ machine-volumeN
//!                         filter-volumeN ▸ fleecing-volumeN, where what is overwritten is kept
//!               export snapshot-volumeN ▸ node snapshot-volumeN ▸ filter-volumeN
//! restored      machine-volumeN ▸ backing-volumeN ▸ server-volumeN
//! while copied  volumeN ▸ stream-volumeN ▸ machine-volumeN, by the job hydrate-volumeN
//! ```

use std::io;

use serde_json::{Value, json};

use crate::{DiskRole, VmmError, qemu::qmp::Qmp, volume};

/// One of the things that are called after a volume.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    /// The volume's qcow2.
    Machine,
    /// What opens its LUKS layer.
    Key,
    /// Where what is overwritten is kept.
    Fleecing,
    /// What opens the LUKS layer of that.
    FleecingKey,
    /// Has what is overwritten copied first.
    Filter,
    /// The volume at an instant; a node and its export.
    Snapshot,
    /// What a volume that is being restored is read from.
    Backing,
    /// The connection to it.
    Server,
    /// Copies it.
    Hydrate,
    /// Is there while it is copied.
    Stream,
}

/// Names of what belongs to a volume.
#[derive(Debug)]
pub(super) struct Names {
    /// The node that its device is on.
    pub(super) slot: String,
    role: DiskRole,
}

impl Names {
    pub(super) fn of(index: u8) -> Self {
        let role = DiskRole::Volume(index);
        Self { slot: role.name(), role }
    }

    pub(super) fn part(&self, part: Part) -> String {
        let word = match part {
            Part::Machine => "machine",
            Part::Key => "key",
            Part::Fleecing => "fleecing",
            Part::FleecingKey => "fleecing-key",
            Part::Filter => "filter",
            Part::Snapshot => "snapshot",
            Part::Backing => "backing",
            Part::Server => "server",
            Part::Hydrate => "hydrate",
            Part::Stream => "stream",
        };
        format!("{word}-{}", self.slot)
    }

    pub(super) fn role(&self) -> DiskRole {
        self.role
    }

    /// What the VM can't do with it, and why.
    pub(super) fn refused(&self, reason: impl Into<String>) -> VmmError {
        VmmError::InvalidDisk { name: self.slot.clone(), reason: reason.into() }
    }

    /// For `map_err`: says what was attempted with it.
    pub(super) fn failed(&self, what: &str) -> impl FnOnce(io::Error) -> VmmError + use<> {
        VmmError::io(format!("{what} {}", self.slot))
    }
}

/// A dirty bitmap of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bitmap {
    pub(super) name: String,
    /// It notes what changes.
    pub(super) is_recording: bool,
}

/// The block nodes of a VM process.
pub(in crate::qemu) struct Nodes(Vec<Value>);

impl Nodes {
    pub(in crate::qemu) fn query(qmp: &mut Qmp) -> io::Result<Self> {
        let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true }))?;
        match nodes {
            Value::Array(nodes) => Ok(Self(nodes)),
            _ => Err(io::Error::other("QEMU does not list its block nodes")),
        }
    }

    fn find(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|node| node["node-name"] == json!(name))
    }

    pub(super) fn has(&self, names: &Names, part: Part) -> bool {
        self.find(&names.part(part)).is_some()
    }

    /// Whether a node is read from another where it has nothing itself.
    pub(super) fn is_backed(&self, names: &Names) -> bool {
        let node = self.find(&names.part(Part::Machine));
        node.is_some_and(|node| node.get("backing_file").is_some())
    }

    /// What the guest sees of a volume, bytes.
    ///
    /// # Errors
    /// [`VmmError::InvalidDisk`] where there is no such volume.
    pub(super) fn size(&self, names: &Names) -> Result<u64, VmmError> {
        let node = self.find(&names.slot);
        let size = node.and_then(|node| node.pointer("/image/virtual-size")?.as_u64());
        size.filter(|size| *size > 0).ok_or_else(|| names.refused(volume::MISSING))
    }

    /// Bitmaps of a volume, by our names.
    pub(super) fn bitmaps(&self, names: &Names) -> Vec<Bitmap> {
        let node = self.find(&names.part(Part::Machine));
        let bitmaps = node.and_then(|node| node.get("dirty-bitmaps")?.as_array());
        let named = |bitmap: &Value| {
            let name = bitmap.get("name")?.as_str()?.to_owned();
            Some(Bitmap { name, is_recording: bitmap["recording"] == json!(true) })
        };
        bitmaps.into_iter().flatten().filter_map(named).collect()
    }

    /// Why the VM can't be saved now, with its disks as they are.
    pub(in crate::qemu) fn in_the_way_of_saving(&self) -> Option<String> {
        (0..DiskRole::VOLUMES).map(Names::of).find_map(|names| {
            let reason = if self.has(&names, Part::Backing) {
                volume::RESTORING
            } else if self.is_snapshot_open(&names) {
                volume::SNAPSHOT_OPEN
            } else {
                return None;
            };
            Some(format!("{}: {reason}", names.slot))
        })
    }

    pub(super) fn is_snapshot_open(&self, names: &Names) -> bool {
        [Part::Filter, Part::Fleecing, Part::Snapshot].iter().any(|part| self.has(names, *part))
    }
}

#[cfg(test)]
pub(super) fn nodes(nodes: Value) -> Nodes {
    Nodes(nodes.as_array().unwrap().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_of_saving_is_named() {
        let of = |names: &[&str]| {
            let named = names.iter().map(|name| json!({ "node-name": name }));
            nodes(named.collect()).in_the_way_of_saving()
        };
        assert_eq!(of(&["volume0", "machine-volume0", "root"]), None);
        for (names, expected) in [
            (["machine-volume0", "backing-volume0"], "volume0: it is still being restored"),
            (["machine-volume1", "filter-volume1"], "volume1: a snapshot of it is being taken"),
        ] {
            assert_eq!(of(&names).as_deref(), Some(expected));
        }
    }

    #[test]
    fn names_are_no_longer_than_those_of_nodes_may_be() {
        for part in [Part::FleecingKey, Part::Snapshot, Part::Fleecing] {
            assert!(Names::of(u8::MAX).part(part).len() <= 31);
        }
    }
}
