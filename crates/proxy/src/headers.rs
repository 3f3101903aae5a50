//! Header fields that the proxy takes out, adds and understands (runtime-semantics §3.7).

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Version,
    header::{
        CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SERVER, TE, TRAILER,
        TRANSFER_ENCODING, UPGRADE, VIA,
    },
};

use crate::{HeaderChange, HttpOptions, PrivateClient, select::Preference};

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("fly-request-id");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const CLIENT_IP: HeaderName = HeaderName::from_static("fly-client-ip");
const SOURCE: HeaderName = HeaderName::from_static("fly-src");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("fly-forwarded-port");
const REGION: HeaderName = HeaderName::from_static("fly-region");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_FORWARDED_SSL: HeaderName = HeaderName::from_static("x-forwarded-ssl");
const PREFERRED_UNAVAILABLE: HeaderName =
    HeaderName::from_static("fly-preferred-instance-unavailable");
const PREFER_REGION: &str = "fly-prefer-region";
const FORCE_REGION: &str = "fly-force-region";
const PREFER_INSTANCE: &str = "fly-prefer-instance-id";
const FORCE_INSTANCE: &str = "fly-force-instance-id";

/// What only a proxy says: of a machine that asks, and of a request that it sent again.
const FROM_PROXIES: [&str; 4] =
    ["fly-src", "fly-replay-src", "fly-replay-failed", "fly-replay-cache-status"];

const VIA_1: HeaderValue = HeaderValue::from_static("1.1 caddis");
const VIA_2: HeaderValue = HeaderValue::from_static("2 caddis");

/// Whether a field is one of those that [`strip_hop_by_hop`] looks at.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
            | "te"
            | "trailer"
    )
}

/// Takes out what concerns one connection only, and what `connection` names. Whether the client
/// takes trailers is kept.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // One pass instead of a lookup for each: most messages have none.
    if !headers.keys().any(is_hop_by_hop) {
        return;
    }
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            // Naming one of these would change what the message means.
            .filter(|name| *name != http::header::HOST && *name != http::header::CONTENT_LENGTH)
            .collect();
        for name in named {
            if name != TE {
                headers.remove(name);
            }
        }
        headers.remove(CONNECTION);
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TRANSFER_ENCODING,
        UPGRADE,
        HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
    let takes_trailers = headers.get_all(TE).iter().any(|value| {
        value.to_str().is_ok_and(|text| {
            text.split(',').any(|one| one.trim().eq_ignore_ascii_case("trailers"))
        })
    });
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    } else {
        headers.remove(TE);
        headers.remove(TRAILER);
    }
}

/// The protocol that `upgrade` and `connection` ask for, if both do.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asks = headers.get_all(CONNECTION).iter().any(|value| {
        value
            .to_str()
            .is_ok_and(|text| text.split(',').any(|one| one.trim().eq_ignore_ascii_case("upgrade")))
    });
    if asks { headers.get(UPGRADE).cloned() } else { None }
}

/// Where the requests of a connection come from, as machines are told: made once for all of them.
pub(crate) struct Origin {
    client_ip: HeaderValue,
    /// The client and we, as `x-forwarded-for` lists them.
    hops: HeaderValue,
    port: HeaderValue,
    /// The machine that asks.
    source: Option<HeaderValue>,
}

impl Origin {
    /// `port` is the external one, `client` the machine in whose private network the connection was
    /// made.
    pub(crate) fn new(
        peer: IpAddr,
        local: IpAddr,
        port: u16,
        client: Option<&PrivateClient>,
    ) -> Self {
        let source =
            client.map(|client| text(&format!("instance={};app={}", client.machine, client.app)));
        let (peer, local) = (peer.to_canonical(), local.to_canonical());
        Self {
            client_ip: text(&peer.to_string()),
            hops: text(&format!("{peer}, {local}")),
            port: HeaderValue::from(port),
            source,
        }
    }

    /// `x-forwarded-for` after what the client says of it.
    fn chain(&self, headers: &HeaderMap) -> HeaderValue {
        let mut chain = Vec::new();
        for value in headers.get_all(&X_FORWARDED_FOR) {
            if value.to_str().is_ok() {
                chain.extend_from_slice(value.as_bytes());
                chain.extend_from_slice(b", ");
            }
        }
        if chain.is_empty() {
            return self.hops.clone();
        }
        chain.extend_from_slice(self.hops.as_bytes());
        HeaderValue::try_from(chain).unwrap_or_else(|_| self.hops.clone())
    }
}

/// Fields that are added to a request at most.
const ADDED: usize = 10;

/// Tells the machine where a request came from. What a client says of itself is not believed,
/// apart from `x-forwarded-port` and the begin of `x-forwarded-for`.
pub(crate) fn add_origin(
    headers: &mut HeaderMap,
    origin: &Origin,
    is_tls: bool,
    version: Version,
    region: &HeaderValue,
    request_id: &HeaderValue,
) {
    headers.reserve(ADDED);
    headers.insert(X_FORWARDED_FOR, origin.chain(headers));
    headers.insert(CLIENT_IP, origin.client_ip.clone());
    if let Some(source) = &origin.source {
        headers.insert(SOURCE, source.clone());
    }
    headers.entry(X_FORWARDED_PORT).or_insert_with(|| origin.port.clone());
    headers.insert(FORWARDED_PORT, origin.port.clone());
    headers.insert(REGION, region.clone());
    headers.insert(REQUEST_ID, request_id.clone());
    let (protocol, ssl) = if is_tls { ("https", "on") } else { ("http", "off") };
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(protocol));
    headers.insert(X_FORWARDED_SSL, HeaderValue::from_static(ssl));
    headers.append(VIA, via(version));
}

/// Tells a machine which one was asked for that could not take the request, if that is another.
pub(crate) fn set_unavailable(headers: &mut HeaderMap, machine: Option<&String>) {
    match machine {
        Some(machine) => headers.insert(PREFERRED_UNAVAILABLE, text(machine)),
        None => headers.remove(PREFERRED_UNAVAILABLE),
    };
}

fn via(version: Version) -> HeaderValue {
    if version == Version::HTTP_2 { VIA_2 } else { VIA_1 }
}

/// A value of text that may have anything in it.
pub(crate) fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or_else(|_| HeaderValue::from_static("invalid"))
}

/// What is added to responses, and what the port's options change of them.
pub(crate) fn finish_response(
    headers: &mut HeaderMap,
    options: Option<&HttpOptions>,
    version: Version,
    server: &HeaderValue,
    request_id: &HeaderValue,
) {
    if !options.is_some_and(|options| options.pristine) {
        headers.insert(SERVER, server.clone());
        headers.append(VIA, via(version));
        headers.insert(REQUEST_ID, request_id.clone());
    }
    for (name, change) in options.into_iter().flat_map(|options| &options.response_headers) {
        headers.remove(name);
        if let HeaderChange::Set(values) = change {
            for value in values {
                headers.append(name, value.clone());
            }
        }
    }
}

/// Which machines the client asks for, taken out of the request with what only the proxy may say
/// of that.
pub(crate) fn preference(headers: &mut HeaderMap) -> Preference {
    let mut preference = Preference::default();
    if !headers.keys().any(|name| name.as_str().starts_with("fly-")) {
        return preference;
    }
    headers.remove(&PREFERRED_UNAVAILABLE);
    for name in FROM_PROXIES {
        headers.remove(name);
    }
    let mut take = |name: &str| {
        let value = headers.remove(name)?;
        value.to_str().ok().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    if let Some(machine) = take(FORCE_INSTANCE) {
        preference.machine = Some(machine);
        preference.is_machine_forced = true;
    }
    if let Some(machine) = take(PREFER_INSTANCE)
        && preference.machine.is_none()
    {
        preference.machine = Some(machine);
    }
    let list = |text: String| text.split(',').map(|one| one.trim().to_owned()).collect();
    if let Some(regions) = take(FORCE_REGION) {
        preference.regions = list(regions);
        preference.are_regions_forced = true;
    }
    if let Some(regions) = take(PREFER_REGION)
        && preference.regions.is_empty()
    {
        preference.regions = list(regions);
    }
    preference
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn fields_of_one_connection_are_taken_out_with_those_it_names() {
        let mut given = headers(&[
            ("connection", "close, X-Private"),
            ("connection", "content-length, te"),
            ("content-length", "3"),
            ("x-private", "1"),
            ("keep-alive", "5"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "gzip, Trailers"),
            ("x-kept", "1"),
        ]);
        strip_hop_by_hop(&mut given);
        let kept = headers(&[("content-length", "3"), ("te", "trailers"), ("x-kept", "1")]);
        assert_eq!(given, kept);
    }

    #[test]
    fn an_upgrade_is_asked_for_by_both_fields() {
        let both = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(upgrade(&both).unwrap(), "websocket");
        assert!(upgrade(&headers(&[("upgrade", "websocket")])).is_none());
        assert!(upgrade(&headers(&[("connection", "upgrade")])).is_none());
    }

    #[test]
    fn preferences_are_read_and_taken_out() {
        let mut given = headers(&[
            ("fly-prefer-instance-id", "a"),
            ("fly-force-region", "ams, fra"),
            ("x", "1"),
        ]);
        let read = preference(&mut given);
        assert_eq!(read.machine.as_deref(), Some("a"));
        assert!(!read.is_machine_forced && read.are_regions_forced);
        assert_eq!(read.regions, ["ams", "fra"]);
        assert_eq!(given, headers(&[("x", "1")]));
    }
}
