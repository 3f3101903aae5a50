//! A response in HTTP/1 as a machine writes it (RFC 9112): its head, and where its body ends.

use std::mem::MaybeUninit;

use bytes::{Buf as _, Bytes};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING},
};
use hyper::body::{Frame, SizeHint};

/// Bytes of a head.
pub(super) const MAX_HEAD: usize = 256 << 10;
pub(super) const TOO_LONG: Invalid = Invalid("head, longer than 256 KiB");
/// Fields of a head, and of trailers.
const MAX_FIELDS: usize = 100;
/// Bytes of the line before a chunk, and of trailers.
const MAX_LINE: usize = 16 << 10;

/// What is no response in HTTP/1.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid {0}")]
pub(crate) struct Invalid(&'static str);

impl From<httparse::Error> for Invalid {
    fn from(error: httparse::Error) -> Self {
        Self(match error {
            httparse::Error::HeaderName => "field name",
            httparse::Error::HeaderValue => "field value",
            httparse::Error::NewLine => "line end",
            httparse::Error::Status => "status",
            httparse::Error::Token => "status line",
            httparse::Error::TooManyHeaders => "number of fields, more than 100",
            httparse::Error::Version => "version",
        })
    }
}

/// A head that came as a whole.
#[derive(Debug)]
pub(super) struct Head {
    pub response: Response<Body>,
    /// Whether the machine keeps the connection open for another request.
    pub keeps_open: bool,
}

/// Takes a head off the start of what was received. None: it is not all there yet. Informational
/// ones before it are passed over, as the proxy tells clients itself to go on.
pub(super) fn take_head(received: &mut Bytes, method: &Method) -> Result<Option<Head>, Invalid> {
    loop {
        let Some(head) = take_any_head(received, method)? else { return Ok(None) };
        let status = head.response.status();
        if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Some(head));
        }
    }
}

fn take_any_head(received: &mut Bytes, method: &Method) -> Result<Option<Head>, Invalid> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let parser = httparse::ParserConfig::default();
    let parse = parser.parse_response_with_uninit_headers(&mut parsed, received, &mut fields);
    let httparse::Status::Complete(length) = parse? else {
        return if received.len() > MAX_HEAD { Err(TOO_LONG) } else { Ok(None) };
    };
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let code = parsed.code.unwrap_or_default();
    let status = StatusCode::from_u16(code).map_err(|_| Invalid("status"))?;
    let mut headers = header_map(received, parsed.headers)?;
    let body = body(method, status, version, &headers)?;
    if headers.contains_key(TRANSFER_ENCODING) {
        // It says nothing then, and must not be passed on (RFC 9112, 6.3).
        headers.remove(CONTENT_LENGTH);
    }
    let keeps_open = keeps_open(version, &headers)
        && !matches!(body, Body::UntilClose)
        && status != StatusCode::SWITCHING_PROTOCOLS;
    received.advance(length);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(Some(Head { response, keeps_open }))
}

/// Room for what the proxy adds to the answer.
const ADDED: usize = 4;

/// Fields whose values are parts of what was received.
fn header_map(received: &Bytes, fields: &[httparse::Header<'_>]) -> Result<HeaderMap, Invalid> {
    let mut headers = HeaderMap::with_capacity(fields.len() + ADDED);
    for field in fields {
        let name =
            HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Invalid("field name"))?;
        let value =
            if field.value.is_empty() { Bytes::new() } else { received.slice_ref(field.value) };
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| Invalid("field value"))?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// Words of a field that is a list, in all its lines.
fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
}

fn keeps_open(version: Version, headers: &HeaderMap) -> bool {
    let says = |wanted: &[u8]| words(headers, &CONNECTION).any(|w| w.eq_ignore_ascii_case(wanted));
    !says(b"close") && (version == Version::HTTP_11 || says(b"keep-alive"))
}

/// Where the body of a response ends (RFC 9112, 6.3).
fn body(
    method: &Method,
    status: StatusCode,
    version: Version,
    headers: &HeaderMap,
) -> Result<Body, Invalid> {
    let has_none = status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || method == Method::HEAD;
    if has_none {
        return Ok(Body::Over);
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        if version == Version::HTTP_10 {
            return Err(Invalid("transfer-encoding in HTTP/1.0"));
        }
        let last = words(headers, &TRANSFER_ENCODING).last();
        let is_chunked = last.is_some_and(|word| word.eq_ignore_ascii_case(b"chunked"));
        return Ok(if is_chunked { Body::ChunkSize } else { Body::UntilClose });
    }
    let mut length = None;
    for word in words(headers, &CONTENT_LENGTH) {
        let given = std::str::from_utf8(word).ok().filter(|text| !text.starts_with('+'));
        let given: Option<u64> = given.and_then(|text| text.parse().ok());
        match (given, length) {
            (None, _) => return Err(Invalid("content-length")),
            (Some(given), Some(length)) if given != length => {
                return Err(Invalid("content-length, given twice"));
            }
            _ => length = given,
        }
    }
    Ok(match length {
        Some(0) => Body::Over,
        Some(length) => Body::Length(length),
        None => Body::UntilClose,
    })
}

/// A body, as far as it has not come yet.
#[derive(Debug, PartialEq)]
pub(crate) enum Body {
    /// Bytes to come, and nothing after them.
    Length(u64),
    /// It ends when the machine closes the connection.
    UntilClose,
    /// The line before a chunk is next.
    ChunkSize,
    /// Bytes of a chunk to come.
    Chunk(u64),
    /// The end of a chunk's last line is next.
    ChunkEnd,
    /// Fields after the last chunk are next, or the empty line that ends all.
    Trailers,
    /// These were received, and are to be given.
    Trailing(Box<HeaderMap>),
    Over,
}

impl Body {
    pub(crate) fn is_over(&self) -> bool {
        *self == Self::Over
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Length(length) => SizeHint::with_exact(*length),
            Self::Over => SizeHint::with_exact(0),
            _ => SizeHint::default(),
        }
    }

    /// Takes the next part off what was received. None: more has to come, or it is over.
    pub(super) fn take_frame(
        &mut self,
        received: &mut Bytes,
    ) -> Result<Option<Frame<Bytes>>, Invalid> {
        self.follow(received)?;
        let available = received.len() as u64;
        let taken = match self {
            Self::Length(left) | Self::Chunk(left) => (*left).min(available),
            Self::UntilClose => available,
            Self::Trailing(trailers) => {
                let trailers = std::mem::take(&mut **trailers);
                *self = Self::Over;
                return Ok(Some(Frame::trailers(trailers)));
            }
            _ => 0,
        };
        if taken == 0 {
            return Ok(None);
        }
        let data = received.split_to(taken as usize);
        match self {
            Self::Length(left) if *left == taken => *self = Self::Over,
            Self::Chunk(left) if *left == taken => {
                *self = Self::ChunkEnd;
                // The end is often there already: whoever gets the data is told so with it. What
                // is wrong about it is told when more is asked for.
                let _ = self.follow(received);
            }
            Self::Length(left) | Self::Chunk(left) => *left -= taken,
            _ => {}
        }
        Ok(Some(Frame::data(data)))
    }

    /// Reads what is between chunks, and after them, as far as it was received.
    fn follow(&mut self, received: &mut Bytes) -> Result<(), Invalid> {
        loop {
            match self {
                // The parser takes a line without digits for 0, which would end the body.
                Self::ChunkSize
                    if received.first().is_some_and(|byte| !byte.is_ascii_hexdigit()) =>
                {
                    return Err(Invalid("chunk size"));
                }
                Self::ChunkSize => match httparse::parse_chunk_size(received) {
                    Ok(httparse::Status::Complete((length, size))) => {
                        received.advance(length);
                        *self = if size == 0 { Self::Trailers } else { Self::Chunk(size) };
                    }
                    Ok(httparse::Status::Partial) => return may_grow(received),
                    Err(_) => return Err(Invalid("chunk size")),
                },
                Self::ChunkEnd => {
                    if received.len() < 2 {
                        return Ok(());
                    }
                    if !received.starts_with(b"\r\n") {
                        return Err(Invalid("end of a chunk"));
                    }
                    received.advance(2);
                    *self = Self::ChunkSize;
                }
                Self::Trailers => {
                    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
                    let parsed = httparse::parse_headers(received, &mut fields)?;
                    let httparse::Status::Complete((length, fields)) = parsed else {
                        return may_grow(received);
                    };
                    let trailers = header_map(received, fields)?;
                    // The parser takes a bare LF for the end of a line.
                    let mut lines = received[..length].split_inclusive(|byte| *byte == b'\n');
                    if lines.any(|line| !line.ends_with(b"\r\n")) {
                        return Err(Invalid("line end"));
                    }
                    received.advance(length);
                    *self = match trailers.is_empty() {
                        true => Self::Over,
                        false => Self::Trailing(Box::new(trailers)),
                    };
                }
                _ => return Ok(()),
            }
        }
    }
}

fn may_grow(received: &Bytes) -> Result<(), Invalid> {
    if received.len() > MAX_LINE { Err(Invalid("line, longer than 16 KiB")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What comes of a response that arrives in these pieces: status, body, trailers, whether the
    /// connection stays open, and what is left. None: more has to come.
    #[derive(Debug, PartialEq)]
    struct Read {
        status: u16,
        body: Vec<u8>,
        trailers: Vec<String>,
        keeps_open: bool,
        left: Vec<u8>,
    }

    fn read(method: &Method, pieces: &[&[u8]]) -> Result<Option<Read>, Invalid> {
        let mut received = Bytes::new();
        let mut head: Option<Head> = None;
        let (mut bytes, mut trailers) = (Vec::new(), Vec::new());
        for piece in pieces {
            received = [&received[..], piece].concat().into();
            if head.is_none() {
                head = take_head(&mut received, method)?;
            }
            let Some(head) = &mut head else { continue };
            while let Some(frame) = head.response.body_mut().take_frame(&mut received)? {
                match frame.into_data() {
                    Ok(data) => bytes.extend_from_slice(&data),
                    Err(frame) => {
                        let fields = frame.into_trailers().unwrap();
                        trailers.extend(fields.keys().map(|name| name.to_string()));
                    }
                }
            }
        }
        let Some(head) = head else { return Ok(None) };
        if !head.response.body().is_over() && *head.response.body() != Body::UntilClose {
            return Ok(None);
        }
        Ok(Some(Read {
            status: head.response.status().as_u16(),
            body: bytes,
            trailers,
            keeps_open: head.keeps_open,
            left: received.to_vec(),
        }))
    }

    fn get(response: &str) -> Result<Option<Read>, Invalid> {
        read(&Method::GET, &[response.as_bytes()])
    }

    fn whole(response: &str) -> Read {
        get(response).unwrap().unwrap()
    }

    #[test]
    fn a_body_ends_where_its_head_says() {
        for (response, body, keeps_open) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", "abc", true),
            ("HTTP/1.1 200\r\nContent-Length: 3, 3\r\n\r\nabc", "abc", true),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: x, Close\r\n\r\nabc",
                "abc",
                false,
            ),
            ("HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nabc", "abc", false),
            (
                "HTTP/1.0 200 OK\r\ncontent-length: 3\r\nconnection: Keep-Alive\r\n\r\nabc",
                "abc",
                true,
            ),
            ("HTTP/1.1 200 OK\r\n\r\nabc", "abc", false),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nabc", "abc", false),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\ncontent-length: 9\r\n\r\n\
                 2;x=y\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
                "abc",
                true,
            ),
            ("HTTP/1.1 204 No Content\r\ncontent-length: 3\r\n\r\n", "", true),
            ("HTTP/1.1 304 Not Modified\r\ncontent-length: 3\r\n\r\n", "", true),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\na: b\r\n\r\nHTTP/1.1 204 x\r\n\r\n",
                "",
                true,
            ),
        ] {
            let read = whole(response);
            assert_eq!(read.body, body.as_bytes(), "{response}");
            assert_eq!(read.keeps_open, keeps_open, "{response}");
            assert!(read.left.is_empty(), "{response}");
        }
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n";
        let read = read(&Method::HEAD, &[head.as_bytes()]).unwrap().unwrap();
        assert!(read.body.is_empty() && read.keeps_open);
        let switched = whole("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\nabc");
        assert_eq!((switched.status, switched.keeps_open), (101, false));
    }

    #[test]
    fn what_comes_after_a_response_is_left() {
        let read = whole("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\naHTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(read.left, b"HTTP/1.1 200 OK\r\n\r\n");
    }

    #[test]
    fn an_encoding_takes_the_length_out_of_what_is_passed_on() {
        let response = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n";
        let head = take_head(&mut response.into(), &Method::GET).unwrap().unwrap();
        assert!(!head.response.headers().contains_key(CONTENT_LENGTH));
    }

    #[test]
    fn trailers_come_after_the_body() {
        let read = whole(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
             1\r\na\r\n0\r\nA: b\r\nc: d\r\n\r\n",
        );
        assert_eq!((read.body.as_slice(), read.keeps_open), (b"a".as_slice(), true));
        assert_eq!(read.trailers, ["a", "c"]);
    }

    #[test]
    fn what_is_no_response_is_refused() {
        let long = "x".repeat(MAX_LINE + 1);
        let fields = "a: b\r\n".repeat(MAX_FIELDS + 1);
        let head = format!("HTTP/1.1 200 OK\r\na: {}", "x".repeat(MAX_HEAD));
        let chunk =
            |text: &str| format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{text}");
        for response in [
            "SSH-2.0-OpenSSH_9.2\r\n",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
            "HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\na",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\na",
            "HTTP/1.1 200 OK\r\ncontent-length: \r\n\r\na",
            "HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nname : x\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            &format!("HTTP/1.1 200 OK\r\n{fields}\r\n"),
            &head,
            &chunk("x\r\n"),
            &chunk("\r\n\r\n"),
            &chunk(";x\r\n\r\n"),
            &chunk("0\r\n\n"),
            &chunk("0\r\na: b\n\r\n"),
            &chunk("11111111111111111\r\n"),
            &chunk("1\r\nab\r\n"),
            &chunk(&format!("1;{long}")),
            &chunk(&format!("0\r\na: {long}")),
        ] {
            assert!(get(response).is_err(), "{:?}: {response:.80}", get(response));
        }
    }

    #[test]
    fn what_is_incomplete_is_waited_for() {
        let response = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
             1\r\na\r\n0\r\na: b\r\n\r\n";
        for end in 0..response.len() {
            assert_eq!(get(&response[..end]), Ok(None), "{}", &response[..end]);
        }
        assert!(get(response).unwrap().is_some());
    }

    proptest! {
        /// However a response is cut into pieces, the same comes of it, and nothing panics over
        /// what is none.
        #[test]
        fn pieces_do_not_matter(
            parts in prop::collection::vec(
                prop_oneof![
                    Just("HTTP/1.1 200 OK\r\n"), Just("HTTP/1.0 404 x\r\n"), Just("\r\n"),
                    Just("transfer-encoding: chunked\r\n"), Just("content-length: 4\r\n"),
                    Just("connection: close\r\n"), Just("4\r\nabcd\r\n"), Just("0\r\n"),
                    Just("abcd"), Just("x: y\r\n"), Just("\n"), Just("ffffffffffffffff\r\n"),
                ],
                0..12,
            ),
            cuts in prop::collection::vec(0usize..100, 0..6),
        ) {
            let response = ["HTTP/1.1 200 OK\r\n", &parts.concat()].concat().into_bytes();
            let end = response.len();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(end)).collect();
            cuts.extend([0, end]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &response[cut[0]..cut[1]]).collect();
            let at_once = read(&Method::GET, &[&response]);
            let in_pieces = read(&Method::GET, &pieces);
            prop_assert_eq!(at_once.is_ok(), in_pieces.is_ok());
            if at_once.is_ok() {
                prop_assert_eq!(at_once, in_pieces);
            }
        }
    }
}
