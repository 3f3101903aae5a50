//! Refuses HTTP/1 requests that another implementation may read in another way than ours: what
//! request smuggling is made of. Requests are never passed on as bytes, so this is a second line.
//!
//! Watches the bytes on their way to the HTTP implementation, follows where heads and bodies end,
//! and refuses lines that end in a bare LF, folded fields, repeated lengths, a length beside an
//! encoding, encodings other than `chunked`. Of a head that is refused nothing more is read, so
//! that whoever has the connection answers 400 and closes it. A body is spoilt, so that its request
//! ends.

use std::{
    future::poll_fn,
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::Connection;

/// As much of a line as matters.
const LINE: usize = 256;
/// What no implementation takes for a head.
const SPOILT: &[u8] = b"\0\r\n\r\n";

/// Why a line is refused.
const BARE_LF: &str = "a line does not end in CR LF";
const FOLDED: &str = "a header field goes on in another line";
const LENGTH: &str = "content-length is invalid, repeated, or beside transfer-encoding";
const ENCODING: &str = "transfer-encoding is not chunked, repeated, or beside content-length";
const CHUNK: &str = "the size of a chunk is invalid";

/// Where in a connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a request line or before it.
    RequestLine,
    Field,
    /// Bytes of a body to come.
    Body(u64),
    ChunkSize,
    /// Bytes of a chunk to come, and its CR LF.
    Chunk(u64),
    Trailer,
    /// Not HTTP/1, or an upgrade: the rest is passed on unseen.
    Off,
    /// A head was refused, for this reason.
    RefusedHead(&'static str),
    /// A body was refused.
    RefusedBody,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct RequestGuard {
    state: State,
    line: Vec<u8>,
    is_long: bool,
    length: Option<u64>,
    is_chunked: bool,
    is_upgrade: bool,
}

impl RequestGuard {
    pub(crate) fn new() -> Self {
        Self {
            state: State::RequestLine,
            line: Vec::new(),
            is_long: false,
            length: None,
            is_chunked: false,
            is_upgrade: false,
        }
    }

    pub(crate) fn has_refused(&self) -> bool {
        matches!(self.state, State::RefusedHead(_) | State::RefusedBody)
    }

    /// Why the head that is read was refused, if it was.
    fn refused_head(&self) -> Option<&'static str> {
        match self.state {
            State::RefusedHead(why) => Some(why),
            _ => None,
        }
    }

    /// Whether all that came are whole requests.
    pub(crate) fn is_between_requests(&self) -> bool {
        self.state == State::RequestLine && self.line.is_empty()
    }

    /// Looks at what came, and spoils a body from where it is refused. Gives how much may be read:
    /// all, or of a head that is refused what is before the end of the line.
    pub(crate) fn inspect(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            match self.state {
                State::Off | State::RefusedHead(_) | State::RefusedBody => break,
                State::Body(left) | State::Chunk(left) => {
                    let step = left.min((bytes.len() - at) as u64);
                    at += step as usize;
                    self.state = match (self.state, left - step) {
                        (State::Body(_), 0) => State::RequestLine,
                        (_, 0) => State::ChunkSize,
                        (State::Body(_), left) => State::Body(left),
                        (_, left) => State::Chunk(left),
                    };
                }
                _ => {
                    let rest = &bytes[at..];
                    let end = rest.iter().position(|byte| *byte == b'\n');
                    let part = &rest[..end.unwrap_or(rest.len())];
                    let room = LINE - self.line.len();
                    self.is_long |= part.len() > room;
                    self.line.extend_from_slice(&part[..part.len().min(room)]);
                    // Of a long line the end matters for its CR alone.
                    if self.is_long
                        && let (Some(last), Some(kept)) = (part.last(), self.line.last_mut())
                    {
                        *kept = *last;
                    }
                    at += part.len();
                    if end.is_some() {
                        if let Err(why) = self.end_line() {
                            return self.refuse(bytes, at, why);
                        }
                        self.is_long = false;
                        at += 1;
                    }
                }
            }
        }
        bytes.len()
    }

    /// Refuses what has a line that ends there.
    #[cold]
    fn refuse(&mut self, bytes: &mut [u8], at: usize, why: &'static str) -> usize {
        if !matches!(self.state, State::RequestLine | State::Field) {
            self.state = State::RefusedBody;
            bytes[at..].fill(0);
            return bytes.len();
        }
        // Whoever reads has to see that something began: else it is the end of the connection.
        let is_blank = self.state == State::RequestLine && self.line.is_empty();
        self.state = State::RefusedHead(why);
        if is_blank {
            bytes[at] = b'X';
        }
        at + usize::from(is_blank)
    }

    /// Whether the line may stand. Then its memory is used for the next one.
    fn end_line(&mut self) -> Result<(), &'static str> {
        let mut line = mem::take(&mut self.line);
        let may_stand = match line.strip_suffix(b"\r") {
            Some(line) => self.may_stand(line),
            None => Err(BARE_LF),
        };
        if may_stand.is_ok() {
            line.clear();
        }
        self.line = line;
        may_stand
    }

    fn may_stand(&mut self, line: &[u8]) -> Result<(), &'static str> {
        match self.state {
            State::RequestLine if line.is_empty() => {}
            State::RequestLine => {
                self.length = None;
                self.is_chunked = false;
                self.is_upgrade = line.starts_with(b"CONNECT ");
                let is_h2 = line == b"PRI * HTTP/2.0";
                self.state = if is_h2 { State::Off } else { State::Field };
            }
            State::Field if line.is_empty() => {
                self.state = match (self.is_upgrade, self.is_chunked, self.length) {
                    (true, _, _) => State::Off,
                    (_, true, _) => State::ChunkSize,
                    (_, _, None | Some(0)) => State::RequestLine,
                    (_, _, Some(length)) => State::Body(length),
                };
            }
            State::Field => return self.field(line),
            State::ChunkSize => {
                let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
                let size = std::str::from_utf8(digits.trim_ascii_end())
                    .ok()
                    .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
                    .and_then(|digits| u64::from_str_radix(digits, 16).ok());
                self.state = match size {
                    None => return Err(CHUNK),
                    Some(0) => State::Trailer,
                    Some(size) => match size.checked_add(2) {
                        Some(size) => State::Chunk(size),
                        None => return Err(CHUNK),
                    },
                };
            }
            State::Trailer if is_folded(line) => return Err(FOLDED),
            State::Trailer if line.is_empty() => self.state = State::RequestLine,
            // No line ends there.
            _ => {}
        }
        Ok(())
    }

    fn field(&mut self, line: &[u8]) -> Result<(), &'static str> {
        if is_folded(line) {
            return Err(FOLDED);
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            // A name that long is none of those below; without a colon it is refused later.
            return Ok(());
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.trim_ascii().eq_ignore_ascii_case(b"content-length") {
            let length = std::str::from_utf8(value)
                .ok()
                .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|text| text.parse().ok());
            if self.is_long || self.length.is_some() || self.is_chunked || length.is_none() {
                return Err(LENGTH);
            }
            self.length = length;
        } else if name.trim_ascii().eq_ignore_ascii_case(b"transfer-encoding") {
            if self.length.is_some() || self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(ENCODING);
            }
            self.is_chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.is_upgrade = true;
        }
        Ok(())
    }
}

fn is_folded(line: &[u8]) -> bool {
    line.starts_with(b" ") || line.starts_with(b"\t")
}

/// What a client with HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Versions of HTTP that can be told apart by the first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoken {
    Http1,
    Http2,
}

/// A stream whose requests are looked at.
pub(crate) struct Guarded<S> {
    stream: S,
    guard: RequestGuard,
    is_told: bool,
    /// What was looked at already, and is read first.
    begin: Vec<u8>,
    /// Whether a request came over it: then it is HTTP/1.
    is_used: bool,
    connection: Arc<Connection>,
}

impl<S> Guarded<S> {
    pub(crate) fn new(stream: S, connection: Arc<Connection>) -> Self {
        let (guard, begin) = (RequestGuard::new(), Vec::new());
        Self { stream, guard, is_told: false, begin, is_used: false, connection }
    }

    /// Why the request was refused that came last, where nobody has answered it.
    pub(crate) fn unanswered(&self) -> Option<&'static str> {
        self.guard.refused_head().filter(|_| !self.is_told)
    }
}

impl<S: AsyncRead + Unpin> Guarded<S> {
    /// Waits for the first bytes of a request. None: none will come. Cancelling it loses nothing.
    pub(crate) async fn spoken(&mut self) -> io::Result<Option<Spoken>> {
        poll_fn(|context| self.poll_spoken(context)).await
    }

    fn poll_spoken(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Spoken>>> {
        loop {
            let known = self.begin.len();
            if known > 0 && (self.is_used || !PREFACE.starts_with(&self.begin)) {
                self.is_used = true;
                return Poll::Ready(Ok(Some(Spoken::Http1)));
            }
            if known == PREFACE.len() {
                return Poll::Ready(Ok(Some(Spoken::Http2)));
            }
            let mut bytes = [0; PREFACE.len()];
            let mut buffer = ReadBuf::new(bytes.get_mut(known..).unwrap_or_default());
            ready!(self.poll_more(context, &mut buffer))?;
            if self.guard.has_refused() {
                self.is_used = true;
            } else if buffer.filled().is_empty() {
                // Part of the preface alone is no request either.
                return Poll::Ready(Ok(None));
            }
            self.begin.extend_from_slice(buffer.filled());
        }
    }

    fn poll_more(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let kept = self.guard.inspect(&mut buffer.filled_mut()[before..]);
        buffer.set_filled(before + kept);
        self.connection.is_between_requests(self.guard.is_between_requests());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.begin.is_empty() {
            let begin = this.begin.len().min(buffer.remaining());
            buffer.put_slice(&this.begin[..begin]);
            this.begin.drain(..begin);
            if this.begin.is_empty() {
                this.begin = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        if !this.guard.has_refused() {
            let before = buffer.filled().len();
            ready!(this.poll_more(context, buffer))?;
            if !this.guard.has_refused() || buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Ready(this.end_refused(buffer))
    }
}

impl<S> Guarded<S> {
    /// What comes after all that may be read.
    #[cold]
    fn end_refused(&mut self, buffer: &mut ReadBuf<'_>) -> io::Result<()> {
        if self.is_told {
            return Ok(());
        }
        // Where all else is answered, so is this, by whoever is told of an error.
        if self.guard.refused_head().is_some() && self.connection.has_sent_all() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // The end of a head that can't be taken for one, to which the implementation knows an
        // answer; then nothing any more.
        self.is_told = true;
        let told = &SPOILT[..SPOILT.len().min(buffer.remaining())];
        buffer.put_slice(told);
        Ok(())
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refuses(text: &str, piece: usize) -> bool {
        let mut guard = RequestGuard::new();
        for part in text.as_bytes().chunks(piece) {
            guard.inspect(&mut part.to_vec());
        }
        guard.has_refused()
    }

    const GOOD: &[&str] = &[
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n\n\n \n\tGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3;x=y\r\n\n\n\n\r\n0\r\nA: b\r\n\r\n\
            POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\na",
        "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n\n\n\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\n\n",
    ];
    const BAD: &[&str] = &[
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
        "GET / HTTP/1.1\r\nA: b\r\n\tc\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\naGET / HTTP/1.1\n\n",
    ];

    #[test]
    fn requests_of_one_meaning_pass_and_others_do_not_however_they_are_cut() {
        for piece in [1, 2, 3, 7, 1000] {
            for text in GOOD {
                assert!(!refuses(text, piece), "{text:?} in pieces of {piece}");
            }
            for text in BAD {
                assert!(refuses(text, piece), "{text:?} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn of_a_head_that_is_refused_nothing_is_read_beyond_the_line() {
        let kept = |text: &str| {
            let (mut guard, mut bytes) = (RequestGuard::new(), text.as_bytes().to_vec());
            let kept = guard.inspect(&mut bytes);
            bytes.truncate(kept);
            (String::from_utf8(bytes).unwrap(), guard.refused_head())
        };
        for (text, expected, why) in [
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", "GET / HTTP/1.1", BARE_LF),
            ("\r\n\nGET / HTTP/1.1\r\n\r\n", "\r\nX", BARE_LF),
            ("GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", "GET / HTTP/1.1\r\nA: b\r\n c\r", FOLDED),
            (
                "GET / HTTP/1.1\r\nContent-Length: x\r\n",
                "GET / HTTP/1.1\r\nContent-Length: x\r",
                LENGTH,
            ),
        ] {
            assert_eq!(kept(text), (expected.to_owned(), Some(why)));
        }
        // The request itself goes on.
        let text = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n";
        let (read, head) = kept(text);
        assert!(read.len() == text.len() && read.ends_with("-3\r\0\0\0\0\0\0") && head.is_none());
    }

    #[test]
    fn long_lines_pass() {
        let long = "x".repeat(3 * LINE);
        let text = format!("GET /{long} HTTP/1.1\r\nA: {long}\r\n\r\n");
        assert!(!refuses(&text, 100) && !refuses(&text, 10_000));
    }

    proptest! {
        #[test]
        fn any_bytes_mean_the_same_however_they_are_cut(
            bytes in prop::collection::vec(prop::sample::select(
                b"\r\n :0125abGPT/;content-length".to_vec()), 0..200),
            piece in 1usize..20,
        ) {
            let text = String::from_utf8(bytes).unwrap();
            prop_assert_eq!(refuses(&text, piece), refuses(&text, 1000));
        }
    }
}
