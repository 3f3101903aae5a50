//! Writes cpio archives in the "newc" format that the kernel takes as an initrd
//! (Documentation/driver-api/early-userspace/buffer-format.rst of Linux).

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

/// An archive that grows. All entries belong to root and have no times, so equal contents give
/// equal archives.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory. Parents come before what is in them.
    pub(super) fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, &[]);
    }

    /// Adds a file.
    pub(super) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.entry(path, REGULAR | permissions, content);
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = 1;
        // Inode, mode, uid, gid, links, mtime, size, four device numbers, length of the name,
        // checksum.
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn cpio_itself_reads_the_archive() {
        let directory = tempfile::tempdir().unwrap();
        let mut archive = Archive::default();
        archive.file("init", 0o755, b"#!");
        archive.directory("modules");
        archive.file("modules/order", 0o644, b"a.ko\nb.ko\n");
        let mut busybox = Command::new("busybox")
            .args(["cpio", "-i"])
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("busybox is needed: apt-get install busybox-static");
        busybox.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        assert!(busybox.wait().unwrap().success());
        assert_eq!(std::fs::read(directory.path().join("init")).unwrap(), b"#!");
        assert_eq!(std::fs::read(directory.path().join("modules/order")).unwrap(), b"a.ko\nb.ko\n");
    }
}
