//! Requests that are refused before anybody knows whom they are for.

use std::{fmt::Write as _, time::SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::Connection;
use crate::{HttpOptions, core::Core, forward, headers, request_guard::Guarded};

/// Answers a request that the guard has refused, and ends the connection.
pub(super) async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    core: &Core,
    connection: &Connection,
    options: &HttpOptions,
    mut stream: Guarded<S>,
    why: &'static str,
) {
    let id = forward::request_id(&core.config.region);
    let shown = id.to_str().unwrap_or_default();
    tell(core, connection, &format!("it is malformed: {why}"), Some(shown));
    let text = format!("the request is malformed: {why}\nrequest {shown}\n");
    let mut fields = HeaderMap::new();
    fields.insert(header::CONTENT_TYPE, forward::PLAIN_TEXT);
    fields.insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
    fields.insert(header::DATE, headers::text(&httpdate::fmt_http_date(SystemTime::now())));
    fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers::finish_response(&mut fields, Some(options), Version::HTTP_11, &core.server, &id);
    let answer = head(StatusCode::BAD_REQUEST, &fields) + &text;
    // What the client gets of it does not matter to us.
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

fn head(status: StatusCode, fields: &HeaderMap) -> String {
    let mut head = format!("HTTP/1.1 {status}\r\n");
    for (name, value) in fields {
        let value = String::from_utf8_lossy(value.as_bytes());
        // Writing into a string does not fail.
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head + "\r\n"
}

/// Logs a request that was refused, also in the log of its app where the address that it came to is
/// one app's.
pub(super) fn tell(core: &Core, connection: &Connection, why: &str, request_id: Option<&str>) {
    tracing::debug!(peer = %connection.peer, request = request_id, why, "refused a request");
    if let Some(app) = &connection.app {
        core.refused(app, why, request_id);
    }
}
