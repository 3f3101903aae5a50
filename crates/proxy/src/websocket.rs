//! Tunnels: what follows an upgrade. A WebSocket is told to close, between two of its frames, when
//! its machine is about to be put to sleep.

use std::{io, sync::atomic::AtomicU64, time::Duration};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use crate::counters::{self, Tally};

/// A close frame with the code 1001, "going away".
const CLOSE: &[u8] = &[0x88, 0x02, 0x03, 0xe9];
/// How long a client may take to close a WebSocket that its server has ended.
const CLOSE_TIME: Duration = Duration::from_secs(5);
/// The kind of a close frame.
const CLOSE_KIND: u8 = 8;
/// For each direction.
const BUFFER: usize = 8 << 10;

/// Follows where frames end in what a server sends.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    header: [u8; 14],
    /// Bytes of the header that are here.
    have: usize,
    /// Bytes of the payload to come.
    payload: u64,
    /// A close frame was among them.
    has_closed: bool,
}

impl Frames {
    /// Whether a frame may begin here.
    pub(crate) fn is_between(&self) -> bool {
        self.have == 0 && self.payload == 0
    }

    /// Whether a close frame may be put here.
    fn may_close(&self) -> bool {
        self.is_between() && !self.has_closed
    }

    pub(crate) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let step = self.payload.min(bytes.len() as u64);
                self.payload -= step;
                bytes = &bytes[step as usize..];
                continue;
            }
            self.header[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            if let Some(payload) = self.payload() {
                self.has_closed |= self.header[0] & 0x0f == CLOSE_KIND;
                self.payload = payload;
                self.have = 0;
            }
        }
    }

    /// The length of the payload once the header is whole.
    fn payload(&self) -> Option<u64> {
        if self.have < 2 {
            return None;
        }
        let mask = if self.header[1] & 0x80 != 0 { 4 } else { 0 };
        let extended = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if self.have < 2 + extended + mask {
            return None;
        }
        if extended == 0 {
            return Some(u64::from(self.header[1] & 0x7f));
        }
        let digits = &self.header[2..2 + extended];
        Some(digits.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)))
    }
}

/// Passes bytes both ways until both sides have ended. `closing`, given for a WebSocket, has it
/// closed; one whose machine has ended its side is over.
pub(crate) async fn tunnel<C, M>(
    client: C,
    machine: M,
    closing: Option<&CancellationToken>,
    tally: &Tally,
) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite,
    M: AsyncRead + AsyncWrite,
{
    let (from_client, to_client) = tokio::io::split(client);
    let (from_machine, to_machine) = tokio::io::split(machine);
    // What a client sends has a mask on it: it answers our close frame with one of its own.
    let up = pass(from_client, to_machine, None, &tally.bytes_in);
    let down = pass(from_machine, to_client, closing, &tally.bytes_out);
    if closing.is_none() {
        return tokio::try_join!(up, down).map(|_| ());
    }
    let ended = CancellationToken::new();
    let up = async {
        tokio::select! {
            result = up => result,
            () = async {
                ended.cancelled().await;
                tokio::time::sleep(CLOSE_TIME).await;
            } => Ok(()),
        }
    };
    let down = async {
        let result = down.await;
        ended.cancel();
        result
    };
    tokio::try_join!(up, down).map(|_| ())
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    closing: Option<&CancellationToken>,
    counter: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut frames = Frames::default();
    // Whether we have closed it: what its server says after that is not for the client.
    let mut is_closed = false;
    loop {
        let is_told = async {
            match closing {
                Some(token) if !is_closed && frames.may_close() => token.cancelled().await,
                _ => std::future::pending().await,
            }
        };
        let length = tokio::select! {
            biased;
            () = is_told => {
                is_closed = true;
                to.write_all(CLOSE).await?;
                to.flush().await?;
                continue;
            }
            length = from.read(&mut buffer) => length?,
        };
        if length == 0 {
            return to.shutdown().await;
        }
        counters::add(counter, length as u64);
        if is_closed {
            continue;
        }
        if closing.is_some() {
            frames.pass(&buffer[..length]);
        }
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_end_where_their_lengths_say() {
        let short = [0x81, 3, 1, 2, 3].to_vec();
        let masked = [0x81, 0x82, 9, 9, 9, 9, 1, 2].to_vec();
        let mut medium = vec![0x82, 126, 1, 0];
        medium.extend([0; 256]);
        let mut long = vec![0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0];
        long.extend(vec![0; 65_536]);
        for frame in [short, masked, medium, long, vec![0x89, 0]] {
            for piece in [1, 3, 100_000] {
                let mut frames = Frames::default();
                let (last, begin) = frame.split_last().unwrap();
                for part in begin.chunks(piece) {
                    frames.pass(part);
                    assert!(!frames.is_between());
                }
                frames.pass(&[*last]);
                assert!(frames.is_between());
            }
        }
    }
}
