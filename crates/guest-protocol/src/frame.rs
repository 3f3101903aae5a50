//! Frames on the byte stream. Each stands for itself: after a broken connection a reader finds the
//! next one by its magic number, and checks show whether it is whole.
//!
//! ```text
//! 0       4       8         12        16             20
//! │ magic │ epoch │ control │ payload │ CRC-32 of    │ control: │ payload: │ CRC-32 of │
//! │       │       │ length  │ length  │ the first 16 │ JSON     │ raw      │ both      │
//! ```
//! All numbers are little-endian. The epoch is chosen by the host for each connection and repeated
//! by the guest; frames of another epoch are left over from an earlier connection and are dropped.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

/// `CDS1`.
const MAGIC: [u8; 4] = *b"CDS1";
const HEADER: usize = 20;
const TRAILER: usize = 4;

/// Largest raw payload, bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// Largest control message that a guest sends, bytes: a long process list.
pub const MAX_GUEST_CONTROL: usize = 1024 * 1024;
/// Largest control message that a host sends, bytes: a configuration with its files.
pub const MAX_HOST_CONTROL: usize = 8 * 1024 * 1024;

/// A message that fits no frame.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// It is no JSON.
    #[error("can't write a message as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It is too large.
    #[error("message of {control} bytes with {payload} bytes of payload is too large for a frame")]
    TooLarge {
        /// Bytes of JSON.
        control: usize,
        /// Bytes of payload.
        payload: usize,
    },
}

/// Writes one frame.
///
/// # Errors
/// When the message is larger than either end accepts.
pub fn encode<M: Serialize>(epoch: u32, message: &M, payload: &[u8]) -> Result<Bytes, EncodeError> {
    let control = serde_json::to_vec(message)?;
    if control.len() > MAX_HOST_CONTROL || payload.len() > MAX_PAYLOAD {
        return Err(EncodeError::TooLarge { control: control.len(), payload: payload.len() });
    }
    let mut frame = BytesMut::with_capacity(HEADER + control.len() + payload.len() + TRAILER);
    frame.put_slice(&MAGIC);
    frame.put_u32_le(epoch);
    // Both lengths were checked above to be far below 2^32.
    frame.put_u32_le(control.len() as u32);
    frame.put_u32_le(payload.len() as u32);
    frame.put_u32_le(crc32fast::hash(&frame[..HEADER - 4]));
    frame.put_slice(&control);
    frame.put_slice(payload);
    frame.put_u32_le(crc32fast::hash(&frame[HEADER..]));
    Ok(frame.freeze())
}

/// A frame as received.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame<M> {
    /// Of which connection.
    pub epoch: u32,
    /// The message.
    pub message: M,
    /// Raw bytes that go with it.
    pub payload: Bytes,
}

/// Finds frames in a stream of bytes, whatever else is in it. Holds at most one frame's bytes.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    max_control: usize,
}

impl Decoder {
    /// A decoder that takes control messages of at most `max_control` bytes.
    pub fn new(max_control: usize) -> Self {
        Self { buffer: BytesMut::new(), max_control }
    }

    /// Adds received bytes. Call [`Decoder::next_frame`] until it gives nothing before adding more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.put_slice(bytes);
    }

    /// The next whole frame that reads as an `M`. Anything else is skipped: garbage, damaged
    /// frames, and messages of a newer peer that this build does not know.
    pub fn next_frame<M: DeserializeOwned>(&mut self) -> Option<Frame<M>> {
        loop {
            self.skip_to_magic();
            let header = self.buffer.get(..HEADER)?;
            let word = |at: usize| {
                u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
            };
            let (epoch, control, payload) = (word(4), word(8) as usize, word(12) as usize);
            let header_is_whole = crc32fast::hash(&header[..HEADER - 4]) == word(16);
            if !header_is_whole || control > self.max_control || payload > MAX_PAYLOAD {
                self.buffer.advance(1);
                continue;
            }
            let body = control + payload;
            if self.buffer.len() < HEADER + body + TRAILER {
                return None;
            }
            let content = &self.buffer[HEADER..HEADER + body];
            let trailer = &self.buffer[HEADER + body..HEADER + body + TRAILER];
            if crc32fast::hash(content).to_le_bytes() != trailer {
                self.buffer.advance(1);
                continue;
            }
            let mut frame = self.buffer.split_to(HEADER + body + TRAILER).freeze();
            frame.advance(HEADER);
            let message = serde_json::from_slice(&frame[..control]);
            let payload = frame.slice(control..body);
            if let Ok(message) = message {
                return Some(Frame { epoch, message, payload });
            }
        }
    }

    fn skip_to_magic(&mut self) {
        let found = self.buffer.windows(MAGIC.len()).position(|window| window == MAGIC);
        // The last bytes may be the beginning of a magic number.
        let skip = found.unwrap_or_else(|| self.buffer.len().saturating_sub(MAGIC.len() - 1));
        self.buffer.advance(skip);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{GuestMessage, HostMessage, message::LogSource};

    fn log(sequence: u64) -> GuestMessage {
        GuestMessage::Log {
            sequence,
            source: LogSource::Stdout,
            time_ns: 5,
            dropped_before: 0,
            partial: false,
        }
    }

    fn all<M: DeserializeOwned>(decoder: &mut Decoder) -> Vec<Frame<M>> {
        std::iter::from_fn(|| decoder.next_frame()).collect()
    }

    #[test]
    fn unknown_messages_are_skipped() {
        let mut decoder = Decoder::new(MAX_GUEST_CONTROL);
        decoder.push(&encode(1, &serde_json::json!({"type": "of the future"}), b"").unwrap());
        decoder.push(&encode(1, &log(1), b"x").unwrap());
        assert_eq!(all::<GuestMessage>(&mut decoder).len(), 1);
    }

    #[test]
    fn a_frame_beyond_the_limit_is_refused_before_it_is_held() {
        let mut decoder = Decoder::new(100);
        let large = HostMessage::Signal { signal: 1, is_default: false };
        let frame =
            encode(1, &serde_json::json!({"type": "x", "filler": "y".repeat(200)}), b"").unwrap();
        decoder.push(&frame);
        decoder.push(&encode(1, &large, b"").unwrap());
        assert_eq!(all::<HostMessage>(&mut decoder).len(), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_frames_after_them_are_found(
            garbage in proptest::collection::vec(any::<u8>(), 0..300),
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            chunk in 1_usize..50,
        ) {
            let frame = encode(7, &log(9), &payload).unwrap();
            let stream = [&garbage[..], &frame, &frame].concat();
            let mut decoder = Decoder::new(MAX_GUEST_CONTROL);
            let mut found = Vec::new();
            for piece in stream.chunks(chunk) {
                decoder.push(piece);
                found.extend(all::<GuestMessage>(&mut decoder));
            }
            prop_assert_eq!(found.len(), 2);
            prop_assert_eq!(&found[1].payload[..], &payload[..]);
            prop_assert_eq!(found[1].epoch, 7);
        }

        #[test]
        fn a_damaged_frame_is_dropped_and_the_next_is_found(at in 0_usize..60, bit in 0_u8..8) {
            let frame = encode(7, &log(9), b"some text").unwrap();
            let mut damaged = frame.to_vec();
            let at = at % damaged.len();
            damaged[at] ^= 1 << bit;
            let mut decoder = Decoder::new(MAX_GUEST_CONTROL);
            decoder.push(&damaged);
            decoder.push(&frame);
            // Filler stands for later frames: a damaged length may swallow what follows until it is
            // seen to be wrong.
            let found = all::<GuestMessage>(&mut decoder);
            prop_assert_eq!(found.last().map(|frame| &frame.message), Some(&log(9)));
        }
    }
}
