//! Messages of a session within a body: a byte for the kind, four for the length (little-endian),
//! and the message.

use axum::body::Body;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::{Stream, StreamExt as _, stream};

/// Longest message, bytes.
pub const MAX_FRAME: usize = 1 << 20;
const HEADER: usize = 5;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// JSON.
    Text(Bytes),
    /// A channel's number, and what goes over it.
    Data(Bytes),
}

impl Frame {
    /// As it travels.
    pub fn encode(&self) -> Bytes {
        let (kind, content) = match self {
            Self::Text(content) => (0, content),
            Self::Data(content) => (1, content),
        };
        let mut frame = BytesMut::with_capacity(HEADER + content.len());
        frame.put_u8(kind);
        // Longer ones are refused by whoever reads them.
        frame.put_u32_le(u32::try_from(content.len()).unwrap_or(u32::MAX));
        frame.put_slice(content);
        frame.freeze()
    }

    fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, String> {
        let Some(header) = buffer.get(..HEADER) else { return Ok(None) };
        let (kind, length) =
            (header[0], u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize);
        if kind > 1 || length > MAX_FRAME {
            return Err(format!("a frame of kind {kind} with {length} bytes"));
        }
        if buffer.len() < HEADER + length {
            return Ok(None);
        }
        buffer.advance(HEADER);
        let content = buffer.split_to(length).freeze();
        Ok(Some(if kind == 0 { Self::Text(content) } else { Self::Data(content) }))
    }
}

/// The messages in a body. Ends after an error, and without one where the body is cut off between
/// two.
pub fn read(body: Body) -> impl Stream<Item = Result<Frame, String>> + Send + Unpin {
    let state = (body.into_data_stream(), BytesMut::new(), false);
    Box::pin(stream::unfold(state, |(mut chunks, mut buffer, over)| async move {
        if over {
            return None;
        }
        loop {
            match Frame::decode(&mut buffer) {
                Ok(Some(frame)) => return Some((Ok(frame), (chunks, buffer, false))),
                Ok(None) => {}
                Err(error) => return Some((Err(error), (chunks, buffer, true))),
            }
            match chunks.next().await {
                Some(Ok(chunk)) => buffer.put_slice(&chunk),
                Some(Err(error)) => return Some((Err(error.to_string()), (chunks, buffer, true))),
                None => return None,
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_are_found_however_the_body_is_cut() {
        let sent = [
            Frame::Text("{}".into()),
            Frame::Data(Bytes::new()),
            Frame::Data(vec![7; 3000].into()),
        ];
        let bytes: Vec<u8> = sent.iter().flat_map(|frame| frame.encode().to_vec()).collect();
        for size in [1, 4, 1000, bytes.len()] {
            let chunks: Vec<_> = bytes
                .chunks(size)
                .map(|chunk| Ok::<_, String>(Bytes::copy_from_slice(chunk)))
                .collect();
            let frames = read(Body::from_stream(stream::iter(chunks)));
            let found: Vec<_> = frames.map(Result::unwrap).collect().await;
            assert_eq!(found, sent, "{size}");
        }
        for wrong in [&[2, 0, 0, 0, 0][..], &[0, 255, 255, 255, 255]] {
            let found: Vec<_> = read(Body::from(wrong.to_vec())).collect().await;
            assert!(matches!(found[..], [Err(_)]), "{found:?}");
        }
    }
}
