//! What a machine is sent of a request's head.

use std::mem;

use http::{HeaderMap, Method, Request, Uri};

use crate::replay_body::{ReplayBody, Source};

/// A request's head, to be sent as often as needed.
pub(crate) struct RequestHead {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
}

impl RequestHead {
    /// The request for one attempt. The head is kept if there may be another.
    pub(crate) fn request(&mut self, may_repeat: bool, source: &Source) -> Request<ReplayBody> {
        let headers = if may_repeat { self.headers.clone() } else { mem::take(&mut self.headers) };
        let body = source.attempt(may_repeat && self.method.is_idempotent());
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers;
        request
    }

    /// Appends the head as HTTP/1.1 has it. None of its parts can hold the end of a line: their
    /// types refuse it.
    pub(crate) fn write_to(&self, buffer: &mut Vec<u8>) {
        buffer.extend_from_slice(self.method.as_str().as_bytes());
        buffer.push(b' ');
        // Where the path is empty this is `/`.
        buffer.extend_from_slice(self.uri.path().as_bytes());
        if let Some(query) = self.uri.query() {
            buffer.push(b'?');
            buffer.extend_from_slice(query.as_bytes());
        }
        buffer.extend_from_slice(b" HTTP/1.1\r\n");
        for (name, value) in &self.headers {
            buffer.extend_from_slice(name.as_str().as_bytes());
            buffer.extend_from_slice(b": ");
            buffer.extend_from_slice(value.as_bytes());
            buffer.extend_from_slice(b"\r\n");
        }
        buffer.extend_from_slice(b"\r\n");
    }
}
