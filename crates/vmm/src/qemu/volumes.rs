//! Volumes of VM processes. Whatever way a VM starts, its volumes come by QMP and before its guest
//! goes on: what opens an encrypted one is in no argument, environment or file, and the file is the
//! open one that the driver was handed.
//!
//! ```text
//! device ▸ node of the slot, over nothing
//! add-fd ▸ secret ▸ qcow2 node ▸ the slot's node is reopened over it
//!        ▸ [restored] the guest is told of the size
//! ```
//! A volume that is being restored has a backing (`volumes/hydrate.rs`), one of which a snapshot is
//! taken a filter (`volumes/point.rs`).
//!
//!
//! The secret stays as long as the process: when a VM goes on whose devices were saved, QEMU opens
//! its qcow2 layers again, and looks it up again.

use std::{
    fs::File,
    io,
    os::{fd::AsFd as _, unix::fs::FileExt as _},
};

use serde_json::{Value, json};

use self::layout::{Names, Part};
pub(super) use self::{
    clone::clone,
    hydrate::hydrate,
    layout::Nodes,
    point::{
        begin as begin_snapshot, end as end_snapshot, export as export_snapshot,
        prepare as prepare_snapshot,
    },
};
use super::{
    disks::{cache, over, sets},
    qmp::Qmp,
};
use crate::{Passphrase, VmmError, VolumeDisk, process::Process, volume};

mod clone;
mod hydrate;
mod layout;
mod point;

/// Where a qcow2 says its size (docs/interop/qcow2.txt of QEMU), big endian.
const SIZE_AT: u64 = 24;
/// Where it says what a reader has to know of it, and that its L2 entries are extended.
const FEATURES_AT: u64 = 72;
const EXTENDED_L2: u64 = 1 << 4;

/// What the guest knows of a volume's device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guest {
    /// Nothing yet, or all of it: it boots, or is resumed with the volumes that it had.
    Knows,
    /// That nothing is behind it: it is restored from a template.
    IsTold,
}

/// Puts volumes behind their devices.
pub(super) fn attach(
    qmp: &mut Qmp,
    process: &Process,
    volumes: &[VolumeDisk],
    guest: Guest,
) -> Result<(), VmmError> {
    for volume in volumes {
        let name = volume.role().name();
        attach_one(qmp, process, volume, guest).map_err(|error| match error.kind() {
            // QEMU refuses it.
            io::ErrorKind::InvalidInput => {
                VmmError::InvalidDisk { name, reason: error.to_string() }
            }
            _ => VmmError::io(format!("attach {name}"))(error),
        })?;
    }
    Ok(())
}

fn attach_one(
    qmp: &mut Qmp,
    process: &Process,
    volume: &VolumeDisk,
    guest: Guest,
) -> io::Result<()> {
    let size = number(volume, SIZE_AT)?;
    let invalid = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    if size > volume.size {
        return invalid(format!(
            "its file has {size} bytes, more than the {} it should",
            volume.size
        ));
    }
    if volume.backing.is_some() && number(volume, FEATURES_AT)? & EXTENDED_L2 != 0 {
        // QEMU 7.2 aborts where it copies into a cluster that the guest has written to in part.
        return invalid("a qcow2 with extended L2 entries can't be restored in use".to_owned());
    }
    let (role, names) = (volume.role(), Names::of(volume.index));
    let (node, secret) = (names.part(Part::Machine), names.part(Part::Key));
    qmp.add_descriptor(own_set(&names), volume.file.as_fd())?;
    if let Some(passphrase) = &volume.passphrase {
        add_secret(qmp, &secret, passphrase)?;
    }
    let backing = volume.backing.as_ref();
    let backing =
        backing.map(|backing| hydrate::open(qmp, process, &names, backing)).transpose()?;
    qmp.execute("blockdev-add", chain(volume, &names, backing))?;
    qmp.execute("blockdev-reopen", json!({ "options": [over(role, json!(node))] }))?;
    if guest == Guest::IsTold || size < volume.size {
        // Where it has that size already this makes QEMU tell the guest.
        qmp.execute("block_resize", json!({ "node-name": names.slot, "size": volume.size }))?;
    }
    Ok(())
}

fn add_secret(qmp: &mut Qmp, id: &str, passphrase: &Passphrase) -> io::Result<()> {
    let secret = json!({ "qom-type": "secret", "id": id, "data": passphrase.reveal() });
    qmp.execute("object-add", secret).map(drop)
}

/// A number that the file says. The size of one that was grown while nobody told its VM is smaller
/// than it should be.
fn number(volume: &VolumeDisk, at: u64) -> io::Result<u64> {
    let file = File::from(volume.file.try_clone()?);
    let mut number = [0; 8];
    file.read_exact_at(&mut number, at)?;
    Ok(u64::from_be_bytes(number))
}

/// The set of descriptors of a volume's file.
fn own_set(names: &Names) -> u32 {
    let [_, own] = sets(names.role());
    own
}

/// A volume, as a block node of that name. Its file is locked once more in QEMU's own way, which
/// refuses whoever opens it by its path with one of QEMU's programs.
///
/// Zeroes are written as they are (`detect-zeroes`): a program that fills a file with them before
/// it uses it wants the space to be there later.
fn chain(volume: &VolumeDisk, names: &Names, backing: Option<String>) -> Value {
    let role = volume.role();
    let own = own_set(names);
    let mut chain = json!({
        "driver": "qcow2", "node-name": names.part(Part::Machine), "backing": backing,
        "cache": cache(role), "discard": "unmap", "detect-zeroes": "off",
        "file": {
            "driver": "file", "filename": format!("/dev/fdset/{own}"), "locking": "on",
            "cache": cache(role), "discard": "unmap",
        },
    });
    if volume.passphrase.is_some() {
        chain["encrypt"] = json!({ "format": "luks", "key-secret": names.part(Part::Key) });
    }
    chain
}

/// Has the file of a volume grow to so many bytes, and the guest told.
///
/// Not while a snapshot of it is open, since QEMU 7.2 aborts when a bitmap that is exported grows;
/// nor while it is copied from its backing, which QEMU refuses.
pub(super) fn resize(qmp: &mut Qmp, index: u8, bytes: u64) -> Result<(), VmmError> {
    let names = Names::of(index);
    let failed = || names.failed("resize");
    let nodes = Nodes::query(qmp).map_err(failed())?;
    let size = nodes.size(&names)?;
    if size > bytes {
        return Err(names.refused(format!("it has {size} bytes, and is not made smaller")));
    }
    if nodes.is_snapshot_open(&names) {
        return Err(names.refused(volume::SNAPSHOT_OPEN));
    }
    if nodes.has(&names, Part::Stream) {
        return Err(names.refused(volume::RESTORING));
    }
    let options = json!({ "node-name": names.slot, "size": bytes });
    qmp.execute("block_resize", options).map(drop).map_err(failed())
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, sync::Arc};

    use super::*;

    fn volume(size: u64, passphrase: Option<Passphrase>) -> VolumeDisk {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0; SIZE_AT as usize]).unwrap();
        file.write_all(&size.to_be_bytes()).unwrap();
        VolumeDisk { index: 1, file: Arc::new(file.into()), passphrase, size, backing: None }
    }

    #[test]
    fn a_size_is_read_where_qcow2_has_it() {
        assert_eq!(number(&volume(5 << 30, None), SIZE_AT).unwrap(), 5 << 30);
    }

    #[test]
    fn flushes_are_real_no_file_is_named_and_a_secret_only_by_its_id() {
        let passphrase = Passphrase::new("secret words".to_owned());
        let names = Names::of(1);
        let encrypted = chain(&volume(1, Some(passphrase)), &names, None);
        let plain = chain(&volume(1, None), &names, None);
        for chain in [&encrypted, &plain] {
            let text = chain.to_string();
            assert!(text.contains("\"no-flush\":false") && !text.contains("\"no-flush\":true"));
            assert_eq!(chain["backing"], Value::Null);
            let set = own_set(&names);
            assert_eq!(chain["file"]["filename"], json!(format!("/dev/fdset/{set}")));
            assert!(!text.contains("secret words"));
        }
        assert_eq!(encrypted["encrypt"]["key-secret"], "key-volume1");
        assert!(plain.get("encrypt").is_none());
    }
}
