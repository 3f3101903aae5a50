//! Blank qcow2 overlays, written by hand: no program is spawned on the start path, and no backing file is named in
//! the header, so that nothing can be tricked into opening one (the VMM is told the base explicitly).
//!
//! ```text
//!  0        64 Ki             128 Ki            192 Ki
//!  │ header │ refcount table  │ refcount block  │ L1 table (all zero: everything comes from the base) │
//! ```
//! Layout and field meanings: QEMU's docs/interop/qcow2.txt, version 3.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// What one L1 entry maps: a cluster of 8-byte L2 entries, each one cluster.
const BYTES_PER_L1_ENTRY: u64 = CLUSTER / 8 * CLUSTER;
const HEADER_LENGTH: u32 = 104;
const REFCOUNT_TABLE_AT: u64 = CLUSTER;
const REFCOUNT_BLOCK_AT: u64 = 2 * CLUSTER;
const L1_TABLE_AT: u64 = 3 * CLUSTER;
/// QEMU takes an L1 table of at most 32 MiB; 64 TiB stays well below it.
const LARGEST: u64 = 64 << 40;

/// Writes a blank overlay of `virtual_size` bytes to `path`, mode 0600, in place of whatever file is there (a process
/// that still has the old one open keeps the old one).
///
/// # Errors
/// `InvalidInput` when the size is 0, no multiple of 512, or above 64 TiB; else what the file system says.
pub fn create(path: &Path, virtual_size: u64) -> io::Result<()> {
    if virtual_size == 0 || !virtual_size.is_multiple_of(512) || virtual_size > LARGEST {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("an overlay of {virtual_size} bytes: it must be a multiple of 512, at most {LARGEST}"),
        ));
    }
    let l1_entries = virtual_size.div_ceil(BYTES_PER_L1_ENTRY);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER);
    let used_clusters = 3 + l1_clusters;

    let mut header = Vec::with_capacity(HEADER_LENGTH as usize + 8);
    header.extend_from_slice(b"QFI\xfb");
    header.extend(3u32.to_be_bytes()); // version
    header.extend(0u64.to_be_bytes()); // no backing file name
    header.extend(0u32.to_be_bytes());
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(virtual_size.to_be_bytes());
    header.extend(0u32.to_be_bytes()); // no encryption
    header.extend((l1_entries as u32).to_be_bytes());
    header.extend(L1_TABLE_AT.to_be_bytes());
    header.extend(REFCOUNT_TABLE_AT.to_be_bytes());
    header.extend(1u32.to_be_bytes()); // clusters of the refcount table
    header.extend(0u32.to_be_bytes()); // snapshots
    header.extend(0u64.to_be_bytes());
    header.extend(0u64.to_be_bytes()); // incompatible features
    header.extend(0u64.to_be_bytes()); // compatible features
    header.extend(0u64.to_be_bytes()); // autoclear features
    header.extend(4u32.to_be_bytes()); // refcounts of 16 bits
    header.extend(HEADER_LENGTH.to_be_bytes());
    header.extend(0u64.to_be_bytes()); // end of header extensions

    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file
        .set_len(L1_TABLE_AT + l1_clusters * CLUSTER)
        .and_then(|()| file.write_all_at(&header, 0))
        .and_then(|()| file.write_all_at(&REFCOUNT_BLOCK_AT.to_be_bytes(), REFCOUNT_TABLE_AT))
        .and_then(|()| {
            let counts: Vec<u8> = (0..used_clusters).flat_map(|_| 1u16.to_be_bytes()).collect();
            file.write_all_at(&counts, REFCOUNT_BLOCK_AT)
        });
    if written.is_err() {
        // Best effort: the first error is the one that matters.
        let _ = fs::remove_file(path);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn qemu_img(arguments: &[&str]) -> String {
        let output =
            Command::new("qemu-img").args(arguments).output().expect("qemu-img is needed: apt-get install qemu-utils");
        assert!(output.status.success(), "qemu-img {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn qemu_accepts_overlays_of_all_sizes_and_they_name_no_backing_file() {
        let directory = tempfile::tempdir().unwrap();
        for size in [512, 1 << 20, (8 << 30) - 512, 8 << 30, 500 << 30, 5 << 40, LARGEST] {
            let path = directory.path().join(format!("{size}.qcow2"));
            create(&path, size).unwrap();
            let path = path.to_str().unwrap();
            qemu_img(&["check", "-f", "qcow2", path]);
            let info: serde_json::Value =
                serde_json::from_str(&qemu_img(&["info", "-f", "qcow2", "--output=json", path])).unwrap();
            assert_eq!(info["virtual-size"], size);
            assert_eq!(info["format"], "qcow2");
            assert!(info.get("backing-filename").is_none());
        }
    }

    #[test]
    fn an_existing_overlay_is_replaced_by_a_new_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root.qcow2");
        fs::write(&path, vec![0xaa; 1 << 20]).unwrap();
        let old = fs::File::open(&path).unwrap();
        create(&path, 8 << 30).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 4 * CLUSTER);
        assert_eq!(old.metadata().unwrap().len(), 1 << 20, "whoever has the old one open keeps it");
        qemu_img(&["check", "-f", "qcow2", path.to_str().unwrap()]);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for size in [0, 511, LARGEST + 512] {
            let error = create(&directory.path().join("x"), size).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
