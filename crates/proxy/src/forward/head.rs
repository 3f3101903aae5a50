//! A request's head: whom it is for, and what a machine is sent of it.

use http::{
    HeaderValue, Method, StatusCode, Uri, Version, header, request,
    uri::{Authority, PathAndQuery},
};

use super::Refusal;
use crate::request_head::RequestHead;

pub(super) const NO_HOST: &str = "the request names no host";

/// The host that a request is for.
pub(super) fn host(parts: &request::Parts) -> Result<Option<Authority>, Refusal> {
    const INVALID: Refusal = Refusal::Bad(StatusCode::BAD_REQUEST, "the request's host is invalid");
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(INVALID);
    }
    if host.is_none() && parts.version == Version::HTTP_11 {
        return Err(Refusal::Bad(StatusCode::BAD_REQUEST, NO_HOST));
    }
    let authority = match (parts.uri.authority(), host) {
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => Authority::try_from(host.as_bytes()).map_err(|_| INVALID)?,
        (None, None) => return Ok(None),
    };
    if authority.as_str().contains('@') {
        return Err(INVALID);
    }
    Ok(Some(authority))
}

/// The head to be sent of one that came, with the host that it is for.
pub(super) fn outgoing(
    parts: request::Parts,
    host: Option<Authority>,
    uses_h2: bool,
) -> Result<RequestHead, Refusal> {
    let request::Parts { method, uri, mut headers, .. } = parts;
    if method == Method::CONNECT {
        let text = "CONNECT is not supported";
        return Err(Refusal::Bad(StatusCode::METHOD_NOT_ALLOWED, text));
    }
    // As most requests come: a path alone, and the host as it is in its field.
    if !uses_h2 && uri.authority().is_none() && uri.path_and_query().is_some() {
        return Ok(RequestHead { method, uri, headers });
    }
    let path = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let mut target = http::uri::Parts::default();
    target.path_and_query = Some(path);
    if uses_h2 {
        headers.remove(header::HOST);
        target.scheme = Some(http::uri::Scheme::HTTP);
        target.authority = Some(host.unwrap_or(Authority::from_static("localhost")));
    } else if let Some(host) = host
        && let Ok(value) = HeaderValue::from_str(host.as_str())
    {
        headers.insert(header::HOST, value);
    }
    match Uri::from_parts(target) {
        Ok(uri) => Ok(RequestHead { method, uri, headers }),
        Err(_) => Err(Refusal::Bad(StatusCode::BAD_REQUEST, "the request's path is invalid")),
    }
}
