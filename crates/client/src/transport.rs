//! Sending requests: URLs, authentication, timeouts, retries and the reading of errors.

use std::{borrow::Cow, time::Duration};

use reqwest::{
    Method, RequestBuilder, Response, StatusCode, Upgraded, Url,
    header::{
        AUTHORIZATION, CONNECTION, HeaderMap, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT,
        SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
    },
    redirect::Policy,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::{client::generate_key, derive_accept_key},
        protocol::Role,
    },
};

use crate::{ClientError, error::root_cause};

/// Header that proves a lease.
pub(crate) const NONCE_HEADER: &str = "fly-machine-lease-nonce";
/// Header with the server's id of the request.
const REQUEST_ID_HEADER: &str = "fly-request-id";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For requests that the server answers at once; fsync on a busy disk may take seconds.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Pauses before a `GET` whose connection failed is sent again.
const RETRY_PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];
/// Time in all that a server which is asked too often is waited for.
const RATE_LIMIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Prefixes of the tokens that the field's clients send with the scheme `FlyV1`.
const MACAROON_PREFIXES: [&str; 3] = ["fm1r_", "fm1a_", "fm2_"];

/// A client of one server with one token.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
}

/// A request before it is sent. Kept apart from reqwest's so that a `GET` can be made anew for a
/// retry.
pub(crate) struct Request<'a> {
    pub method: Method,
    pub path: Vec<&'a str>,
    pub query: Vec<(Cow<'a, str>, String)>,
    pub nonce: Option<&'a str>,
    /// `None`: no limit, for streams.
    pub timeout: Option<Duration>,
}

impl<'a> Request<'a> {
    pub fn new(method: Method, path: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            method,
            path: path.into_iter().collect(),
            query: Vec::new(),
            nonce: None,
            timeout: Some(REQUEST_TIMEOUT),
        }
    }

    pub fn get(path: impl IntoIterator<Item = &'a str>) -> Self {
        Self::new(Method::GET, path)
    }

    pub fn post(path: impl IntoIterator<Item = &'a str>) -> Self {
        Self::new(Method::POST, path)
    }

    pub fn delete(path: impl IntoIterator<Item = &'a str>) -> Self {
        Self::new(Method::DELETE, path)
    }

    pub fn query(mut self, name: &'a str, value: impl ToString) -> Self {
        self.query.push((name.into(), value.to_string()));
        self
    }

    /// As [`Self::query`], for names made on the spot.
    pub fn query_owned(&mut self, name: String, value: String) {
        self.query.push((name.into(), value));
    }

    pub fn nonce(mut self, nonce: Option<&'a caddis_api::LeaseNonce>) -> Self {
        self.nonce = nonce.map(caddis_api::LeaseNonce::as_str);
        self
    }

    pub fn timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// For error messages: method and path, without query and host.
    pub fn name(&self) -> String {
        format!("{} /{}", self.method, self.path.join("/"))
    }
}

impl Client {
    /// A client of the server at `base_url` (`http://127.0.0.1:4280`; `/v1/…` is appended) that
    /// shows `token`. Connects to nothing yet.
    ///
    /// # Errors
    /// [`ClientError::InvalidUrl`], [`ClientError::InvalidToken`], [`ClientError::Setup`].
    pub fn new(base_url: &str, token: Option<&str>) -> Result<Self, ClientError> {
        let invalid = |reason: String| ClientError::InvalidUrl { url: base_url.to_owned(), reason };
        let base: Url = base_url.parse().map_err(|e| invalid(format!("{e}")))?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(invalid("it needs http:// or https:// and a host".to_owned()));
        }
        // Refused when the process has installed one already: either will do.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("caddis/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            // The API never redirects, and a token must not follow where some other server points.
            .redirect(Policy::none())
            .default_headers(authorization(token)?);
        if base.host_str().is_some_and(is_loopback) {
            builder = builder.no_proxy();
        }
        if base.scheme() == "http" {
            // No certificates are needed then: a host without any must do, and reading them takes
            // time.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|e| ClientError::Setup(root_cause(&e)))?;
        Ok(Self { http, base })
    }

    /// The server's address.
    pub fn base_url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        // Fails only for URLs without a host, which `new` refuses.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    fn build(&self, request: &Request<'_>) -> RequestBuilder {
        let mut builder = self.http.request(request.method.clone(), self.url(&request.path));
        if !request.query.is_empty() {
            builder = builder.query(&request.query);
        }
        if let Some(nonce) = request.nonce {
            builder = builder.header(NONCE_HEADER, nonce);
        }
        if let Some(timeout) = request.timeout {
            builder = builder.timeout(timeout);
        }
        builder
    }

    /// Sends a request without body; `GET`s are sent again when the connection failed.
    pub(crate) async fn send(&self, request: &Request<'_>) -> Result<Response, ClientError> {
        let pauses: &[Duration] = if request.method == Method::GET { &RETRY_PAUSES } else { &[] };
        let mut pauses = pauses.iter();
        let mut left = RATE_LIMIT_TIMEOUT;
        loop {
            let error = match self.build(request).send().await {
                Ok(response) if wait_if_asked(&response, &mut left).await => continue,
                Ok(response) => return check(response).await,
                Err(error) => error,
            };
            match pauses.next() {
                Some(pause) if !error.is_timeout() && !error.is_builder() => {
                    tokio::time::sleep(*pause).await
                }
                _ => return Err(self.failure(&request.name(), &error)),
            }
        }
    }

    /// Sends a request and takes over its connection as a WebSocket.
    pub(crate) async fn upgrade(
        &self,
        request: &Request<'_>,
    ) -> Result<WebSocketStream<Upgraded>, ClientError> {
        let key = generate_key();
        let timed_out = || ClientError::TimedOut { request: request.name() };
        let mut left = RATE_LIMIT_TIMEOUT;
        let response = loop {
            let builder = self
                .build(request)
                .header(CONNECTION, "Upgrade")
                .header(UPGRADE, "websocket")
                .header(SEC_WEBSOCKET_VERSION, "13")
                .header(SEC_WEBSOCKET_KEY, &key);
            let response = tokio::time::timeout(REQUEST_TIMEOUT, builder.send())
                .await
                .map_err(|_| timed_out())?;
            let response = response.map_err(|e| self.failure(&request.name(), &e))?;
            if !wait_if_asked(&response, &mut left).await {
                break response;
            }
        };
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = response.status();
            check(response).await?;
            let reason = format!("status {status} where a WebSocket was requested");
            return Err(ClientError::Unreadable { request: request.name(), reason });
        }
        let accepted = response.headers().get(SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
        if accepted != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
            let reason = "invalid WebSocket handshake".to_owned();
            return Err(ClientError::Unreadable { request: request.name(), reason });
        }
        let connection = response.upgrade().await.map_err(|e| self.failure(&request.name(), &e))?;
        Ok(WebSocketStream::from_raw_socket(connection, Role::Client, None).await)
    }

    /// Sends a request with a body, once.
    pub(crate) async fn send_body(
        &self,
        request: &Request<'_>,
        add_body: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, ClientError> {
        let mut builder = add_body(self.build(request));
        let mut left = RATE_LIMIT_TIMEOUT;
        loop {
            // A body that is read while it is sent is there once.
            let again = builder.try_clone();
            let response =
                builder.send().await.map_err(|error| self.failure(&request.name(), &error))?;
            match again {
                Some(again) if wait_if_asked(&response, &mut left).await => builder = again,
                _ => return check(response).await,
            }
        }
    }

    /// Sends a request without body and reads the answer.
    pub(crate) async fn read<T: DeserializeOwned>(
        &self,
        request: Request<'_>,
    ) -> Result<T, ClientError> {
        let response = self.send(&request).await?;
        self.decode(&request, response).await
    }

    /// Reads all pages of a list. `split` takes a page into its items and the cursor of the next.
    pub(crate) async fn read_pages<'a, P: DeserializeOwned, T>(
        &self,
        request: impl Fn() -> Request<'a>,
        split: impl Fn(P) -> (Vec<T>, Option<String>),
    ) -> Result<Vec<T>, ClientError> {
        let (mut items, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let page = match &cursor {
                Some(cursor) => self.read(request().query("cursor", cursor)).await?,
                None => self.read(request()).await?,
            };
            let (further, next) = split(page);
            items.extend(further);
            match next {
                // A server that gives the same cursor again would keep us here forever.
                Some(next) if !next.is_empty() && cursor.as_ref() != Some(&next) => {
                    cursor = Some(next)
                }
                _ => return Ok(items),
            }
        }
    }

    /// Sends a request with a JSON body and reads the answer.
    pub(crate) async fn read_with<T: DeserializeOwned>(
        &self,
        request: Request<'_>,
        body: &(impl Serialize + ?Sized),
    ) -> Result<T, ClientError> {
        let response = self.send_body(&request, |builder| builder.json(body)).await?;
        self.decode(&request, response).await
    }

    /// Reads an answer.
    pub(crate) async fn decode<T: DeserializeOwned>(
        &self,
        request: &Request<'_>,
        response: Response,
    ) -> Result<T, ClientError> {
        let body = response.bytes().await.map_err(|e| self.failure(&request.name(), &e))?;
        serde_json::from_slice(&body)
            .map_err(|e| ClientError::Unreadable { request: request.name(), reason: e.to_string() })
    }

    pub(crate) fn failure(&self, request: &str, error: &reqwest::Error) -> ClientError {
        let reason = root_cause(error);
        if error.is_connect() {
            ClientError::Unreachable { url: self.base_url().to_owned(), reason }
        } else if error.is_timeout() {
            ClientError::TimedOut { request: request.to_owned() }
        } else {
            ClientError::Interrupted { request: request.to_owned(), reason }
        }
    }
}

/// Waits as long as the server asks for before a request that it has not carried out is sent again.
/// False when it asks for nothing, or for more than the time that is left.
async fn wait_if_asked(response: &Response, left: &mut Duration) -> bool {
    let Some((pause, rest)) =
        retry_after(response).and_then(|pause| Some((pause, left.checked_sub(pause)?)))
    else {
        return false;
    };
    *left = rest;
    tokio::time::sleep(pause).await;
    true
}

fn retry_after(response: &Response) -> Option<Duration> {
    if response.status() != StatusCode::TOO_MANY_REQUESTS {
        return None;
    }
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).max(Duration::from_millis(100)))
}

/// The answer, or the error it carries: every status above 299, redirects too.
async fn check(response: Response) -> Result<Response, ClientError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let request_id = response
        .headers()
        .get(REQUEST_ID_HEADER)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    // An error whose body breaks off is still that error.
    let body = response.bytes().await.unwrap_or_default();
    Err(ClientError::from_reply(status.as_u16(), request_id, &body))
}

fn authorization(token: Option<&str>) -> Result<HeaderMap, ClientError> {
    let mut headers = HeaderMap::new();
    if let Some(token) = token {
        let has_scheme = token.starts_with("FlyV1 ") || token.starts_with("Bearer ");
        let value = if has_scheme {
            token.to_owned()
        } else if token
            .split(',')
            .any(|part| MACAROON_PREFIXES.iter().any(|prefix| part.trim().starts_with(prefix)))
        {
            format!("FlyV1 {token}")
        } else {
            format!("Bearer {token}")
        };
        let mut value = HeaderValue::from_str(&value).map_err(|_| ClientError::InvalidToken)?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

/// A proxy from the environment is never meant for these.
fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_appended_and_escaped() {
        for base in ["http://127.0.0.1:4280", "http://127.0.0.1:4280/"] {
            let client = Client::new(base, None).unwrap();
            let url = client.url(&["v1", "apps", "a/../b"]);
            assert_eq!(url.as_str(), "http://127.0.0.1:4280/v1/apps/a%2F..%2Fb");
            assert_eq!(client.base_url(), "http://127.0.0.1:4280");
        }
        let nested = Client::new("https://example.com/caddis", None).unwrap();
        assert_eq!(nested.url(&["v1"]).as_str(), "https://example.com/caddis/v1");
        for bad in ["", "127.0.0.1:4280", "ftp://host", "unix:/x"] {
            assert!(matches!(Client::new(bad, None), Err(ClientError::InvalidUrl { .. })), "{bad}");
        }
    }

    #[test]
    fn scheme_follows_the_kind_of_token_and_is_never_printed() {
        for (token, header) in [
            ("abc", "Bearer abc"),
            ("fm2_x,fm2_y", "FlyV1 fm2_x,fm2_y"),
            ("FlyV1 fm1r_z", "FlyV1 fm1r_z"),
        ] {
            let headers = authorization(Some(token)).unwrap();
            assert_eq!(headers[AUTHORIZATION], header);
            assert!(!format!("{headers:?}").contains(token));
        }
        assert!(matches!(authorization(Some("a\nb")), Err(ClientError::InvalidToken)));
    }
}
