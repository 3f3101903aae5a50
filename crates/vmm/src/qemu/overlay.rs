//! Qcow2 overlays, blank or with a few changes to their base, written by hand: no program is
//! spawned on the start path, and no backing file is named in the header, so that nothing can be
//! tricked into opening one (QEMU is told the base explicitly).
//!
//! ```text
//!  0        64 Ki            128 Ki           192 Ki
//!  │ header │ refcount table │ refcount block │ L1 table │ L2 tables │ clusters that differ │
//!  │        │                │                │          │           │ from the base        │
//! ```
//! A blank one ends with the L1 table, which is all zero: everything comes from the base.
//! Layout and field meanings: QEMU's docs/interop/qcow2.txt, version 3.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use crate::Patch;

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Entries of an L2 table, which is a cluster of 8-byte entries, each of them one cluster.
const IN_L2: u64 = CLUSTER / 8;
/// What one L1 entry maps: an L2 table.
const BYTES_PER_L1_ENTRY: u64 = IN_L2 * CLUSTER;
const HEADER_LENGTH: u32 = 104;
const REFCOUNT_TABLE_AT: u64 = CLUSTER;
const REFCOUNT_BLOCK_AT: u64 = 2 * CLUSTER;
const L1_TABLE_AT: u64 = 3 * CLUSTER;
/// In an entry of a table: what it leads to is this file's alone.
const OWNED: u64 = 1 << 63;
/// QEMU takes an L1 table of at most 32 MiB; 64 TiB stays well below it.
const LARGEST: u64 = 64 << 40;

/// What an overlay has of its own, cluster by cluster.
#[derive(Debug, Default)]
pub(super) struct Clusters(BTreeMap<u64, Vec<u8>>);

impl Clusters {
    /// Those of a base, or of nothing, in which `patches` make a difference.
    ///
    /// # Errors
    /// When the base can't be read.
    pub(super) fn patched(base: Option<&File>, patches: &[Patch]) -> io::Result<Self> {
        let mut clusters = BTreeMap::new();
        for Patch { offset, bytes } in patches {
            for (at, byte) in (*offset..).zip(bytes) {
                let number = at / CLUSTER;
                let cluster = match clusters.entry(number) {
                    Entry::Occupied(there) => there.into_mut(),
                    Entry::Vacant(new) => match base {
                        Some(base) => new.insert(read_cluster(base, number)?),
                        None => new.insert(vec![0; CLUSTER as usize]),
                    },
                };
                cluster[(at % CLUSTER) as usize] = *byte;
            }
        }
        Ok(Self(clusters))
    }
}

/// A base ends anywhere.
fn read_cluster(base: &File, number: u64) -> io::Result<Vec<u8>> {
    let mut cluster = vec![0; CLUSTER as usize];
    let mut filled = 0;
    while filled < cluster.len() {
        match base.read_at(&mut cluster[filled..], number * CLUSTER + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(cluster)
}

/// Writes an overlay of `virtual_size` bytes with these clusters to `path`, mode 0600, in place of
/// whatever file is there (a process that still has the old one open keeps the old one).
///
/// # Errors
/// `InvalidInput` when the size is 0, no multiple of 512, above 64 TiB, or too small for the
/// clusters; else what the file system says.
pub(super) fn create(path: &Path, virtual_size: u64, clusters: &Clusters) -> io::Result<()> {
    if virtual_size == 0 || !virtual_size.is_multiple_of(512) || virtual_size > LARGEST {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "an overlay of {virtual_size} bytes: it must be a multiple of 512, at most \
                 {LARGEST}"
            ),
        ));
    }
    let l1_entries = virtual_size.div_ceil(BYTES_PER_L1_ENTRY);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER);
    let tables: BTreeSet<u64> = clusters.0.keys().map(|number| number / IN_L2).collect();
    if tables.last().is_some_and(|last| *last >= l1_entries) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the overlay's data lies beyond its end",
        ));
    }
    let l2_at = L1_TABLE_AT + l1_clusters * CLUSTER;
    let data_at = l2_at + tables.len() as u64 * CLUSTER;
    let used_clusters = 3 + l1_clusters + (tables.len() + clusters.0.len()) as u64;

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
    let write = || {
        file.set_len(used_clusters * CLUSTER)?;
        file.write_all_at(&header, 0)?;
        file.write_all_at(&REFCOUNT_BLOCK_AT.to_be_bytes(), REFCOUNT_TABLE_AT)?;
        let counts: Vec<u8> = (0..used_clusters).flat_map(|_| 1u16.to_be_bytes()).collect();
        file.write_all_at(&counts, REFCOUNT_BLOCK_AT)?;
        for (table, at) in tables.iter().zip((l2_at..).step_by(CLUSTER as usize)) {
            file.write_all_at(&(at | OWNED).to_be_bytes(), L1_TABLE_AT + table * 8)?;
        }
        for ((number, bytes), at) in clusters.0.iter().zip((data_at..).step_by(CLUSTER as usize)) {
            // Its table is one of them.
            let before = tables.range(..number / IN_L2).count() as u64;
            file.write_all_at(
                &(at | OWNED).to_be_bytes(),
                l2_at + before * CLUSTER + number % IN_L2 * 8,
            )?;
            file.write_all_at(bytes, at)?;
        }
        Ok(())
    };
    let written: io::Result<()> = write();
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
        let output = Command::new("qemu-img")
            .args(arguments)
            .output()
            .expect("qemu-img is needed: apt-get install qemu-utils");
        assert!(
            output.status.success(),
            "qemu-img {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn qemu_accepts_overlays_of_all_sizes_and_they_name_no_backing_file() {
        let directory = tempfile::tempdir().unwrap();
        for size in [512, 1 << 20, (8 << 30) - 512, 8 << 30, 500 << 30, 5 << 40, LARGEST] {
            let path = directory.path().join(format!("{size}.qcow2"));
            create(&path, size, &Clusters::default()).unwrap();
            let path = path.to_str().unwrap();
            qemu_img(&["check", "-f", "qcow2", path]);
            let info: serde_json::Value =
                serde_json::from_str(&qemu_img(&["info", "-f", "qcow2", "--output=json", path]))
                    .unwrap();
            assert_eq!(info["virtual-size"], size);
            assert_eq!(info["format"], "qcow2");
            assert!(info.get("backing-filename").is_none());
        }
    }

    #[test]
    fn what_it_has_of_its_own_is_read_in_place_of_the_base_s() {
        let directory = tempfile::tempdir().unwrap();
        let (base, path) = (directory.path().join("base"), directory.path().join("root.qcow2"));
        // Two tables apart, across the edge of a cluster, and beyond the end of the base.
        let size = 2 * BYTES_PER_L1_ENTRY;
        let mut expected = vec![0x11; 3 * CLUSTER as usize + 700];
        fs::write(&base, &expected).unwrap();
        let patch = |offset, bytes: &[u8]| Patch { offset, bytes: bytes.to_vec() };
        let (edge, end) = (CLUSTER - 2, 3 * CLUSTER + 690);
        let patches =
            [patch(edge, b"edge"), patch(end, &[7; 20]), patch(BYTES_PER_L1_ENTRY + 5, b"far")];
        create(
            &path,
            size,
            &Clusters::patched(Some(&File::open(&base).unwrap()), &patches).unwrap(),
        )
        .unwrap();

        let (base, path) = (base.to_str().unwrap(), path.to_str().unwrap());
        qemu_img(&["check", "-f", "qcow2", path]);
        qemu_img(&["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", base, path]);
        let raw = directory.path().join("raw");
        qemu_img(&["convert", "-f", "qcow2", "-O", "raw", path, raw.to_str().unwrap()]);
        let read = File::open(raw).unwrap();
        assert_eq!(read.metadata().unwrap().len(), size);
        let mut far = [0; 16];
        read.read_exact_at(&mut far, BYTES_PER_L1_ENTRY).unwrap();
        assert_eq!(far, *b"\0\0\0\0\0far\0\0\0\0\0\0\0\0");
        expected.resize(4 * CLUSTER as usize, 0);
        for Patch { offset, bytes } in &patches[..2] {
            expected[*offset as usize..*offset as usize + bytes.len()].copy_from_slice(bytes);
        }
        let mut seen = vec![0; expected.len()];
        read.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == expected);
        let error = create(
            &directory.path().join("x"),
            BYTES_PER_L1_ENTRY,
            &Clusters::patched(Some(&read), &patches).unwrap(),
        );
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn an_existing_overlay_is_replaced_by_a_new_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root.qcow2");
        fs::write(&path, vec![0xaa; 1 << 20]).unwrap();
        let old = fs::File::open(&path).unwrap();
        create(&path, 8 << 30, &Clusters::default()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 4 * CLUSTER);
        assert_eq!(old.metadata().unwrap().len(), 1 << 20, "whoever has the old one open keeps it");
        qemu_img(&["check", "-f", "qcow2", path.to_str().unwrap()]);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for size in [0, 511, LARGEST + 512] {
            let error =
                create(&directory.path().join("x"), size, &Clusters::default()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
