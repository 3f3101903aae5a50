//! Tar archives as a stream of entries, with every length that comes from outside bounded before it
//! is believed.
//!
//! The headers are read with the `tar` crate; its own iterator isn't used because it reads long
//! names and extended headers of any length into memory, and knows no pax sparse files.

use std::io::{self, BufRead, Read};

use tar::{EntryType, Header};

use super::{
    numbers::{self, number},
    pax,
    sparse::{self, PaxSparse, SparseMap},
};

const BLOCK: u64 = 512;
/// Most that names, links and extended headers of one entry may take.
const LONGEST_EXTENSION: u64 = 1 << 20;
/// Extended attributes of one entry; no file system has room for so many.
const MOST_ATTRIBUTES: usize = 1000;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Directory,
    CharacterDevice,
    BlockDevice,
    Fifo,
}

/// One entry; a file's data is still in the stream.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub(crate) modified: (i64, i64),
    /// Major and minor number.
    pub(crate) device: (u32, u32),
    pub(crate) attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of data in the stream.
    pub(crate) data_size: u64,
    pub(crate) sparse: Option<SparseMap>,
}

/// Reads entries one after the other.
pub(crate) struct TarReader<R> {
    stream: R,
    /// Data of the current entry that nobody has read.
    unread: u64,
    padding: u64,
}

/// What extension headers before an entry say about it.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    modified: Option<(i64, i64)>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: PaxSparse,
}

impl<R: BufRead> TarReader<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self { stream, unread: 0, padding: 0 }
    }

    /// The next entry, past what is left of the one before; `None` at the end of the archive.
    pub(crate) fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        // Of all its extended headers together: there may be any number of them.
        let mut left = LONGEST_EXTENSION;
        loop {
            self.skip_rest()?;
            let Some(header) = self.read_header()? else { return Ok(None) };
            let size = number(&header, numbers::SIZE)?;
            match header.entry_type() {
                EntryType::GNULongName => {
                    extensions.path = Some(until_nul(self.read_extension(size, &mut left)?))
                }
                EntryType::GNULongLink => {
                    extensions.link = Some(until_nul(self.read_extension(size, &mut left)?))
                }
                EntryType::XHeader => {
                    extensions.read_pax(&self.read_extension(size, &mut left)?)?
                }
                // Comments and defaults of whole archives; no image tool puts anything else there.
                EntryType::XGlobalHeader => drop(self.read_extension(size, &mut left)?),
                // A volume label.
                kind if kind.as_byte() == b'V' => {}
                _ => return self.finish_entry(&header, extensions).map(Some),
            }
        }
    }

    /// Hands the data of the current entry on, piece by piece.
    pub(crate) fn read_data<E: From<io::Error>>(
        &mut self,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.unread > 0 {
            let available = self.stream.fill_buf()?;
            if available.is_empty() {
                return Err(cut_off().into());
            }
            let length = available.len().min(usize::try_from(self.unread).unwrap_or(usize::MAX));
            take(&available[..length])?;
            self.stream.consume(length);
            self.unread -= length as u64;
        }
        Ok(())
    }

    /// The stream, at the start of the current entry's data.
    pub(crate) fn stream(&self) -> &R {
        &self.stream
    }

    /// Gives the stream back, to be read to its end.
    pub(crate) fn into_stream(self) -> R {
        self.stream
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        self.read_data(|_| Ok::<_, io::Error>(()))?;
        self.unread = std::mem::take(&mut self.padding);
        self.read_data(|_| Ok::<_, io::Error>(()))
    }

    fn read_header(&mut self) -> io::Result<Option<Header>> {
        if self.stream.fill_buf()?.is_empty() {
            return Ok(None); // some writers leave the closing blocks out
        }
        let mut header = Header::new_old();
        self.stream.read_exact(header.as_mut_bytes())?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if !numbers::is_sound(&header) {
            return Err(invalid("the checksum of a tar header is wrong"));
        }
        let size = number(&header, numbers::SIZE)?;
        self.padding = size
            .checked_next_multiple_of(BLOCK)
            .ok_or_else(|| invalid("an entry's size is invalid"))?
            - size;
        self.unread = size;
        Ok(Some(header))
    }

    fn read_extension(&mut self, size: u64, left: &mut u64) -> io::Result<Vec<u8>> {
        let too_long = || invalid("the extended headers of an entry are longer than 1 MiB");
        *left = left.checked_sub(size).ok_or_else(too_long)?;
        let mut extension = Vec::new();
        self.read_data(|data| {
            extension.extend_from_slice(data);
            Ok::<_, io::Error>(())
        })?;
        Ok(extension)
    }

    fn finish_entry(&mut self, header: &Header, extensions: Extensions) -> io::Result<Entry> {
        let path = match (extensions.sparse.name.clone(), extensions.path) {
            (Some(name), _) | (None, Some(name)) => name,
            (None, None) => header.path_bytes().into_owned(),
        };
        let kind = match header.entry_type() {
            // As before POSIX.
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
            EntryType::Link => Kind::HardLink,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Directory => Kind::Directory,
            EntryType::Char => Kind::CharacterDevice,
            EntryType::Block => Kind::BlockDevice,
            EntryType::Fifo => Kind::Fifo,
            other => {
                return Err(invalid(&format!(
                    "an entry has the unknown type {:?}",
                    other.as_byte() as char
                )));
            }
        };
        let mut data_size = 0;
        let mut sparse = None;
        if kind == Kind::File {
            data_size = extensions.size.map_or_else(|| number(header, numbers::SIZE), Ok)?;
            self.padding = data_size
                .checked_next_multiple_of(BLOCK)
                .ok_or_else(|| invalid("an entry's size is invalid"))?
                - data_size;
            if header.entry_type() == EntryType::GNUSparse {
                let gnu =
                    header.as_gnu().ok_or_else(|| invalid("a sparse file without a GNU header"))?;
                sparse = Some(sparse::from_gnu_header(gnu, &mut self.stream)?);
            } else if let Some((map, used)) =
                extensions.sparse.into_map(&mut (&mut self.stream).take(data_size))?
            {
                data_size = data_size.checked_sub(used).ok_or_else(cut_off)?;
                sparse = Some(map);
            }
            if sparse.as_ref().is_some_and(|map| !map.is_sound(data_size)) {
                return Err(invalid("the map of a sparse file contradicts its size"));
            }
        } else {
            // Other kinds have no data, whatever their size field says.
            self.padding = 0;
        }
        self.unread = data_size;
        let id = |value: u64| {
            u32::try_from(value)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| invalid("a user or group id is invalid"))
        };
        let link = match extensions.link {
            Some(link) => link,
            None => header.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default(),
        };
        if path.contains(&0) || link.contains(&0) {
            return Err(invalid("a name holds a NUL byte"));
        }
        // Writers before POSIX have other things there.
        let device = |field| match header.as_ustar().is_some() || header.as_gnu().is_some() {
            true => u32::try_from(number(header, field)?)
                .map_err(|_| invalid("a device number is invalid")),
            false => Ok(0),
        };
        let device = if matches!(kind, Kind::CharacterDevice | Kind::BlockDevice) {
            (device(numbers::MAJOR)?, device(numbers::MINOR)?)
        } else {
            (0, 0)
        };
        Ok(Entry {
            kind,
            path,
            link,
            mode: (number(header, numbers::MODE)? & 0o7777) as u32,
            uid: id(extensions.uid.map_or_else(|| number(header, numbers::UID), Ok)?)?,
            gid: id(extensions.gid.map_or_else(|| number(header, numbers::GID), Ok)?)?,
            modified: extensions
                .modified
                .unwrap_or_else(|| (header.mtime().map_or(0, |time| time as i64), 0)),
            device,
            attributes: extensions.attributes,
            data_size,
            sparse,
        })
    }
}

impl Extensions {
    fn read_pax(&mut self, block: &[u8]) -> io::Result<()> {
        let records =
            pax::records(block).ok_or_else(|| invalid("an extended header is malformed"))?;
        let number = |value| {
            pax::number(value).ok_or_else(|| invalid("a number in an extended header is malformed"))
        };
        for (key, value) in records {
            // An empty value takes the keyword back: what the header says holds again (POSIX, "pax
            // Extended Header").
            let said = (!value.is_empty()).then_some(value);
            match key {
                b"path" => self.path = said.map(<[u8]>::to_vec),
                b"linkpath" => self.link = said.map(<[u8]>::to_vec),
                b"size" => self.size = said.map(number).transpose()?,
                b"uid" => self.uid = said.map(number).transpose()?,
                b"gid" => self.gid = said.map(number).transpose()?,
                b"mtime" => self.modified = pax::time(value),
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.attributes.retain(|(known, _)| known != name);
                        self.attributes.extend(said.map(|value| (name.to_vec(), value.to_vec())));
                        if self.attributes.len() > MOST_ATTRIBUTES {
                            return Err(invalid("an entry has more than 1000 extended attributes"));
                        }
                    } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                        self.sparse.record(name, value);
                    }
                }
            }
        }
        Ok(())
    }
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
    name
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends in the middle of an entry")
}
