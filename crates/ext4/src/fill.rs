//! Goes through the tree, a directory at a time, and writes what it finds.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    io,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FileType, SeekFrom};

use crate::{
    BLOCK, Error,
    allocate::{Allocator, Run},
    attributes::{self, Attributes},
    bytes::get32,
    directory::{DIRECTORY, Entry, Layout},
    extents::{self, Mapping},
    inode::{self, Inode, MOST_LINKS},
    source::{Directory, Identity, Metadata, Seen},
    volume::Volume,
};

/// The root directory's inode.
pub(crate) const ROOT: u32 = 2;
/// Bytes that are copied at a time.
const CHUNK: usize = 1 << 20;
/// Longest target of a symbolic link that is in its inode.
const SHORT_LINK: usize = 59;

/// Fills the file system in `disk`, which mke2fs has just made, with what is below the directory
/// `tree`.
///
/// The root directory keeps owner and permissions that mke2fs gave it, and takes time and extended
/// attributes of `tree`. The directory `lost+found` that mke2fs made goes: there is what `tree`
/// has, and nothing else.
///
/// `should_continue` is asked before each file and before each piece of one, with the bytes written
/// since it was asked last; when it says no, that is the end.
///
/// # Errors
/// All kinds of [`Error`]. The file is worthless then.
pub fn fill(
    disk: &File,
    tree: &Path,
    should_continue: &mut dyn FnMut(u64) -> bool,
) -> Result<(), Error> {
    let volume = Volume::open(disk)?;
    let writer = Writer {
        volume,
        allocator: Allocator::new(),
        buffer: vec![0; CHUNK],
        links: HashMap::new(),
        path: PathBuf::new(),
        written: 0,
        should_continue,
    };
    writer.run(tree)
}

struct Writer<'a> {
    volume: Volume<'a>,
    allocator: Allocator,
    buffer: Vec<u8>,
    /// Files with several names.
    links: HashMap<Identity, Link>,
    /// The directory that is being copied, below the tree.
    path: PathBuf,
    /// Bytes since `should_continue` was asked.
    written: u64,
    should_continue: &'a mut dyn FnMut(u64) -> bool,
}

/// A file that may have further names.
struct Link {
    inode: u32,
    names: u32,
}

/// A directory whose entry is written, but not what is in it.
struct Pending {
    name: Vec<u8>,
    inode: u32,
    metadata: Metadata,
}

/// A directory that is written, and what in it is left to do.
struct Level {
    inode: u32,
    identity: Identity,
    pending: Vec<Pending>,
}

/// Content of a file, ready for its inode.
struct Content {
    map: inode::Map,
    size: u64,
    blocks: u64,
    flags: u32,
}

impl Writer<'_> {
    fn run(mut self, tree: &Path) -> Result<(), Error> {
        let mut current = Directory::open(tree).map_err(|error| self.unreadable(b"", error))?;
        let mut metadata = current.metadata().map_err(|error| self.unreadable(b"", error))?;
        let root = self.clear()?;
        (metadata.user, metadata.group) = inode::owner(&root);
        metadata.mode = inode::mode(&root);
        let mut levels = vec![self.directory(&current, ROOT, ROOT, &metadata)?];
        // Only one directory is open at a time, however deep the tree is.
        while let Some(level) = levels.last_mut() {
            if let Some(Pending { name, inode, metadata }) = level.pending.pop() {
                let parent = level.inode;
                current = current.child(&name).map_err(|error| self.unreadable(&name, error))?;
                self.path.push(OsStr::from_bytes(&name));
                levels.push(self.directory(&current, inode, parent, &metadata)?);
                continue;
            }
            levels.pop();
            if let Some(above) = levels.last() {
                current = current.parent().map_err(|error| self.unreadable(b"..", error))?;
                let found = current.metadata().map_err(|error| self.unreadable(b"..", error))?;
                if found.identity != above.identity {
                    return Err(self.unreadable(
                        b"..",
                        io::Error::other("the tree changed while it was copied"),
                    ));
                }
                self.path.pop();
            }
        }
        self.write_links()?;
        self.allocator.commit(&mut self.volume)?;
        self.volume.commit()
    }

    /// Takes out what mke2fs put into the root directory: `lost+found`, which is the first inode
    /// that is not reserved, and the entry of it. Gives the root's inode.
    fn clear(&mut self) -> Result<[u8; crate::volume::INODE], Error> {
        let root = self.volume.read_inode(ROOT)?;
        let lost_and_found = self.volume.superblock.first_inode;
        for number in [ROOT, lost_and_found] {
            let bytes = self.volume.read_inode(number)?;
            let runs = match u32::from(inode::mode(&bytes)) & 0o170_000 {
                0o040_000 if get32(&bytes, 0x20) & inode::EXTENTS != 0 => {
                    extents::in_inode(inode::map(&bytes))
                }
                _ => None,
            };
            let runs =
                runs.ok_or_else(|| Error::Unknown("it is not as mke2fs makes it".to_owned()))?;
            for run in runs {
                self.allocator.release_blocks(&mut self.volume, run)?;
            }
        }
        self.allocator.release_directory(&mut self.volume, lost_and_found)?;
        self.volume.write_inode(lost_and_found, &[0; crate::volume::INODE])?;
        Ok(root)
    }

    /// Writes a directory and all in it but directories, which it returns.
    fn directory(
        &mut self,
        directory: &Directory,
        number: u32,
        parent: u32,
        metadata: &Metadata,
    ) -> Result<Level, Error> {
        let names = directory.names().map_err(|error| self.unreadable(b"", error))?;
        let mut entries = Vec::with_capacity(names.len());
        let mut pending = Vec::new();
        for name in names {
            self.check_continue()?;
            let metadata = directory.look(&name).map_err(|error| self.unreadable(&name, error))?;
            let inode = self.entry(directory, &name, &metadata)?;
            let kind = kind_number(metadata.kind);
            if kind == DIRECTORY {
                pending.push(Pending { name: name.clone(), inode, metadata });
            }
            entries.push(Entry { name, inode, kind });
        }
        // They are taken from the end.
        pending.reverse();
        let directories = u32::try_from(pending.len()).unwrap_or(u32::MAX);
        let content = self.entries(&entries, number, parent)?;
        let seen = directory.attributes().map_err(|error| self.unreadable(b"", error))?;
        self.inode(number, metadata, directories.saturating_add(2), content, seen, b"")?;
        Ok(Level { inode: number, identity: metadata.identity, pending })
    }

    /// Writes a file unless it is a directory. Gives its inode, which a directory has from now on.
    fn entry(
        &mut self,
        directory: &Directory,
        name: &[u8],
        metadata: &Metadata,
    ) -> Result<u32, Error> {
        let is_directory = metadata.kind == FileType::Directory;
        let may_have_links = metadata.links > 1 && !is_directory;
        if may_have_links && let Some(link) = self.links.get_mut(&metadata.identity) {
            link.names += 1;
            let (inode, names) = (link.inode, link.names);
            if names > MOST_LINKS {
                return Err(self.unsupported(name, format!("it has more than {MOST_LINKS} names")));
            }
            return Ok(inode);
        }
        let number = self.allocator.inode(&mut self.volume, is_directory)?;
        if may_have_links {
            self.links.insert(metadata.identity, Link { inode: number, names: 1 });
        }
        let unreadable = |writer: &Self, error| writer.unreadable(name, error);
        if metadata.kind == FileType::RegularFile && metadata.size > 0 {
            let file = directory.file(name).map_err(|error| unreadable(self, error))?;
            let content = self.file(&file, number, name, metadata)?;
            let seen =
                crate::source::attributes_of(&file).map_err(|error| unreadable(self, error))?;
            self.inode(number, metadata, 1, content, seen, name)?;
        } else if !is_directory {
            let content = match metadata.kind {
                FileType::RegularFile => self.mapped(&Mapping::default(), number, 0)?,
                FileType::Symlink => {
                    let target = directory.link(name).map_err(|error| unreadable(self, error))?;
                    self.link(&target, number)?
                }
                FileType::CharacterDevice | FileType::BlockDevice => {
                    let (major, minor) = metadata.device;
                    Content { map: inode::device(major, minor), size: 0, blocks: 0, flags: 0 }
                }
                _ => Content { map: [0; 60], size: 0, blocks: 0, flags: 0 },
            };
            let seen = directory.attributes_of(name).map_err(|error| unreadable(self, error))?;
            self.inode(number, metadata, 1, content, seen, name)?;
        }
        Ok(number)
    }

    /// Writes the content of a file. What is zero, or a hole, takes no block.
    fn file(
        &mut self,
        file: &File,
        number: u32,
        name: &[u8],
        metadata: &Metadata,
    ) -> Result<Content, Error> {
        let size = metadata.size;
        if size > extents::MOST_BYTES {
            return Err(
                self.unsupported(name, format!("it has more than {} bytes", extents::MOST_BYTES))
            );
        }
        let mut mapping = Mapping::default();
        let mut buffer = std::mem::take(&mut self.buffer);
        let (mut offset, mut data_end) = (0, if metadata.sparse { 0 } else { size });
        while offset < size {
            self.check_continue()?;
            if offset >= data_end {
                let Some(data) =
                    next_data(file, offset, size).map_err(|error| self.unreadable(name, error))?
                else {
                    break;
                };
                (offset, data_end) = data;
            }
            // Both are on the boundary of a block, but for the end of the file.
            let length = CHUNK.min(usize::try_from(data_end - offset).unwrap_or(CHUNK));
            let read = read_full(file, &mut buffer[..length], offset)
                .map_err(|error| self.unreadable(name, error))?;
            if read == 0 {
                break;
            }
            let whole = read.next_multiple_of(BLOCK);
            buffer[read..whole].fill(0);
            // Within the bound that was checked above.
            self.store_data((offset / BLOCK as u64) as u32, &buffer[..whole], &mut mapping)?;
            offset += read as u64;
        }
        self.buffer = buffer;
        self.mapped(&mapping, number, size)
    }

    /// Stores blocks but those that are zero.
    fn store_data(
        &mut self,
        logical: u32,
        bytes: &[u8],
        mapping: &mut Mapping,
    ) -> Result<(), Error> {
        let is_zero = |block: &[u8]| block == [0; BLOCK];
        let mut logical = logical;
        let mut rest = bytes;
        while !rest.is_empty() {
            let zero = is_zero(&rest[..BLOCK]);
            let blocks = rest.chunks(BLOCK).take_while(|block| is_zero(block) == zero).count();
            if !zero {
                self.store(logical, &rest[..blocks * BLOCK], mapping)?;
            }
            logical += blocks as u32;
            rest = &rest[blocks * BLOCK..];
        }
        Ok(())
    }

    /// Stores whole blocks of a file.
    fn store(&mut self, logical: u32, bytes: &[u8], mapping: &mut Mapping) -> Result<(), Error> {
        let (mut logical, mut rest) = (logical, bytes);
        while !rest.is_empty() {
            // At most CHUNK bytes.
            let run = self.allocator.blocks(&mut self.volume, (rest.len() / BLOCK) as u32)?;
            let (now, later) = rest.split_at(run.length as usize * BLOCK);
            self.volume.write(run.start, now)?;
            self.written += now.len() as u64;
            mapping.push(logical, run);
            logical += run.length;
            rest = later;
        }
        Ok(())
    }

    /// The content of an inode that has its blocks here.
    fn mapped(&mut self, mapping: &Mapping, number: u32, size: u64) -> Result<Content, Error> {
        let checksum = self.volume.superblock.seed.of_inode(number);
        let Self { allocator, volume, written, .. } = self;
        let tree = mapping.tree(checksum, |block| {
            let Run { start, .. } = allocator.blocks(volume, 1)?;
            volume.write(start, block)?;
            *written += BLOCK as u64;
            Ok(start)
        })?;
        Ok(Content {
            map: tree.map,
            size,
            blocks: mapping.blocks() + tree.blocks,
            flags: inode::EXTENTS,
        })
    }

    fn link(&mut self, target: &[u8], number: u32) -> Result<Content, Error> {
        let size = target.len() as u64;
        if target.len() <= SHORT_LINK {
            let mut map = [0; 60];
            map[..target.len()].copy_from_slice(target);
            return Ok(Content { map, size, blocks: 0, flags: 0 });
        }
        // Linux knows no targets that are longer than a block.
        let mut block = [0; BLOCK];
        block[..target.len()].copy_from_slice(target);
        let mut mapping = Mapping::default();
        self.store(0, &block, &mut mapping)?;
        self.mapped(&mapping, number, size)
    }

    fn entries(&mut self, entries: &[Entry], number: u32, parent: u32) -> Result<Content, Error> {
        let superblock = &self.volume.superblock;
        let checksum = superblock.seed.of_inode(number);
        let layout = Layout::new(entries, number, parent, &superblock.hash_seed)
            .ok_or_else(|| self.unsupported(b"", "it has too many entries".to_owned()))?;
        let mut mapping = Mapping::default();
        let mut buffer = std::mem::take(&mut self.buffer);
        for first in (0..layout.blocks()).step_by(CHUNK / BLOCK) {
            self.check_continue()?;
            let blocks = (layout.blocks() - first).min(CHUNK / BLOCK);
            for (offset, place) in buffer.chunks_exact_mut(BLOCK).take(blocks).enumerate() {
                place.copy_from_slice(&layout.block(first + offset, checksum));
            }
            self.store(first as u32, &buffer[..blocks * BLOCK], &mut mapping)?;
        }
        self.buffer = buffer;
        let mut content = self.mapped(&mapping, number, (layout.blocks() * BLOCK) as u64)?;
        content.flags |= if layout.is_indexed() { inode::INDEXED } else { 0 };
        Ok(content)
    }

    fn inode(
        &mut self,
        number: u32,
        metadata: &Metadata,
        links: u32,
        content: Content,
        seen: Seen,
        name: &[u8],
    ) -> Result<(), Error> {
        let Attributes { inside, block } =
            Attributes::new(seen).map_err(|reason| self.unsupported(name, reason))?;
        let attribute_block = match block {
            Some(mut block) => {
                let Run { start, .. } = self.allocator.blocks(&mut self.volume, 1)?;
                attributes::set_checksum(&mut block, start, self.volume.superblock.seed);
                self.volume.write(start, &*block)?;
                self.written += BLOCK as u64;
                start
            }
            None => 0,
        };
        let inode = Inode {
            mode: metadata.mode,
            user: metadata.user,
            group: metadata.group,
            size: content.size,
            links,
            blocks: content.blocks + u64::from(attribute_block != 0),
            flags: content.flags,
            map: content.map,
            attribute_block,
            attributes: inside,
            time: metadata.time,
        };
        self.volume.write_inode(number, &inode.encode(self.volume.superblock.seed.of_inode(number)))
    }

    /// Writes how many names files have, which is known at the end only.
    fn write_links(&mut self) -> Result<(), Error> {
        for Link { inode: number, names } in self.links.values() {
            let mut bytes = self.volume.read_inode(*number)?;
            inode::set_links(&mut bytes, *names, self.volume.superblock.seed.of_inode(*number));
            self.volume.write_inode(*number, &bytes)?;
        }
        Ok(())
    }

    fn check_continue(&mut self) -> Result<(), Error> {
        if (self.should_continue)(std::mem::take(&mut self.written)) {
            Ok(())
        } else {
            Err(Error::Stopped)
        }
    }

    fn unreadable(&self, name: &[u8], source: io::Error) -> Error {
        Error::Source { path: self.path.join(OsStr::from_bytes(name)), source }
    }

    fn unsupported(&self, name: &[u8], reason: String) -> Error {
        Error::Unsupported { path: self.path.join(OsStr::from_bytes(name)), reason }
    }
}

fn kind_number(kind: FileType) -> u8 {
    match kind {
        FileType::RegularFile => 1,
        FileType::Directory => DIRECTORY,
        FileType::CharacterDevice => 3,
        FileType::BlockDevice => 4,
        FileType::Fifo => 5,
        FileType::Socket => 6,
        FileType::Symlink => 7,
        FileType::Unknown => 0,
    }
}

/// Where the next data of a file starts and ends, in whole blocks.
fn next_data(file: &File, offset: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    let block = BLOCK as u64;
    let start = (start / block * block).max(offset);
    Ok(Some((start, end.next_multiple_of(block).min(size))))
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
