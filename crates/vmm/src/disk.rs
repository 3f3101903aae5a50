//! Disks of a VM.

use std::path::PathBuf;

use caddis_guest_protocol::disks;

use crate::VmmError;

/// What a disk is to its machine.
///
/// Each role has a place of its own on the VM's bus, by which the guest knows it, and its device is
/// there from the VM's start on, with a disk of 0 bytes behind it where the machine has none: what
/// is saved of one VM fits every machine, whatever disks it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskRole {
    /// The root file system. Blank again at the next start.
    Root,
    /// Swap. Blank again at the next start.
    Swap,
    /// What can be had again. Blank again at the next start.
    Cache,
    /// What must last: flushes of the guest are flushes of the file. From 0 on.
    Volume(u8),
}

impl DiskRole {
    /// Volumes of a machine, at most.
    pub const VOLUMES: u8 = 2;

    /// All of them, in the order in which the guest gives them names.
    pub const ALL: [Self; 5] =
        [Self::Root, Self::Swap, Self::Cache, Self::Volume(0), Self::Volume(1)];

    /// Its place in [`Self::ALL`].
    pub fn index(self) -> u8 {
        match self {
            Self::Root => 0,
            Self::Swap => 1,
            Self::Cache => 2,
            Self::Volume(number) => number.saturating_add(3),
        }
    }

    /// Its name; with `caddis-` before it the disk's serial number, as programs in the guest find
    /// it in `/sys/block/*/serial`.
    pub fn name(self) -> String {
        match self {
            Self::Root => "root".to_owned(),
            Self::Swap => "swap".to_owned(),
            Self::Cache => "cache".to_owned(),
            Self::Volume(number) => format!("volume{number}"),
        }
    }

    /// The virtio transport that its device is on.
    pub fn transport(self) -> u32 {
        match self {
            Self::Root => disks::ROOT_TRANSPORT,
            Self::Swap => disks::SWAP_TRANSPORT,
            Self::Cache => disks::CACHE_TRANSPORT,
            Self::Volume(number) => disks::FIRST_VOLUME_TRANSPORT + u32::from(number),
        }
    }

    /// Whether what the guest has flushed must survive the host. What is blank again at the next
    /// start need not.
    pub fn lasts(self) -> bool {
        matches!(self, Self::Volume(_))
    }
}

/// How a disk is kept in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskFormat {
    /// Byte by byte.
    Raw,
    /// qcow2 that refers to no other file.
    Qcow2,
    /// What differs from this file, which is raw, read-only, and may be shared by several VMs. How
    /// that is written down is the driver's own business: it makes the file
    /// ([`crate::Vmm::create_disk`]).
    Overlay(PathBuf),
}

/// A disk of a machine.
#[derive(Debug, Clone)]
pub struct Disk {
    /// What it is to the machine.
    pub role: DiskRole,
    /// How it is kept; never probed.
    pub format: DiskFormat,
    /// The file.
    pub path: PathBuf,
    /// What the guest sees of it, bytes.
    pub size: u64,
}

/// Whether a machine can have these disks.
///
/// # Errors
/// [`VmmError::InvalidDisk`] for a volume, which is no such disk, and for a second disk of a role.
pub(crate) fn check(disks: &[Disk]) -> Result<(), VmmError> {
    for (index, Disk { role, .. }) in disks.iter().enumerate() {
        let invalid = |reason| VmmError::InvalidDisk { name: role.name(), reason };
        if let DiskRole::Volume(_) = role {
            return Err(invalid("a volume is given by its open file".to_owned()));
        }
        if disks[..index].iter().any(|other| other.role == *role) {
            return Err(invalid("the machine has another disk of this name".to_owned()));
        }
    }
    Ok(())
}

/// Bytes that are on a disk from the start on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// Where, bytes from its beginning.
    pub offset: u64,
    /// What.
    pub bytes: Vec<u8>,
}
