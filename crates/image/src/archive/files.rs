//! The files of an archive by name, whether they lie in a directory or in a tar file.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    ImageError, Limits,
    layer::{
        compression::{Compression, refused},
        inflate::{Part, Place, Source},
        tar::{Kind, TarReader},
    },
};

/// As users know it: the server has it under another name.
pub(super) const WHAT: &str = "the archive";
/// Members that an archive may have: more than a manifest can name is no image.
const MOST_MEMBERS: usize = 100_000;
/// Bytes of all their names and targets.
const MOST_NAME_BYTES: usize = 64 << 20;
/// Bytes inflated between two questions whether to go on.
const ASK_EVERY: u64 = 16 << 20;

/// Fails when what is being read is no longer wanted, or there is no room for so many bytes more.
pub(super) type CheckWanted<'a> = &'a dyn Fn(u64) -> Result<(), ImageError>;

/// Finds files.
#[derive(Debug)]
pub(crate) enum Files {
    Directory(PathBuf),
    Tar {
        /// Its name may be gone, or it never had one.
        file: Arc<File>,
        /// Offset and length of each file, by its name without `./`.
        members: HashMap<String, (u64, u64)>,
        /// Links within the archive.
        links: HashMap<String, String>,
    },
}

impl Files {
    pub(crate) fn directory(path: &Path) -> Self {
        Self::Directory(path.to_owned())
    }

    /// Reads through a tar file and notes where everything is. One that is compressed as a whole is
    /// unpacked to a file without a name in `scratch` first, because its parts are not needed in
    /// the order they come in. `check_wanted` is asked now and then, with how many bytes are about
    /// to be written.
    pub(crate) fn tar(
        path: &Path,
        scratch: &Path,
        limits: &Limits,
        check_wanted: CheckWanted<'_>,
    ) -> Result<Self, ImageError> {
        let failed = |error| ImageError::io("read", path, error);
        let metadata = fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() {
            return Err(ImageError::unsupported(WHAT, "it must be a regular file"));
        }
        let file = Arc::new(uncompressed(path, scratch, limits, check_wanted)?);
        let damaged = |error: io::Error| {
            if error.raw_os_error().is_some() {
                return ImageError::io("read", path, error);
            }
            ImageError::corrupt(WHAT, error.to_string())
        };
        let all = Place::Open(Arc::clone(&file)).part(0, u64::MAX).map_err(failed)?;
        let all = BufReader::with_capacity(1 << 20, all);
        let mut reader = TarReader::new(Counted { inner: all, position: 0 });
        let mut members = HashMap::new();
        let mut links = HashMap::new();
        let mut name_bytes = MOST_NAME_BYTES;
        let no_tar = || ImageError::corrupt(WHAT, "it is not a tar archive");
        while let Some(entry) = reader.next_entry().map_err(|error| {
            match (members.is_empty(), error.raw_os_error()) {
                (true, None) => no_tar(),
                _ => damaged(error),
            }
        })? {
            let name = plain_name(&String::from_utf8_lossy(&entry.path));
            if (members.len() + links.len()).is_multiple_of(1024) {
                check_wanted(0)?;
            }
            let longer = name_bytes.checked_sub(entry.path.len() + entry.link.len());
            name_bytes = longer
                .ok_or_else(|| ImageError::too_large(WHAT, "its members' names are too long"))?;
            if members.len() + links.len() >= MOST_MEMBERS {
                let limit = format!("an archive may have {MOST_MEMBERS} members");
                return Err(ImageError::too_large(WHAT, limit));
            }
            let target = String::from_utf8_lossy(&entry.link).into_owned();
            match entry.kind {
                Kind::File if entry.sparse.is_none() => {
                    members.insert(name, (reader.stream().position, entry.data_size));
                }
                Kind::Symlink => {
                    let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                    let target = plain_name(&format!("{parent}/{target}"));
                    links.insert(name, target);
                }
                Kind::HardLink => drop(links.insert(name, plain_name(&target))),
                _ => {}
            }
        }
        if members.is_empty() {
            return Err(no_tar());
        }
        Ok(Self::Tar { file, members, links })
    }

    /// Where a file is.
    pub(crate) fn find(&self, name: &str) -> Result<Source, ImageError> {
        let missing = || ImageError::corrupt(WHAT, format!("`{name}` is missing in it"));
        match self {
            Self::Directory(directory) => {
                // Names come from digests and constants, but a stray `..` shall not depend on that.
                let path = directory.join(plain_name(name));
                let metadata = fs::metadata(&path).map_err(|_| missing())?;
                if !metadata.is_file() {
                    return Err(missing());
                }
                Ok(Source {
                    what: format!("{} in {WHAT}", plain_name(name)),
                    place: Place::Path(path),
                    offset: 0,
                    length: metadata.len(),
                    digest: None,
                })
            }
            Self::Tar { file, members, links } => {
                let name = plain_name(name);
                let found = members.get(&name).or_else(|| members.get(links.get(&name)?));
                let (offset, length) = *found.ok_or_else(missing)?;
                let what = format!("{name} in {WHAT}");
                Ok(Source {
                    what,
                    place: Place::Open(Arc::clone(file)),
                    offset,
                    length,
                    digest: None,
                })
            }
        }
    }

    /// Whether there is such a file.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    /// A small file, at most `limit` bytes.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, ImageError> {
        let source = self.find(name)?;
        if source.length > limit {
            return Err(ImageError::too_large(
                source.what,
                format!("the limit for it is {limit} bytes"),
            ));
        }
        let failed = |error| ImageError::io("read", Path::new(&source.what), error);
        let mut bytes = Vec::new();
        let part = source.place.part(source.offset, source.length).map_err(failed)?;
        { part }.read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }
}

/// The archive itself, or a file without a name with what it inflates to.
fn uncompressed(
    path: &Path,
    scratch: &Path,
    limits: &Limits,
    check_wanted: CheckWanted<'_>,
) -> Result<File, ImageError> {
    let failed = |error| ImageError::io("read", path, error);
    let mut file = BufReader::with_capacity(1 << 20, File::open(path).map_err(failed)?);
    let mut plain: Box<dyn Read> = match Compression::of(file.fill_buf().map_err(failed)?) {
        Compression::None => return Ok(file.into_inner()),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Compression::Zstd => {
            Box::new(zstd::stream::read::Decoder::with_buffer(file).map_err(failed)?)
        }
        Compression::Other(name) => return Err(refused(WHAT, name)),
    };
    let unwritable = |error| ImageError::io("write in", scratch, error);
    let mut output = tempfile::tempfile_in(scratch).map_err(unwritable)?;
    let mut chunk = vec![0; 256 << 10];
    let mut left = limits.unpacked_bytes;
    let mut unasked = 0;
    loop {
        let length =
            plain.read(&mut chunk).map_err(|error| ImageError::corrupt(WHAT, error.to_string()))?;
        if length == 0 {
            return Ok(output);
        }
        left = left.checked_sub(length as u64).ok_or_else(|| {
            let limit = "it inflates to more than limits.unpacked_bytes";
            ImageError::too_large(WHAT, limit)
        })?;
        if unasked == 0 {
            check_wanted(ASK_EVERY)?;
            unasked = ASK_EVERY;
        }
        unasked = unasked.saturating_sub(length as u64);
        output.write_all(&chunk[..length]).map_err(unwritable)?;
    }
}

/// A name without `./`, leading `/` and doubled `/`; `..` goes up but never above the top.
fn plain_name(name: &str) -> String {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Knows how far it has been read.
pub(crate) struct Counted {
    inner: BufReader<Part>,
    position: u64,
}

impl BufRead for Counted {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.position += amount as u64;
        self.inner.consume(amount);
    }
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.position += length as u64;
        Ok(length)
    }
}
