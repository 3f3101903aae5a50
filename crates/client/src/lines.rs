//! A body as a stream of lines, each of bounded length. Both kinds of stream the API has are made
//! of lines.

use bytes::{Buf as _, BytesMut};
use futures::{Stream, StreamExt as _, stream};
use reqwest::Response;
use serde::de::DeserializeOwned;

use crate::{Client, ClientError};

/// Longest line that is accepted, bytes: a host with many machines tells what all of them use in
/// one.
const MAX_LINE: usize = 8 << 20;

impl Client {
    /// The lines of a body, without their ends. Ends with the body; a broken connection is an
    /// error.
    pub(crate) fn lines(
        &self,
        request: String,
        response: Response,
    ) -> impl Stream<Item = Result<String, ClientError>> + Send + use<> {
        let client = self.clone();
        let body = response.bytes_stream().boxed();
        stream::try_unfold(
            (body, BytesMut::new(), false),
            move |(mut body, mut buffer, mut ended)| {
                let (client, request) = (client.clone(), request.clone());
                async move {
                    loop {
                        if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                            let line = buffer.split_to(end);
                            buffer.advance(1);
                            return Ok(Some((text(&line), (body, buffer, ended))));
                        }
                        if ended {
                            let rest = buffer.split();
                            return Ok(
                                (!rest.is_empty()).then(|| (text(&rest), (body, buffer, ended)))
                            );
                        }
                        if buffer.len() > MAX_LINE {
                            let reason = format!("a line is longer than {MAX_LINE} bytes");
                            return Err(ClientError::Unreadable { request, reason });
                        }
                        match body.next().await {
                            Some(Ok(chunk)) => buffer.extend_from_slice(&chunk),
                            Some(Err(error)) => return Err(client.failure(&request, &error)),
                            None => ended = true,
                        }
                    }
                }
            },
        )
    }
}

impl Client {
    /// The lines of a body as JSON documents, but for empty ones, which keep the connection alive.
    pub(crate) fn documents<T: DeserializeOwned + Send>(
        &self,
        request: String,
        response: Response,
    ) -> impl Stream<Item = Result<T, ClientError>> + Send + use<T> {
        self.lines(request.clone(), response).filter_map(move |line| {
            let document = match line {
                Ok(line) if line.trim().is_empty() => None,
                Ok(line) => Some(serde_json::from_str(&line).map_err(|error| {
                    ClientError::Unreadable { request: request.clone(), reason: error.to_string() }
                })),
                Err(error) => Some(Err(error)),
            };
            async move { document }
        })
    }
}

fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned()
}
