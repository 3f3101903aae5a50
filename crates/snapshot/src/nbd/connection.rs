//! The server's side of a connection, after the negotiation.
//!
//! ```text
//!  requests ──▶ one task each, at most 16 ──▶ replies (bounded) ──▶ socket
//! ```

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};

use super::{
    contents::Contents,
    handshake::{ALLOCATION_ID, Agreed},
    wire::{self, Fields, Message, chunk, command, errno, length, take, violation},
};
use crate::SnapshotError;

/// Requests of a connection that are worked on at a time: QEMU has no more under way.
const IN_FLIGHT: usize = 16;

/// A structured reply is sent in parts of so many bytes, so that a request takes no more memory.
/// One that is not has to be whole.
const PART: u32 = 1 << 20;

/// Of a block status as many extents are told; the client asks again from there.
const MOST_EXTENTS: usize = 4096;

/// What could not be read because the store is away is tried again after this, and after twice as
/// long each time.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LAST_BACKOFF: Duration = Duration::from_secs(15);

/// What the requests of all connections share.
pub(super) struct Served<C> {
    pub(super) contents: C,
    pub(super) damaged: Box<dyn Fn(SnapshotError) + Send + Sync>,
    /// MiB that replies may take that have to be whole.
    pub(super) memory: Arc<Semaphore>,
}

/// A request, of which the range is within the contents.
struct Request<C> {
    served: Arc<Served<C>>,
    agreed: Agreed,
    replies: mpsc::Sender<Vec<u8>>,
    cookie: u64,
    flags: u16,
    offset: u64,
    length: u32,
}

/// The client is gone.
struct Gone;

/// Answers requests until the client is gone, wants no more, or breaks the protocol.
pub(super) async fn run<C: Contents>(
    served: Arc<Served<C>>,
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    agreed: Agreed,
) -> io::Result<()> {
    let (replies, outgoing) = mpsc::channel(IN_FLIGHT);
    // What is under way ends with this, whichever comes first.
    tokio::select! {
        ended = receive(served, reader, agreed, replies) => ended,
        ended = send(writer, outgoing) => ended,
    }
}

async fn send(mut writer: OwnedWriteHalf, mut outgoing: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    while let Some(message) = outgoing.recv().await {
        writer.write_all(&message).await?;
    }
    Ok(())
}

async fn receive<C: Contents>(
    served: Arc<Served<C>>,
    mut reader: OwnedReadHalf,
    agreed: Agreed,
    replies: mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    let (places, mut tasks) = (Arc::new(Semaphore::new(IN_FLIGHT)), JoinSet::new());
    loop {
        let header = take::<28>(&mut reader).await?;
        let mut fields = Fields(&header);
        let magic = fields.u32();
        let parsed = (fields.u16(), fields.u16(), fields.u64(), fields.u64(), fields.u32());
        let (Some(flags), Some(kind), Some(cookie), Some(offset), Some(length)) = parsed else {
            return Err(violation("a request is none"));
        };
        if magic != Some(wire::REQUEST) {
            return Err(violation("a request is none"));
        }
        let (served, replies) = (Arc::clone(&served), replies.clone());
        let request = Request { served, agreed, replies, cookie, flags, offset, length };
        let refusal = match kind {
            command::DISCONNECT => return Ok(()),
            command::READ | command::BLOCK_STATUS => request.refusal(kind),
            command::WRITE => {
                // Its data follows whatever becomes of it.
                if length > wire::LARGEST {
                    return Err(violation("a write is too long"));
                }
                tokio::io::copy(&mut (&mut reader).take(length.into()), &mut tokio::io::sink())
                    .await?;
                Some((errno::NOT_PERMITTED, "it is read-only"))
            }
            command::TRIM | command::WRITE_ZEROES => {
                Some((errno::NOT_PERMITTED, "it is read-only"))
            }
            _ => Some((errno::INVALID, "there is no such request")),
        };
        if let Some((number, words)) = refusal {
            if request.fail(kind, number, words).await.is_err() {
                return Ok(());
            }
            continue;
        }
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
        tasks.spawn(request.answer(kind, place));
        while tasks.try_join_next().is_some() {}
    }
}

impl<C: Contents> Request<C> {
    /// Why a read or block status can't be, if so.
    fn refusal(&self, kind: u16) -> Option<(u32, &'static str)> {
        let end = self.offset.checked_add(self.length.into());
        let size = self.served.contents.size();
        let allowed = if kind == command::BLOCK_STATUS { command::ONE } else { 0 };
        let words = match kind {
            _ if self.length == 0 => "it is for nothing",
            _ if end.is_none_or(|end| end > size) => "it is beyond the end",
            _ if self.flags & !allowed != 0 => "there is no such flag",
            command::READ if self.length > wire::LARGEST => "it is too long",
            command::BLOCK_STATUS if !self.agreed.allocation => "no context was agreed on",
            _ => return None,
        };
        Some((errno::INVALID, words))
    }

    async fn answer(self, kind: u16, _place: OwnedSemaphorePermit) {
        // Where it fails, the connection has ended.
        let _ = match kind {
            command::BLOCK_STATUS => self.block_status().await,
            _ if self.agreed.structured => self.read_in_parts().await,
            _ => self.read_whole().await,
        };
    }

    async fn block_status(&self) -> Result<(), Gone> {
        let most = if self.flags & command::ONE == 0 { MOST_EXTENTS } else { 1 };
        let mut extents: Vec<(u32, u32)> = Vec::new();
        let mut done = 0;
        while done < self.length {
            let Some((is_zero, count)) = self.zeroes(done, self.length - done).await else {
                // What is known by then is an answer too, and the next one tells the error.
                if extents.is_empty() {
                    return self.fail(command::BLOCK_STATUS, errno::IO, "it is damaged").await;
                }
                break;
            };
            // A hole, and not zeroes: QEMU's block-stream copies what is known to be zeroes and
            // skips holes. Both read as zeroes here.
            let flags = if is_zero { wire::HOLE } else { 0 };
            let is_full = extents.len() == most;
            match extents.last_mut() {
                Some((last, same)) if *same == flags => *last += count,
                _ if is_full => break,
                _ => extents.push((count, flags)),
            }
            done += count;
        }
        let data = Message::default().u32(ALLOCATION_ID);
        let data = extents.iter().fold(data, |data, (count, flags)| data.u32(*count).u32(*flags));
        self.send(self.chunk(chunk::DONE, chunk::BLOCK_STATUS, &data.0)).await
    }

    /// Sends holes as such, and the rest in parts.
    async fn read_in_parts(&self) -> Result<(), Gone> {
        let mut done = 0;
        while done < self.length {
            let left = self.length - done;
            let at = self.offset + u64::from(done);
            let Some((is_zero, count)) = self.zeroes(done, left).await else {
                return self.fail(command::READ, errno::IO, "it is damaged").await;
            };
            let count = if is_zero { count } else { count.min(PART) };
            let flags = if count == left { chunk::DONE } else { 0 };
            let header = Message::default().u64(at);
            let message = if is_zero {
                self.chunk(flags, chunk::OFFSET_HOLE, &header.u32(count).0)
            } else {
                let length = count + length(&header.0);
                let header = self.chunk_header(flags, chunk::OFFSET_DATA, length).bytes(&header.0);
                match self.read(at, header.0, count).await {
                    Some(message) => message,
                    None => return self.fail(command::READ, errno::IO, "it is damaged").await,
                }
            };
            self.send(message).await?;
            done += count;
        }
        Ok(())
    }

    async fn read_whole(&self) -> Result<(), Gone> {
        let memory = Arc::clone(&self.served.memory);
        let _taken = memory.acquire_many_owned(self.length.div_ceil(1 << 20)).await;
        let header = simple_reply(0, self.cookie);
        match self.read(self.offset, header, self.length).await {
            Some(message) => self.send(message).await,
            None => self.fail(command::READ, errno::IO, "it is damaged").await,
        }
    }

    /// Appends so many bytes of the contents; `None` when they are damaged.
    async fn read(&self, offset: u64, mut message: Vec<u8>, count: u32) -> Option<Vec<u8>> {
        let start = message.len();
        message.resize(start + usize::try_from(count).ok()?, 0);
        let mut backoff = FIRST_BACKOFF;
        loop {
            let buffer = message.get_mut(start..)?;
            match self.served.contents.read(offset, buffer).await {
                Ok(()) => return Some(message),
                Err(error) => self.wait(error, &mut backoff).await?,
            }
        }
    }

    /// Whether what is at a place of the request is zeroes, and how many; `None` when it is
    /// damaged.
    async fn zeroes(&self, done: u32, left: u32) -> Option<(bool, u32)> {
        let offset = self.offset + u64::from(done);
        let mut backoff = FIRST_BACKOFF;
        loop {
            match self.served.contents.zeroes(offset, left.into()).await {
                Ok((is_zero, count)) => {
                    let count = u32::try_from(count).unwrap_or(left).clamp(1, left);
                    return Some((is_zero, count));
                }
                Err(error) => self.wait(error, &mut backoff).await?,
            }
        }
    }

    /// Waits where trying again may help; else tells of the damage.
    async fn wait(&self, error: SnapshotError, backoff: &mut Duration) -> Option<()> {
        if !matches!(error, SnapshotError::Store(_)) {
            (self.served.damaged)(error);
            return None;
        }
        tracing::warn!(%error, retry_in = ?*backoff, "can't read a snapshot");
        tokio::time::sleep(*backoff).await;
        *backoff = LAST_BACKOFF.min(*backoff * 2);
        Some(())
    }

    async fn fail(&self, kind: u16, number: u32, words: &str) -> Result<(), Gone> {
        tracing::debug!(kind, self.offset, self.length, words, "refused an NBD request");
        if !self.agreed.structured {
            return self.send(simple_reply(number, self.cookie)).await;
        }
        let length = u16::try_from(words.len()).unwrap_or_default();
        let data = Message::default().u32(number).u16(length).bytes(words.as_bytes());
        self.send(self.chunk(chunk::DONE, chunk::ERROR, &data.0)).await
    }

    async fn send(&self, message: Vec<u8>) -> Result<(), Gone> {
        self.replies.send(message).await.map_err(|_| Gone)
    }

    fn chunk(&self, flags: u16, kind: u16, data: &[u8]) -> Vec<u8> {
        self.chunk_header(flags, kind, length(data)).bytes(data).0
    }

    fn chunk_header(&self, flags: u16, kind: u16, length: u32) -> Message {
        let header = Message::default().u32(wire::CHUNK).u16(flags).u16(kind);
        header.u64(self.cookie).u32(length)
    }
}

fn simple_reply(number: u32, cookie: u64) -> Vec<u8> {
    Message::default().u32(wire::SIMPLE_REPLY).u32(number).u64(cookie).0
}
