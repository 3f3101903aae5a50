//! Decompression on a thread of its own, so that inflating and hashing overlap with writing files;
//! the next layers may already be inflating while one is unpacked. What runs ahead is bounded by
//! the channel.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use sha2::{Digest as _, Sha256};

use super::{
    Budget,
    compression::{Compression, refused},
};
use crate::{Digest, ImageError};

const CHUNK: usize = 256 << 10;
/// Chunks a layer may run ahead: 16 MiB.
const CHUNKS_AHEAD: usize = 64;

enum Message {
    Data(Vec<u8>),
    End { digest: Digest },
    Failed(ImageError),
}

/// The uncompressed bytes of a layer.
pub(crate) struct Inflated {
    what: String,
    messages: Receiver<Message>,
    chunk: Vec<u8>,
    position: usize,
    digest: Option<Digest>,
}

/// A layer as it lies on disk.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// Names it in errors.
    pub(crate) what: String,
    /// The file that holds it, and where in it.
    pub(crate) place: Place,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// Digest of these bytes, where they have one (layers of docker archives have only that of
    /// their content).
    pub(crate) digest: Option<Digest>,
}

/// A file with layers.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// One that is there when it is needed.
    Path(PathBuf),
    /// One that is read though its name may be gone by then.
    Open(Arc<File>),
}

impl Place {
    /// A part of it.
    pub(crate) fn part(&self, offset: u64, length: u64) -> io::Result<Part> {
        let file = match self {
            Self::Path(path) => Arc::new(File::open(path)?),
            Self::Open(file) => Arc::clone(file),
        };
        Ok(Part { file, position: offset, left: length })
    }
}

/// Reads a part of a file that others read at the same time.
#[derive(Debug)]
pub(crate) struct Part {
    file: Arc<File>,
    position: u64,
    left: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let length = self.file.read_at(&mut buffer[..most], self.position)?;
        self.position += length as u64;
        self.left -= length as u64;
        Ok(length)
    }
}

/// Starts inflating gzip, zstd or plain tar. `progress` hears of the bytes read. Dropping the
/// result ends the thread.
pub(crate) fn inflate(
    source: Source,
    budget: Arc<Budget>,
    progress: impl Fn(u64) + Send + 'static,
) -> Result<Inflated, ImageError> {
    let part = source.place.part(source.offset, source.length);
    let inner = part.map_err(|error| ImageError::io("read", Path::new(&source.what), error))?;
    let compressed = Watched { inner, hash: source.digest.is_some().then(Sha256::new), progress };
    let (sender, messages) = sync_channel(CHUNKS_AHEAD);
    let (what, expected) = (source.what.clone(), source.digest);
    let name = source.what;
    thread::Builder::new()
        .name("inflate".to_owned())
        .spawn(move || {
            let last = match run(&name, compressed, expected.as_ref(), &budget, &sender) {
                Ok(Some(digest)) => Message::End { digest },
                Ok(None) => return,
                Err(error) => Message::Failed(error),
            };
            // Nobody listens any more: fine.
            let _ = sender.send(last);
        })
        .map_err(|error| ImageError::Io {
            what: "start a thread".to_owned(),
            source: Arc::new(error),
        })?;
    Ok(Inflated { what, messages, chunk: Vec::new(), position: 0, digest: None })
}

/// The digest of what was inflated, or `None` when the receiver is gone.
fn run(
    what: &str,
    mut compressed: Watched<impl Read, impl Fn(u64)>,
    expected: Option<&Digest>,
    budget: &Budget,
    sender: &SyncSender<Message>,
) -> Result<Option<Digest>, ImageError> {
    let broken = |error: io::Error| from_stream(what, error);
    let mut buffered = BufReader::with_capacity(CHUNK, &mut compressed);
    let start = buffered.fill_buf().map_err(broken)?;
    let mut plain: Box<dyn Read + '_> = match Compression::of(start) {
        Compression::None => Box::new(buffered),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(buffered)),
        // libzstd itself refuses windows above 128 MiB, and skips frames that hold no data.
        Compression::Zstd => {
            Box::new(zstd::stream::read::Decoder::with_buffer(buffered).map_err(broken)?)
        }
        Compression::Other(name) => return Err(refused(what, name)),
    };
    let mut hash = Sha256::new();
    loop {
        let mut chunk = vec![0; CHUNK];
        let mut filled = 0;
        while filled < CHUNK {
            match plain.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(error)),
            }
        }
        if filled == 0 {
            break;
        }
        chunk.truncate(filled);
        budget.take_bytes(filled as u64)?;
        hash.update(&chunk);
        if sender.send(Message::Data(chunk)).is_err() {
            return Ok(None);
        }
    }
    drop(plain);
    // What the decompressor had no use for belongs to the blob all the same.
    io::copy(&mut compressed, &mut io::sink()).map_err(broken)?;
    if let (Some(hash), Some(expected)) = (compressed.hash, expected) {
        let actual = Digest::of_hashed(hash);
        if actual != *expected {
            return Err(ImageError::corrupt(what, format!("its content has digest {actual}")));
        }
    }
    Ok(Some(Digest::of_hashed(hash)))
}

/// Hashes and counts what passes.
struct Watched<R, P> {
    inner: R,
    hash: Option<Sha256>,
    progress: P,
}

impl<R: Read, P: Fn(u64)> Read for Watched<R, P> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&buffer[..length]);
        }
        (self.progress)(length as u64);
        Ok(length)
    }
}

impl Inflated {
    /// Reads to the end and compares the digest of all of it with the one the image's config gives.
    pub(crate) fn finish(mut self, expected: &Digest) -> Result<(), ImageError> {
        loop {
            let length = match self.fill_buf() {
                Ok(data) => data.len(),
                Err(error) => return Err(from_stream(&self.what, error)),
            };
            if length == 0 {
                break;
            }
            self.consume(length);
        }
        match self.digest {
            Some(digest) if digest == *expected => Ok(()),
            digest => Err(ImageError::corrupt(
                self.what,
                format!(
                    "its content has digest {}, the config says {expected}",
                    digest.as_ref().map_or("", Digest::as_str)
                ),
            )),
        }
    }
}

impl BufRead for Inflated {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.chunk.len() && self.digest.is_none() {
            self.position = 0;
            self.chunk = Vec::new();
            match self.messages.recv() {
                Ok(Message::Data(chunk)) => self.chunk = chunk,
                Ok(Message::End { digest }) => self.digest = Some(digest),
                Ok(Message::Failed(error)) => return Err(io::Error::other(error)),
                Err(_) => return Err(io::Error::other("the inflating thread is gone")),
            }
        }
        Ok(&self.chunk[self.position..])
    }

    fn consume(&mut self, amount: usize) {
        self.position = (self.position + amount).min(self.chunk.len());
    }
}

impl Read for Inflated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

/// Turns an error that came up through a stream back into what it was; anything else means bad
/// data.
pub(crate) fn from_stream(what: &str, error: io::Error) -> ImageError {
    if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<ImageError>()) {
        return inner.clone();
    }
    if error.raw_os_error().is_some() {
        return ImageError::io("read", std::path::Path::new(what), error);
    }
    ImageError::corrupt(what, error.to_string())
}
