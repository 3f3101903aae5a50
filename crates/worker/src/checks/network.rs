//! Carries out checks over the network: TCP connects, and HTTP/1.1 requests with and without TLS.
//! One connection per attempt, so that each finds out whether the machine accepts them.

use std::{io, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use caddis_api::config::CheckType;
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::CryptoProvider, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::OnceCell,
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::prober::{Finding, LONGEST_BODY, Probe, Prober};

mod unverified;

use unverified::AnyCertificate;

/// Room for the headers of a response, bytes.
const HEADERS: usize = 64 * 1024;
/// How long the beginning of a response's body is waited for: only its status decides.
const BODY_TIME: Duration = Duration::from_millis(250);
const USER_AGENT: &str = "caddis-health-check";

/// Carries out checks over the network.
pub struct NetworkProber {
    provider: Arc<CryptoProvider>,
    /// Accepts certificates of the authorities that the host trusts. Read at the first use.
    verifying: OnceCell<Arc<ClientConfig>>,
    /// Accepts any certificate.
    unverified: OnceCell<Arc<ClientConfig>>,
}

/// Why an attempt has failed.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("{}", plain(.0))]
    Connect(#[source] io::Error),
    #[error("TLS: {}", plain(.0))]
    Handshake(#[source] io::Error),
    #[error("TLS: invalid tls_server_name '{0}'")]
    ServerName(String),
    #[error("TLS: {0}")]
    Config(#[from] rustls::Error),
    #[error("invalid request: {0}")]
    Request(#[from] http::Error),
    #[error("no valid HTTP response: {0}")]
    Http(#[from] hyper::Error),
}

/// An error without its number, which says no more to users.
fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        io::ErrorKind::TimedOut => "connection timed out".to_owned(),
        _ => error.to_string(),
    }
}

impl Default for NetworkProber {
    fn default() -> Self {
        Self {
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            verifying: OnceCell::new(),
            unverified: OnceCell::new(),
        }
    }
}

#[async_trait]
impl Prober for NetworkProber {
    async fn probe(&self, probe: &Probe) -> Finding {
        let found = match probe.kind {
            CheckType::Tcp => {
                connect(probe).await.map(|_| (true, "Success".to_owned(), String::new()))
            }
            CheckType::Http => self.request(probe).await,
        };
        let subject = probe.subject();
        match found {
            Ok((passed, how, body)) => {
                Finding { passed, summary: format!("{subject}: {how}"), body }
            }
            Err(error) => Finding::failed(format!("{subject}: {error}")),
        }
    }
}

async fn connect(probe: &Probe) -> Result<TcpStream, ProbeError> {
    TcpStream::connect(probe.address).await.map_err(ProbeError::Connect)
}

impl NetworkProber {
    async fn request(&self, probe: &Probe) -> Result<(bool, String, String), ProbeError> {
        let request = request(probe)?;
        let stream = connect(probe).await?;
        if !probe.is_https() {
            return exchange(stream, request).await;
        }
        let name = match probe.check.tls_server_name.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => ServerName::try_from(name.to_owned())
                .map_err(|_| ProbeError::ServerName(name.to_owned()))?,
            None => ServerName::from(probe.address.ip()),
        };
        let connector = TlsConnector::from(self.tls(probe).await?);
        let stream = connector.connect(name, stream).await.map_err(ProbeError::Handshake)?;
        exchange(stream, request).await
    }

    async fn tls(&self, probe: &Probe) -> Result<Arc<ClientConfig>, rustls::Error> {
        let skips = probe.check.tls_skip_verify == Some(true);
        let config = if skips { &self.unverified } else { &self.verifying };
        let make = async || {
            let builder = ClientConfig::builder_with_provider(self.provider.clone())
                .with_safe_default_protocol_versions()?;
            let config = if skips {
                let verifier = Arc::new(AnyCertificate::new(self.provider.clone()));
                builder.dangerous().with_custom_certificate_verifier(verifier)
            } else {
                builder.with_root_certificates(trusted().await)
            };
            Ok(Arc::new(config.with_no_client_auth()))
        };
        config.get_or_try_init(make).await.cloned()
    }
}

/// The authorities that the host trusts.
async fn trusted() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // It fails only when the runtime is ending.
    let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    let found = found.unwrap_or_default();
    for error in &found.errors {
        tracing::warn!(%error, "can't read certificates of trusted authorities");
    }
    roots.add_parsable_certificates(found.certs);
    roots
}

fn request(probe: &Probe) -> Result<Request<Empty<Bytes>>, ProbeError> {
    let headers = probe.check.headers.iter().flatten();
    let headers = headers.flat_map(|h| h.values.iter().map(move |value| (&h.name, value)));
    let mut request = Request::builder().method(&*probe.method()).uri(probe.path());
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let mut request = request.body(Empty::new())?;
    for (name, value) in [
        (header::HOST, probe.address.to_string()),
        (header::USER_AGENT, USER_AGENT.to_owned()),
        (header::ACCEPT, "*/*".to_owned()),
        (header::CONNECTION, "close".to_owned()),
    ] {
        let value = value.try_into().map_err(http::Error::from)?;
        request.headers_mut().entry(name).or_insert(value);
    }
    Ok(request)
}

/// Sends a request; whether its response passes, its status, and how its body begins.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<(bool, String, String), ProbeError> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEADERS);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    // Its errors are those of the request.
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = beginning(response).await;
    let reason = status.canonical_reason().map(|reason| format!(" {reason}")).unwrap_or_default();
    Ok((status.is_success(), format!("{}{reason}", status.as_str()), body))
}

/// How the body of a response begins; what has come of it when its time is over.
async fn beginning(response: Response<Incoming>) -> String {
    let (mut body, mut bytes) = (response.into_body(), Vec::new());
    let read = async {
        while bytes.len() <= LONGEST_BODY
            && let Some(Ok(frame)) = body.frame().await
        {
            bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        }
    };
    // The status has decided already.
    let _ = tokio::time::timeout(BODY_TIME, read).await;
    bytes.truncate(LONGEST_BODY + 4);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests;
