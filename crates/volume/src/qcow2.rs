//! The one thing of a qcow2 file that is read and written without `qemu-img`: its size, since an
//! open must not wait for a program. Layout: QEMU's docs/interop/qcow2.txt.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

/// Where the header has the virtual size.
const SIZE: usize = 24;

/// The virtual size of a file, bytes.
///
/// # Errors
/// `InvalidData` when it is no qcow2 of version 3, or has a backing file, which no volume has.
pub(crate) fn virtual_size(path: &Path) -> io::Result<u64> {
    let mut header = [0; 32];
    File::open(path)?.read_exact_at(&mut header, 0)?;
    let (start, size) = header.split_at(SIZE);
    // Magic, version 3, no name of a backing file.
    if start.get(..16) != Some(b"QFI\xfb\0\0\0\x03\0\0\0\0\0\0\0\0") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no disk of a volume"));
    }
    Ok(size.iter().fold(0, |size, byte| size << 8 | u64::from(*byte)))
}

/// Gives an empty file that is larger another virtual size, bytes: its first table (L1) has more
/// entries than are needed then, which is allowed.
pub(crate) fn shrink(file: &File, bytes: u64) -> io::Result<()> {
    file.write_all_at(&bytes.to_be_bytes(), SIZE as u64)
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    #[test]
    fn the_size_is_what_qemu_says_and_what_no_volume_has_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        fs::write(directory.path().join("b"), [0; 512]).unwrap();
        let create = |options: &str, size: &str| {
            let mut command = Command::new("qemu-img");
            command.args(["create", "-q", "-f", "qcow2", "-o", options]).arg(&path).arg(size);
            assert!(command.status().unwrap().success(), "needs qemu-utils");
        };
        create("compat=1.1", "500G");
        assert_eq!(virtual_size(&path).unwrap(), 500 << 30);
        let is_refused = || virtual_size(&path).unwrap_err().kind() == io::ErrorKind::InvalidData;
        create("compat=0.10", "1G");
        assert!(is_refused());
        create("backing_file=b,backing_fmt=raw,compat=1.1", "1G");
        assert!(is_refused());
        fs::write(&path, [0; 64]).unwrap();
        assert!(is_refused());
        fs::write(&path, [0; 8]).unwrap();
        assert_eq!(virtual_size(&path).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
