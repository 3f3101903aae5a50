//! The client.

use std::{collections::HashMap, io, os::fd::AsRawFd as _, path::Path};

use async_trait::async_trait;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::wire::{self, Fields, Message, chunk, command, option, reply, take, violation};
use crate::{Extent, SnapshotError, Source};

/// Longest address of a unix socket on Linux, with its zero, bytes.
const ADDRESS: usize = 108;

/// A read is divided into requests of so many bytes, all of which are under way at a time: QEMU
/// works on up to 16.
const PART: usize = 1 << 20;
const IN_FLIGHT: usize = 16;

/// QEMU sends at most 2^17 extents.
const LARGEST_STATUS: u32 = 4 << 20;
const LARGEST_WORDS: u32 = 64 << 10;

/// Asked for at a time: a length is of 32 bits, and a multiple of any block.
const LARGEST_QUERY: u64 = 1 << 31;

/// Reads an export of QEMU.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    size: u64,
    allocation: Option<u32>,
    changed: Option<u32>,
    next_cookie: u64,
    /// A call is under way, or was dropped in the middle, and replies to it are still to come.
    is_busy: bool,
}

/// A piece of the map of one context: so many bytes, with these flags.
type Piece = (u64, u32);

impl Client {
    /// Connects. `changed` is the name of a dirty bitmap that the export offers
    /// (`qemu:dirty-bitmap:NAME`): what it does not name is unchanged.
    ///
    /// # Errors
    /// When there is no such export, or it has no such bitmap.
    pub async fn connect(
        socket: &Path,
        export: &str,
        changed: Option<&str>,
    ) -> Result<Self, SnapshotError> {
        let connected = async {
            let (reader, writer) = connect(socket).await?.into_split();
            let mut client = Self {
                reader: BufReader::with_capacity(64 << 10, reader),
                writer,
                size: 0,
                allocation: None,
                changed: None,
                next_cookie: 0,
                is_busy: false,
            };
            client.negotiate(export, changed).await?;
            Ok(client)
        };
        connected.await.map_err(|error: io::Error| {
            let what = format!("NBD export {export} of {}: {error}", socket.display());
            SnapshotError::Source(io::Error::new(error.kind(), what))
        })
    }

    async fn negotiate(&mut self, export: &str, changed: Option<&str>) -> io::Result<()> {
        let greeting = take::<18>(&mut self.reader).await?;
        let mut fields = Fields(&greeting);
        let is_nbd = fields.u64() == Some(wire::GREETING) && fields.u64() == Some(wire::OPTION);
        let flags = fields.u16().unwrap_or_default();
        if !is_nbd || flags & wire::FIXED_NEWSTYLE == 0 {
            return Err(violation("it is no server of the fixed newstyle"));
        }
        let flags = wire::FIXED_NEWSTYLE | flags & wire::NO_ZEROES;
        self.writer.write_all(&u32::from(flags).to_be_bytes()).await?;

        self.option(option::STRUCTURED_REPLY, &[]).await?;
        let changed = changed.map(|name| format!("qemu:dirty-bitmap:{name}"));
        let contexts = [Some(wire::ALLOCATION), changed.as_deref()];
        let contexts: Vec<_> = contexts.into_iter().flatten().collect();
        let mut data = Message::default().text(export.as_bytes());
        data = data.u32(u32::try_from(contexts.len()).unwrap_or_default());
        data = contexts.iter().fold(data, |data, context| data.text(context.as_bytes()));
        for (kind, data) in self.option(option::SET_META_CONTEXT, &data.0).await? {
            let mut fields = Fields(&data);
            let (reply::META_CONTEXT, Some(id)) = (kind, fields.u32()) else { continue };
            match std::str::from_utf8(fields.0) {
                Ok(wire::ALLOCATION) => self.allocation = Some(id),
                Ok(name) if Some(name) == changed.as_deref() => self.changed = Some(id),
                _ => {}
            }
        }
        if let Some(name) = changed.filter(|_| self.changed.is_none()) {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("it has no {name}")));
        }

        let data = Message::default().text(export.as_bytes()).u16(0);
        for (kind, data) in self.option(option::GO, &data.0).await? {
            let mut fields = Fields(&data);
            if kind == reply::INFO && fields.u16() == Some(wire::INFO_EXPORT) {
                self.size = fields.u64().ok_or_else(|| violation("its size is missing"))?;
            }
        }
        Ok(())
    }

    /// Sends an option, and gets what is replied before the acknowledgement.
    async fn option(&mut self, option: u32, data: &[u8]) -> io::Result<Vec<(u32, Vec<u8>)>> {
        let header = Message::default().u64(wire::OPTION).u32(option).text(data);
        self.writer.write_all(&header.0).await?;
        let mut replies = Vec::new();
        loop {
            let header = take::<20>(&mut self.reader).await?;
            let mut fields = Fields(&header);
            let is_reply = fields.u64() == Some(wire::OPTION_REPLY);
            if !is_reply || fields.u32() != Some(option) {
                return Err(violation("the reply to an option is none"));
            }
            let kind = fields.u32().unwrap_or_default();
            let data = self.payload(fields.u32().unwrap_or_default(), LARGEST_WORDS).await?;
            match kind {
                reply::ACK => return Ok(replies),
                reply::UNKNOWN => {
                    return Err(io::Error::new(io::ErrorKind::NotFound, words(&data)));
                }
                error if error & reply::ERROR != 0 => {
                    let number = error & !reply::ERROR;
                    let what = format!("refused option {option}: error {number} {}", words(&data));
                    return Err(io::Error::new(io::ErrorKind::Unsupported, what));
                }
                _ if replies.len() < 16 => replies.push((kind, data)),
                _ => return Err(violation("there are too many replies to an option")),
            }
        }
    }

    async fn payload(&mut self, length: u32, most: u32) -> io::Result<Vec<u8>> {
        if length > most {
            return Err(violation(format!("a reply of {length} bytes is too long")));
        }
        let mut data = vec![0; usize::try_from(length).unwrap_or_default()];
        self.reader.read_exact(&mut data).await?;
        Ok(data)
    }

    /// Sends a request and gives its cookie.
    async fn request(&mut self, command: u16, offset: u64, length: u32) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie = cookie.wrapping_add(1);
        let request = Message::default().u32(wire::REQUEST).u16(0).u16(command);
        let request = request.u64(cookie).u64(offset).u32(length);
        self.writer.write_all(&request.0).await?;
        Ok(cookie)
    }

    /// The header of the next chunk: its flags, type, cookie and length.
    async fn chunk(&mut self) -> io::Result<(u16, u16, u64, u32)> {
        let magic = u32::from_be_bytes(take(&mut self.reader).await?);
        if magic == wire::SIMPLE_REPLY {
            let rest = take::<12>(&mut self.reader).await?;
            let error = Fields(&rest).u32().unwrap_or_default();
            return Err(failure(error, ""));
        }
        if magic != wire::CHUNK {
            return Err(violation("a reply is none"));
        }
        let rest = take::<16>(&mut self.reader).await?;
        let mut fields = Fields(&rest);
        let mut parsed = || Some((fields.u16()?, fields.u16()?, fields.u64()?, fields.u32()?));
        parsed().ok_or_else(|| violation("a reply is none"))
    }

    /// The error of a chunk that is one.
    async fn chunk_error(&mut self, length: u32) -> io::Error {
        match self.payload(length, LARGEST_WORDS).await {
            Ok(data) => {
                let mut fields = Fields(&data);
                let number = fields.u32().unwrap_or_default();
                let length = usize::from(fields.u16().unwrap_or_default());
                failure(number, &words(fields.bytes(length).unwrap_or_default()))
            }
            Err(error) => error,
        }
    }

    async fn read_all(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let total = buffer.len();
        let (mut sent, mut under_way) = (0, HashMap::new());
        while sent < total || !under_way.is_empty() {
            while sent < total && under_way.len() < IN_FLIGHT {
                let length = PART.min(total - sent);
                let wanted = u32::try_from(length).unwrap_or_default();
                let cookie = self.request(command::READ, offset + sent as u64, wanted).await?;
                under_way.insert(cookie, (sent, length, 0));
                sent += length;
            }
            let (flags, kind, cookie, length) = self.chunk().await?;
            let part = under_way.get_mut(&cookie);
            let (start, whole, filled) = part.ok_or_else(|| violation("nothing was asked"))?;
            match kind {
                chunk::NONE if length == 0 => {}
                chunk::OFFSET_DATA | chunk::OFFSET_HOLE => {
                    let at = u64::from_be_bytes(take(&mut self.reader).await?);
                    let count = match kind {
                        chunk::OFFSET_DATA => length.checked_sub(8),
                        _ => Some(u32::from_be_bytes(take(&mut self.reader).await?)),
                    };
                    // Within what this request is for.
                    let within = at.checked_sub(offset + *start as u64);
                    let place = within.zip(count).and_then(|(within, count)| {
                        let within = usize::try_from(within).ok()?;
                        let end = within.checked_add(usize::try_from(count).ok()?)?;
                        (end <= *whole).then_some(*start + within..*start + end)
                    });
                    let place = place.and_then(|place| buffer.get_mut(place));
                    let place = place.ok_or_else(|| violation("data is out of place"))?;
                    *filled += place.len();
                    match kind {
                        chunk::OFFSET_DATA => drop(self.reader.read_exact(place).await?),
                        _ => place.fill(0),
                    }
                }
                kind if kind & chunk::IS_ERROR != 0 => return Err(self.chunk_error(length).await),
                kind => return Err(violation(format!("a reply of kind {kind} to a read"))),
            }
            if flags & chunk::DONE != 0 {
                if filled != whole {
                    return Err(violation("a reply is incomplete"));
                }
                under_way.remove(&cookie);
            }
        }
        Ok(())
    }

    async fn status(&mut self, offset: u64, length: u64) -> io::Result<Vec<Extent>> {
        let length = u32::try_from(length).map_err(|_| violation("too much was asked for"))?;
        let cookie = self.request(command::BLOCK_STATUS, offset, length).await?;
        let (mut allocation, mut changes) = (Vec::new(), Vec::new());
        loop {
            let (flags, kind, of, size) = self.chunk().await?;
            if of != cookie {
                return Err(violation("a reply to nothing that was asked"));
            }
            match kind {
                chunk::NONE if size == 0 => {}
                chunk::BLOCK_STATUS => {
                    let data = self.payload(size, LARGEST_STATUS).await?;
                    let mut fields = Fields(&data);
                    let context = fields.u32();
                    let pieces = std::iter::from_fn(|| Some((fields.u32()?.into(), fields.u32()?)));
                    let pieces = pieces.collect::<Vec<Piece>>();
                    match context {
                        id if id == self.allocation => allocation = pieces,
                        id if id == self.changed => changes = pieces,
                        _ => return Err(violation("the status of an unknown context")),
                    }
                }
                kind if kind & chunk::IS_ERROR != 0 => return Err(self.chunk_error(size).await),
                kind => return Err(violation(format!("a reply of kind {kind} to a status"))),
            }
            if flags & chunk::DONE != 0 {
                break;
            }
        }
        let length = u64::from(length);
        if self.allocation.is_none() {
            allocation = vec![(length, 0)];
        }
        if self.changed.is_none() {
            changes = vec![(length, wire::DIRTY)];
        }
        let extents = merge(offset, length, &allocation, &changes);
        if extents.is_empty() { Err(violation("a status says nothing")) } else { Ok(extents) }
    }

    /// Marks that replies are to come, so that what follows a call that was dropped in the middle,
    /// or failed, does not take them for its own.
    fn begin(&mut self, offset: u64, length: u64) -> io::Result<()> {
        if self.is_busy {
            return Err(io::Error::other("an earlier call has failed or was dropped"));
        }
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            let what =
                format!("{length} bytes from {offset} on are beyond its {} bytes", self.size);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        self.is_busy = true;
        Ok(())
    }
}

#[async_trait]
impl Source for Client {
    fn size(&self) -> u64 {
        self.size
    }

    async fn extents(&mut self, offset: u64, length: u64) -> Result<Vec<Extent>, SnapshotError> {
        let length = length.min(LARGEST_QUERY);
        self.begin(offset, length).map_err(SnapshotError::Source)?;
        let extents = match self.allocation.or(self.changed) {
            Some(_) => self.status(offset, length).await.map_err(SnapshotError::Source)?,
            None => merge(offset, length, &[(length, 0)], &[(length, wire::DIRTY)]),
        };
        self.is_busy = false;
        Ok(extents)
    }

    async fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), SnapshotError> {
        self.begin(offset, buffer.len() as u64).map_err(SnapshotError::Source)?;
        self.read_all(offset, buffer).await.map_err(SnapshotError::Source)?;
        self.is_busy = false;
        Ok(())
    }
}

/// Puts the maps of two contexts one upon the other, as far as both go.
fn merge(mut offset: u64, length: u64, allocation: &[Piece], changes: &[Piece]) -> Vec<Extent> {
    let end = offset + length;
    let mut extents: Vec<Extent> = Vec::new();
    let (mut allocation, mut changes) = (allocation.iter().copied(), changes.iter().copied());
    let (mut first, mut second) = (allocation.next(), changes.next());
    while let (Some((left, flags)), Some((right, change))) = (first, second) {
        let length = left.min(right).min(end - offset);
        if length == 0 {
            break;
        }
        let (is_zero, is_unchanged) = (flags & wire::ZERO != 0, change & wire::DIRTY == 0);
        match extents.last_mut() {
            Some(last) if (last.is_zero, last.is_unchanged) == (is_zero, is_unchanged) => {
                last.length += length;
            }
            _ => extents.push(Extent { offset, length, is_zero, is_unchanged }),
        }
        offset += length;
        first = if left > length { Some((left - length, flags)) } else { allocation.next() };
        second = if right > length { Some((right - length, change)) } else { changes.next() };
    }
    extents
}

/// Connects to a socket; by way of its directory when the path is longer than addresses can be.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let (true, Some(directory), Some(name)) =
        (socket.as_os_str().len() >= ADDRESS, socket.parent(), socket.file_name())
    else {
        return UnixStream::connect(socket).await;
    };
    let opened = std::fs::File::open(directory)?;
    let short = Path::new("/proc/self/fd").join(opened.as_raw_fd().to_string()).join(name);
    UnixStream::connect(short).await
}

fn words(data: &[u8]) -> String {
    String::from_utf8_lossy(data).into_owned()
}

fn failure(number: u32, words: &str) -> io::Error {
    match i32::try_from(number) {
        Ok(number) if words.is_empty() => io::Error::from_raw_os_error(number),
        _ => io::Error::other(format!("error {number}: {words}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_merged_as_far_as_both_go() {
        let extent = |offset, length, is_zero, is_unchanged| Extent {
            offset,
            length,
            is_zero,
            is_unchanged,
        };
        let zero = wire::ZERO | wire::HOLE;
        let merged = merge(100, 50, &[(20, 0), (10, zero), (70, 0)], &[(25, 1), (20, 0)]);
        assert_eq!(
            merged,
            [
                extent(100, 20, false, false),
                extent(120, 5, true, false),
                extent(125, 5, true, true),
                extent(130, 15, false, true),
            ]
        );
        assert_eq!(
            merge(0, 8, &[(4, 0), (9, wire::HOLE)], &[(9, 1)]),
            [extent(0, 8, false, false)]
        );
        assert_eq!(merge(0, 8, &[(0, 0)], &[(8, 0)]), []);
        assert_eq!(merge(0, 8, &[], &[(8, 0)]), []);
    }
}
