//! Certificates by host name, signed by themselves and made when first asked for, and the TLS
//! settings of ports. Whoever begins a handshake has checked that an app has the name.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use rustls::{
    ServerConfig, SupportedProtocolVersion,
    crypto::CryptoProvider,
    pki_types::PrivatePkcs8KeyDer,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::{TlsOptions, TlsVersion};

/// Names whose certificates are kept; beyond, all are made anew when asked for.
const MAX_NAMES: usize = 4096;
/// Sets of TLS settings that are kept.
const MAX_SETTINGS: usize = 256;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("can't make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error("can't use a certificate: {0}")]
    Use(#[from] rustls::Error),
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Certificates {
    resolver: Arc<ByName>,
    settings: Mutex<HashMap<(TlsOptions, bool), Arc<ServerConfig>>>,
}

#[derive(Debug)]
struct ByName {
    provider: Arc<CryptoProvider>,
    /// For clients that name no host.
    default_name: String,
    keys: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl ByName {
    fn key(&self, name: &str) -> Result<Arc<CertifiedKey>, CertificateError> {
        if let Some(key) = self.keys.lock().get(name) {
            return Ok(key.clone());
        }
        let made = rcgen::generate_simple_self_signed([name.to_owned()])?;
        let private = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let chain = vec![made.cert.der().clone()];
        let key = Arc::new(CertifiedKey::from_der(chain, private.into(), &self.provider)?);
        let mut keys = self.keys.lock();
        // Any one of them: who asks for it gets another.
        if keys.len() >= MAX_NAMES
            && let Some(name) = keys.keys().next().cloned()
        {
            keys.remove(&name);
        }
        // Another handshake may have been quicker: all get the same one.
        Ok(keys.entry(name.to_owned()).or_insert(key).clone())
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or(&self.default_name);
        self.key(name)
            .inspect_err(|error| tracing::warn!(%error, name, "no certificate for a handshake"))
            .ok()
    }
}

impl Certificates {
    pub(crate) fn new(default_name: String) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let resolver = Arc::new(ByName { provider, default_name, keys: Mutex::default() });
        Self { resolver, settings: Mutex::default() }
    }

    /// The settings of a port. For HTTP both versions of it are offered by default.
    pub(crate) fn settings(
        &self,
        options: &TlsOptions,
        is_http: bool,
    ) -> Result<Arc<ServerConfig>, rustls::Error> {
        let wanted = (options.clone(), is_http);
        if let Some(settings) = self.settings.lock().get(&wanted) {
            return Ok(settings.clone());
        }
        let mut settings = ServerConfig::builder_with_provider(self.resolver.provider.clone())
            .with_protocol_versions(&versions(&options.versions))?
            .with_no_client_auth()
            .with_cert_resolver(self.resolver.clone());
        settings.alpn_protocols = match (options.alpn.is_empty(), is_http) {
            (true, true) => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            _ => options.alpn.iter().map(|name| name.as_bytes().to_vec()).collect(),
        };
        let settings = Arc::new(settings);
        let mut kept = self.settings.lock();
        if kept.len() >= MAX_SETTINGS {
            kept.clear();
        }
        Ok(kept.entry(wanted).or_insert(settings).clone())
    }
}

fn versions(wanted: &[TlsVersion]) -> Vec<&'static SupportedProtocolVersion> {
    let one = |version: &TlsVersion| match version {
        TlsVersion::V12 => &rustls::version::TLS12,
        TlsVersion::V13 => &rustls::version::TLS13,
    };
    if wanted.is_empty() {
        vec![&rustls::version::TLS13, &rustls::version::TLS12]
    } else {
        wanted.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_certificate_and_options_one_settings() {
        let certificates = Certificates::new("localhost".to_owned());
        let key = |name| certificates.resolver.key(name).unwrap();
        assert!(Arc::ptr_eq(&key("a.localhost"), &key("a.localhost")));
        assert!(!Arc::ptr_eq(&key("a.localhost"), &key("b.localhost")));
        let options = TlsOptions::default();
        let http = certificates.settings(&options, true).unwrap();
        assert!(Arc::ptr_eq(&http, &certificates.settings(&options, true).unwrap()));
        assert_eq!(http.alpn_protocols.len(), 2);
        assert!(certificates.settings(&options, false).unwrap().alpn_protocols.is_empty());
    }
}
