//! Words of HTTP.

/// Whether it is a token of RFC 9110: a method, or the name of a header.
pub(super) fn is_token(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(allowed)
}

/// Whether it can be the value of a header.
pub(super) fn is_value(text: &str) -> bool {
    text.bytes().all(|byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f))
}

/// Whether it can be the target of a request: an absolute path, with a query perhaps.
pub(super) fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|byte| (b'!'..=b'~').contains(&byte) && byte != b'#')
}

/// Headers that belong to the connection or say how long a message is: whoever sends the message
/// sets them.
pub(super) fn is_of_the_connection(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "connection",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    NAMES.contains(&name.to_ascii_lowercase().as_str())
}
