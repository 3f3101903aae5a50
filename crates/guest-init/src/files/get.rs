//! Out of the machine.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use tar::{Builder, EntryType, Header};

use super::{COMPLETE, CONTENT, Unreadable, failed, walk};

/// What is read at most of a file that says it is empty, as those do that the kernel makes up.
const MADE_UP: u64 = 16 << 20;

/// Writes an archive of it to standard output.
pub fn get(path: &Path, recursive: bool) -> Result<(), String> {
    write(path, recursive, io::BufWriter::with_capacity(64 * 1024, io::stdout().lock()))
}

fn write(root: &Path, recursive: bool, out: impl Write) -> Result<(), String> {
    if fs::metadata(root).map_err(failed("read", root))?.is_dir() && !recursive {
        return Err(format!("{} is a directory: use -R to copy it recursively", root.display()));
    }
    let mut archive = Builder::new(out);
    walk(root, Unreadable::Fatal, &mut |path, metadata| {
        let below = path.strip_prefix(root).unwrap_or(path);
        let name = if below.as_os_str().is_empty() {
            CONTENT.into()
        } else {
            Path::new(CONTENT).join(below)
        };
        append(&mut archive, path, &name, metadata)
    })?;
    let mut header = header(EntryType::Regular, 0o644, 0);
    let ended = archive.append_data(&mut header, COMPLETE, io::empty());
    ended
        .and_then(|()| archive.into_inner()?.flush())
        .map_err(|e| format!("can't write the archive: {e}"))
}

fn header(kind: EntryType, mode: u32, mtime: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode & 0o7777);
    header.set_mtime(mtime);
    header.set_size(0);
    header
}

fn append(
    archive: &mut Builder<impl Write>,
    path: &Path,
    name: &Path,
    metadata: &Metadata,
) -> Result<(), String> {
    let of_kind = |kind| header(kind, metadata.mode(), metadata.mtime().try_into().unwrap_or(0));
    let copied = failed("copy", path);
    if metadata.is_dir() {
        return archive
            .append_data(&mut of_kind(EntryType::Directory), name, io::empty())
            .map_err(copied);
    }
    if metadata.is_symlink() {
        let target = fs::read_link(path).map_err(&copied)?;
        return archive.append_link(&mut of_kind(EntryType::Symlink), name, target).map_err(copied);
    }
    if !metadata.is_file() {
        eprintln!("{} is skipped: it is neither a file, a directory nor a link", path.display());
        return Ok(());
    }
    let mut file = File::open(path).map_err(failed("read", path))?;
    let mut header = of_kind(EntryType::Regular);
    if metadata.size() == 0 {
        let mut content = Vec::new();
        file.take(MADE_UP).read_to_end(&mut content).map_err(failed("read", path))?;
        header.set_size(content.len() as u64);
        return archive.append_data(&mut header, name, &content[..]).map_err(copied);
    }
    header.set_size(metadata.size());
    let mut content = Counted { file: &mut file, left: metadata.size() };
    archive.append_data(&mut header, name, &mut content).map_err(&copied)?;
    match content.left {
        0 => Ok(()),
        _ => Err(format!("can't copy {}: it shrank while it was being read", path.display())),
    }
}

/// As much of a file as its entry says, however it grows.
struct Counted<'a> {
    file: &'a mut File,
    left: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read(&mut buffer[..room])?;
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_goes_through_an_archive_and_nothing_is_overwritten() {
        let place = tempfile::tempdir().unwrap();
        let tree = place.path().join("tree");
        fs::create_dir_all(tree.join("deep/empty")).unwrap();
        fs::write(tree.join("deep/file"), "content").unwrap();
        std::os::unix::fs::symlink("deep/file", tree.join("link")).unwrap();
        let mut archive = Vec::new();
        assert!(write(&tree, false, &mut Vec::new()).unwrap_err().contains("-R"));
        write(&tree, true, &mut archive).unwrap();

        let target = place.path().join("copy");
        let copied = super::super::put::read(&target, "tree".as_ref(), &archive[..]).unwrap();
        assert_eq!(copied, target);
        assert_eq!(fs::read_to_string(target.join("link")).unwrap(), "content");
        assert!(target.join("deep/empty").is_dir());
        let into = super::super::put::read(&target, "tree".as_ref(), &archive[..]).unwrap();
        assert_eq!(into, target.join("tree"), "into a directory that is there");
        let again = super::super::put::read(&target, "tree".as_ref(), &archive[..]).unwrap_err();
        assert!(again.contains("exists already"), "{again}");
        let nowhere =
            super::super::put::read(&place.path().join("no/such"), "x".as_ref(), &archive[..])
                .unwrap_err();
        assert!(nowhere.contains("no such"), "{nowhere}");

        let before = fs::read_dir(place.path()).unwrap().count();
        for length in [0, 100, archive.len() / 2, archive.len() - 2048] {
            let cut = super::super::put::read(
                &place.path().join("cut"),
                "x".as_ref(),
                &archive[..length],
            );
            assert!(cut.is_err(), "{length}");
        }
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), before, "nothing of it is left");
    }
}
