//! Reads requests. Pure.

use httparse::{EMPTY_HEADER, Error, Request, Status};

/// Headers of a request at most.
const MOST_HEADERS: usize = 32;

/// Why a request is not taken.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// HTTP status.
    pub status: u16,
    /// For the program's author.
    pub error: String,
}

fn refuse<T>(status: u16, error: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { status, error: error.into() })
}

/// What a request asks for: a hold of so many seconds, or none any more. `None` when it is not
/// complete; of `limit` bytes it has to be.
pub fn parse(head: &[u8], limit: usize) -> Option<Result<Option<u64>, Refused>> {
    let mut headers = [EMPTY_HEADER; MOST_HEADERS];
    let mut request = Request::new(&mut headers);
    match request.parse(head) {
        Ok(Status::Complete(_)) => Some(read(&request)),
        Ok(Status::Partial) if head.len() < limit => None,
        Ok(Status::Partial) | Err(Error::TooManyHeaders) => {
            Some(refuse(431, "the request's headers are too large"))
        }
        Err(error) => Some(refuse(400, format!("invalid request: {error}"))),
    }
}

fn read(request: &Request<'_, '_>) -> Result<Option<u64>, Refused> {
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if path != "/hold" {
        return refuse(404, "not found: this socket serves PUT and DELETE of /hold");
    }
    let has_body = request.headers.iter().any(|header| {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        is("transfer-encoding") || is("content-length") && header.value.trim_ascii() != b"0"
    });
    match method {
        "PUT" | "DELETE" if has_body => refuse(413, "the request takes no body"),
        "PUT" => ttl(query).map(Some),
        "DELETE" if query.is_empty() => Ok(None),
        "DELETE" => refuse(400, "invalid query: DELETE takes none"),
        _ => refuse(405, "method not allowed: use PUT or DELETE"),
    }
}

fn ttl(query: &str) -> Result<u64, Refused> {
    let usage = "use ttl=SECONDS";
    let Some(text) = query.strip_prefix("ttl=").filter(|text| !text.contains('&')) else {
        return refuse(400, format!("invalid query: {usage}, and nothing else"));
    };
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(seconds) if is_number => Ok(seconds),
        _ => refuse(400, format!("invalid ttl: {usage}, a whole number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(head: &str) -> Result<Option<u64>, u16> {
        parse(head.as_bytes(), 512).unwrap().map_err(|refused| refused.status)
    }

    #[test]
    fn only_holds_are_served_and_everything_else_is_refused_by_its_status() {
        for (line, expected) in [
            ("PUT /hold?ttl=300", Ok(Some(300))),
            ("DELETE /hold", Ok(None)),
            ("GET /hold", Err(405)),
            ("POST /hold?ttl=1", Err(405)),
            ("GET /", Err(404)),
            ("PUT /hold/?ttl=1", Err(404)),
            ("PUT /v1/apps/a/machines/m/suspend", Err(404)),
            ("PUT http://flaps/hold?ttl=1", Err(404)),
            ("PUT /hold", Err(400)),
            ("PUT /hold?ttl=", Err(400)),
            ("PUT /hold?ttl=+3", Err(400)),
            ("PUT /hold?ttl=3s", Err(400)),
            ("PUT /hold?ttl=3&ttl=4", Err(400)),
            ("PUT /hold?ttl=99999999999999999999999", Err(400)),
            ("DELETE /hold?ttl=3", Err(400)),
        ] {
            assert_eq!(status(&format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n")), expected, "{line}");
        }
    }

    #[test]
    fn a_body_is_refused_and_an_empty_one_is_none() {
        let put = |header: &str| status(&format!("PUT /hold?ttl=1 HTTP/1.1\r\n{header}\r\n\r\n"));
        assert_eq!(put("Content-Length: 0"), Ok(Some(1)));
        assert_eq!(put("content-length: 1"), Err(413));
        assert_eq!(put("Transfer-Encoding: chunked"), Err(413));
    }

    #[test]
    fn what_is_no_request_is_refused_and_a_part_of_one_is_waited_for() {
        assert_eq!(parse(b"PUT /hold?ttl=1 HTTP/1.1\r\nHost: x\r\n", 512), None);
        assert_eq!(status("\u{1}\r\n\r\n"), Err(400));
        assert_eq!(status("PUT /hold HTTP/1.1\r\nno header\r\n\r\n"), Err(400));
        let long = format!("PUT /{}", "x".repeat(600));
        assert_eq!(status(&long), Err(431));
        let many = "A: b\r\n".repeat(MOST_HEADERS + 1);
        let many = parse(format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes(), 4096).unwrap();
        assert_eq!(many.map_err(|refused| refused.status), Err(431));
    }
}
