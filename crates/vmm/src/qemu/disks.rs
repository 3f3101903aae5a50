//! The disks of VM processes: block nodes, the descriptors they are opened from, and their exchange
//! while a VM waits.
//!
//! Each [`DiskRole`] has a device from the start on, over the block node of its name:
//!
//! ```text
//! boots, restored  device ▸ node of the role, over the machine's file, or nothing without one
//! waits            device ▸ node of the role, over the warm-up disk
//! assigned         the node is reopened over the machine's file, and told its size
//! ```
//! Those of volumes are over nothing at first, always (`volumes.rs`).

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    descriptor,
    overlay::{self, Clusters},
    qmp::Qmp,
};
use crate::{Disk, DiskFormat, DiskRole, Patch, VmmError};

/// Size of the root disk of most machines, bytes, and so of what is in its place when a template is
/// saved. A guest is told of any other.
pub(super) const DEFAULT_ROOT_BYTES: u64 = 8 << 30;

/// Sets of descriptors that files are opened from, by number: the warm-up disk, the disk with
/// modules; then two per role.
const WARM_UP_SET: u32 = 1;
const MODULES_SET: u32 = 2;
const FIRST_DISK_SET: u32 = 3;

/// The sets of a disk: of the file it is an overlay over, and of its own.
pub(super) fn sets(role: DiskRole) -> [u32; 2] {
    let first = FIRST_DISK_SET + 2 * u32::from(role.index());
    [first, first + 1]
}

/// The set of the file where what is overwritten is kept while a snapshot of a volume is taken.
pub(super) fn fleecing_set(role: DiskRole) -> u32 {
    let [_, last] = sets(DiskRole::Volume(DiskRole::VOLUMES - 1));
    last + 1 + u32::from(role.index())
}

/// What is behind the devices of a VM's disks.
#[derive(Clone, Copy)]
pub(super) enum Backing<'a> {
    /// What a VM that waits has warmed up with, in memory, in the place of the root disk.
    WarmUp(&'a OwnedFd),
    /// These.
    Machine(&'a [Disk]),
}

impl Backing<'_> {
    /// The machine's disks.
    pub(super) fn machine(&self) -> Option<&[Disk]> {
        match self {
            Self::WarmUp(_) => None,
            Self::Machine(disks) => Some(disks),
        }
    }

    /// Files of the machine's disks, with the numbers they are passed under.
    pub(super) fn open(&self) -> Result<Vec<(i32, File)>, VmmError> {
        let mut files = Vec::new();
        for disk in self.machine().unwrap_or_default() {
            let [base, own] = descriptor::of_disk(disk.role);
            if let DiskFormat::Overlay(path) = &disk.format {
                files.push((base, open(path, false)?));
            }
            files.push((own, open(&disk.path, true)?));
        }
        Ok(files)
    }
}

/// Makes the file of a disk, with these bytes on it.
pub(super) fn create(disk: &Disk, patches: &[Patch]) -> io::Result<()> {
    let Disk { format, path, size, .. } = disk;
    let clusters = match format {
        DiskFormat::Raw => return create_raw(path, *size, patches),
        DiskFormat::Overlay(base) if !patches.is_empty() => {
            Clusters::patched(Some(&File::open(base)?), patches)?
        }
        DiskFormat::Overlay(_) | DiskFormat::Qcow2 => Clusters::patched(None, patches)?,
    };
    overlay::create(path, *size, &clusters)
}

fn create_raw(path: &Path, size: u64, patches: &[Patch]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let write = |patch: &Patch| file.write_all_at(&patch.bytes, patch.offset);
    let written = file.set_len(size).and_then(|()| patches.iter().try_for_each(write));
    // Best effort: the first error is the one that matters.
    written.inspect_err(|_| drop(fs::remove_file(path)))
}

/// Arguments for the disks of a machine, or for the warm-up disk.
pub(super) fn arguments(machine: Option<&[Disk]>) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    for role in DiskRole::ALL {
        let name = role.name();
        let ([base_set, own_set], [base, own]) = (sets(role), descriptor::of_disk(role));
        let disk = machine.unwrap_or_default().iter().find(|disk| disk.role == role);
        let node = match disk {
            Some(disk) => {
                if let DiskFormat::Overlay(_) = disk.format {
                    add("-add-fd", format!("fd={base},set={base_set}"));
                }
                add("-add-fd", format!("fd={own},set={own_set}"));
                chain(disk, &name)
            }
            None if machine.is_none() && role == DiskRole::Root => {
                add("-add-fd", format!("fd={own},set={WARM_UP_SET}"));
                over(role, file(WARM_UP_SET, role, false))
            }
            None => over(role, json!({ "driver": "null-co", "size": 0 })),
        };
        add("-blockdev", node.to_string());
        // What can't be written is not lost: the VM stands still, is heard of (`pause.rs`), and the
        // worker lets it go on. What can't be read is for the guest to know, where all is blank
        // again at the next start.
        let errors = if role.lasts() { "rerror=stop" } else { "rerror=report" };
        let place = role.transport();
        let bus = format!("bus=virtio-mmio-bus.{place}");
        let device = format!("virtio-blk-device,drive={name},serial=caddis-{name}");
        add("-device", format!("{device},werror=stop,{errors},{bus}"));
    }
    arguments
}

/// The disk with the kernel's modules: arguments for it. It is there, over nothing, also where the
/// modules are not to be reached, so that what is saved of a VM fits all.
pub(super) fn modules(reachable: bool) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    let file = match reachable {
        true => {
            add("-add-fd", format!("fd={},set={MODULES_SET}", descriptor::MODULES));
            json!({
                "driver": "file", "filename": format!("/dev/fdset/{MODULES_SET}"),
                "read-only": true, "locking": "off",
            })
        }
        false => json!({ "driver": "null-co", "size": 1 << 20, "read-zeroes": true }),
    };
    let node = json!({ "driver": "raw", "node-name": "modules", "read-only": true, "file": file });
    add("-blockdev", node.to_string());
    let place = caddis_guest_protocol::disks::MODULES_TRANSPORT;
    add(
        "-device",
        format!(
            "virtio-blk-device,drive=modules,serial=caddis-modules,bus=virtio-mmio-bus.{place}"
        ),
    );
    arguments
}

/// Puts a machine's disks in the place of what a VM that waits was restored with, which nobody in
/// the guest uses now.
pub(super) fn exchange(qmp: &mut Qmp, disks: &[Disk]) -> Result<(), VmmError> {
    let failed = |error| VmmError::io("replace the disks of a warm VM")(error);
    for disk in disks {
        let [base_set, own_set] = sets(disk.role);
        if let DiskFormat::Overlay(base) = &disk.format {
            qmp.add_descriptor(base_set, open(base, false)?.as_fd()).map_err(failed)?;
        }
        qmp.add_descriptor(own_set, open(&disk.path, true)?.as_fd()).map_err(failed)?;
        let name = format!("machine-{}", disk.role.name());
        let exchange = |qmp: &mut Qmp| {
            qmp.execute("blockdev-add", chain(disk, &name))?;
            let options = json!({ "options": [over(disk.role, json!(name))] });
            qmp.execute("blockdev-reopen", options)?;
            if disk.role == DiskRole::Root {
                // Nothing is behind it any more; its memory goes with it.
                qmp.execute("remove-fd", json!({ "fdset-id": WARM_UP_SET }))?;
            }
            Ok(())
        };
        exchange(qmp).map_err(failed)?;
    }
    tell_sizes(qmp, disks).map_err(failed)
}

/// Has QEMU tell the guest of disks whose size is not the one it was saved with.
pub(super) fn tell_sizes(qmp: &mut Qmp, disks: &[Disk]) -> io::Result<()> {
    for disk in disks {
        if disk.role != DiskRole::Root || disk.size != DEFAULT_ROOT_BYTES {
            // It has that size already; that it is told so makes QEMU tell the guest.
            let options = json!({ "node-name": disk.role.name(), "size": disk.size });
            qmp.execute("block_resize", options)?;
        }
    }
    Ok(())
}

/// The files that hold what a machine has written to its disks.
pub(super) fn files(disks: &[Disk]) -> Vec<PathBuf> {
    disks.iter().map(|disk| disk.path.clone()).collect()
}

pub(super) fn open(path: &Path, writable: bool) -> Result<File, VmmError> {
    let attempted = format!("open {}", path.display());
    OpenOptions::new().read(true).write(writable).open(path).map_err(VmmError::io(attempted))
}

/// A disk, as a block node of that name. Formats are named, never probed, and what a qcow2 refers
/// to is ours to name, whatever its header says.
fn chain(disk: &Disk, node: &str) -> Value {
    let [base_set, own_set] = sets(disk.role);
    let own = file(own_set, disk.role, false);
    let mut chain = json!({
        "driver": "qcow2", "node-name": node, "cache": cache(disk.role), "discard": "unmap",
        "file": own,
    });
    match disk.format {
        DiskFormat::Raw => chain["driver"] = json!("raw"),
        DiskFormat::Qcow2 => chain["backing"] = Value::Null,
        DiskFormat::Overlay(_) => {
            chain["backing"] = json!({
                "driver": "raw", "read-only": true, "cache": cache(disk.role),
                "file": file(base_set, disk.role, true),
            });
        }
    }
    chain
}

/// The node of a role that a device stays on whatever is behind it: a node of that name, or one
/// described here.
pub(super) fn over(role: DiskRole, file: Value) -> Value {
    json!({
        "driver": "raw", "node-name": role.name(), "cache": cache(role), "discard": "unmap",
        "file": file,
    })
}

fn file(set: u32, role: DiskRole, read_only: bool) -> Value {
    let name = format!("/dev/fdset/{set}");
    let mut node =
        json!({ "driver": "file", "filename": name, "locking": "off", "cache": cache(role) });
    node[if read_only { "read-only" } else { "discard" }] =
        if read_only { json!(true) } else { json!("unmap") };
    node
}

/// Flushes of what is blank again at the next start are dropped: nothing in it need survive the
/// host. What must, because the machine is suspended, is written through then.
pub(super) fn cache(role: DiskRole) -> Value {
    json!({ "direct": false, "no-flush": !role.lasts() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(role: DiskRole, format: DiskFormat) -> Disk {
        Disk { role, format, path: "/nowhere".into(), size: 1 << 30 }
    }

    /// The block nodes of a VM by name, and what each device is told.
    fn described(disks: &[Disk]) -> (Vec<Value>, Vec<String>) {
        let arguments = arguments(Some(disks));
        let of = |option: &str| {
            let values = arguments.chunks(2).filter(|pair| pair[0] == option);
            values.map(|pair| pair[1].clone()).collect::<Vec<_>>()
        };
        let nodes = of("-blockdev");
        (nodes.iter().map(|node| serde_json::from_str(node).unwrap()).collect(), of("-device"))
    }

    #[test]
    fn every_role_has_sets_and_descriptors_of_its_own() {
        let mut sets: Vec<_> = DiskRole::ALL.iter().flat_map(|role| sets(*role)).collect();
        assert_eq!(sets, Vec::from_iter(FIRST_DISK_SET..FIRST_DISK_SET + 10));
        sets.extend([WARM_UP_SET, MODULES_SET]);
        sets.extend((0..DiskRole::VOLUMES).map(|index| fleecing_set(DiskRole::Volume(index))));
        assert_eq!(sets.iter().collect::<std::collections::HashSet<_>>().len(), sets.len());
        let descriptors = DiskRole::ALL.iter().flat_map(|role| descriptor::of_disk(*role));
        let first = descriptor::of_disk(DiskRole::Root)[0];
        assert!(descriptors.eq(first..first + 10));
    }

    #[test]
    fn every_role_has_a_device_at_its_place_whatever_disks_there_are() {
        let root = disk(DiskRole::Root, DiskFormat::Overlay("/base".into()));
        let cache = disk(DiskRole::Cache, DiskFormat::Qcow2);
        let (few, devices) = described(std::slice::from_ref(&root));
        let (more, same) = described(&[cache, root]);
        assert_eq!(devices, same);
        assert_eq!(devices.len(), DiskRole::ALL.len());
        let names = |nodes: &[Value]| {
            nodes.iter().map(|node| node["node-name"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&few), names(&more));
        assert_eq!(few[2]["file"]["driver"], "null-co");
        assert_eq!((&more[2]["driver"], &more[2]["backing"]), (&json!("qcow2"), &Value::Null));
        let mut places: Vec<_> = DiskRole::ALL.iter().map(|role| role.transport()).collect();
        places.push(caddis_guest_protocol::disks::MODULES_TRANSPORT);
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 1 + DiskRole::ALL.len());
    }

    /// All values of a key in a description, however deep.
    fn all(node: &Value, key: &str) -> Vec<Value> {
        let Some(fields) = node.as_object() else { return Vec::new() };
        let mut found: Vec<_> = fields.get(key).cloned().into_iter().collect();
        found.extend(fields.values().flat_map(|field| all(field, key)));
        found
    }

    #[test]
    fn flushes_of_volumes_are_real_and_their_errors_stop_the_vm() {
        let (nodes, devices) = described(&[
            disk(DiskRole::Root, DiskFormat::Overlay("/base".into())),
            disk(DiskRole::Swap, DiskFormat::Raw),
        ]);
        for (role, (node, device)) in DiskRole::ALL.iter().zip(nodes.iter().zip(&devices)) {
            let dropped = all(node, "no-flush");
            assert!(!dropped.is_empty());
            assert!(dropped.iter().all(|dropped| *dropped == json!(!role.lasts())), "{node}");
            assert!(device.contains("werror=stop"), "{device}");
            assert_eq!(device.contains("rerror=stop"), role.lasts(), "{device}");
        }
    }
}
