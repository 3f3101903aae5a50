//! Gives a small file of a file system another content, without writing to that file system: what
//! would have to be written is told, for a copy of it or an overlay.

use std::{fs::File, time::SystemTime};

use rustix::fs::FileType;

use crate::{
    BLOCK, Error,
    checksum::Checksum,
    directory,
    extents::in_inode,
    fill::ROOT,
    inode::{self, Time},
    volume::Volume,
};

/// Bytes that belong somewhere in the file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// Where, bytes from its beginning.
    pub offset: u64,
    /// What.
    pub bytes: Vec<u8>,
}

/// How a file gets another content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replacement {
    /// By writing these.
    Of([Patch; 2]),
    /// There is no such file.
    Missing,
    /// Not from outside: it is no plain file with one name and one block, or the content is longer
    /// than that.
    Impossible,
}

/// A file system that [`crate::fill`] has filled and nobody has written to since.
#[derive(Debug)]
pub struct Filled<'a>(Volume<'a>);

impl<'a> Filled<'a> {
    /// Reads what describes it.
    ///
    /// # Errors
    /// [`Error::Unknown`] when it is no such file system, [`Error::Image`] when it can't be read.
    pub fn open(disk: &'a File) -> Result<Self, Error> {
        Volume::open(disk).map(Self)
    }

    /// What is to be written for the file at `path`, names from the root on, to have this content,
    /// last changed at `time`.
    ///
    /// # Errors
    /// [`Error::Image`] when it can't be read.
    pub fn replace(
        &self,
        path: &[&str],
        content: &[u8],
        time: SystemTime,
    ) -> Result<Replacement, Error> {
        let mut number = ROOT;
        for name in path {
            match self.look_up(number, name)? {
                LookUp::Found(found) => number = found,
                LookUp::Missing => return Ok(Replacement::Missing),
                LookUp::Unknown => return Ok(Replacement::Impossible),
            }
        }
        let mut inode = self.0.read_inode(number)?;
        let is_plain = FileType::from_raw_mode(inode::mode(&inode).into()) == FileType::RegularFile;
        let run = match in_inode(inode::map(&inode)).as_deref() {
            Some([run])
                if run.length == 1
                    && is_plain
                    && inode::links(&inode) == 1
                    && content.len() <= BLOCK =>
            {
                *run
            }
            _ => return Ok(Replacement::Impossible),
        };
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        let time = Time { seconds, nanoseconds: since.subsec_nanos() };
        inode::set_content(&mut inode, content.len() as u64, time, self.checksum(number));
        let mut block = content.to_vec();
        block.resize(BLOCK, 0);
        Ok(Replacement::Of([
            Patch { offset: self.0.inode_place(number), bytes: inode.to_vec() },
            Patch { offset: run.start * BLOCK as u64, bytes: block },
        ]))
    }

    fn checksum(&self, number: u32) -> Checksum {
        self.0.superblock.seed.of_inode(number)
    }

    /// Looks for a name in a directory.
    fn look_up(&self, directory: u32, name: &str) -> Result<LookUp, Error> {
        let inode = self.0.read_inode(directory)?;
        let is_directory =
            FileType::from_raw_mode(inode::mode(&inode).into()) == FileType::Directory;
        // Of a large one the inode does not list all blocks.
        let Some(runs) = in_inode(inode::map(&inode)).filter(|_| is_directory) else {
            return Ok(LookUp::Unknown);
        };
        for block in runs.iter().flat_map(|run| run.start..run.start + u64::from(run.length)) {
            let block = self.0.read(block)?;
            let found = directory::names(&block).find(|(_, known)| *known == name.as_bytes());
            match found {
                Some((number, _)) if number <= self.0.inodes() => return Ok(LookUp::Found(number)),
                Some(_) => return Ok(LookUp::Unknown),
                None => {}
            }
        }
        Ok(LookUp::Missing)
    }
}

/// What there is of a name.
enum LookUp {
    Found(u32),
    Missing,
    Unknown,
}
