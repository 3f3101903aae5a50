//! Where the registry client may connect to.
//!
//! References come from users, redirects and token servers from registries: either could point at
//! services on this host's loopback or at a cloud's metadata address. Only registries listed as
//! insecure may be there; for all others such addresses are refused, written out or resolved.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

use crate::ImageError;

/// The rules.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    insecure: Arc<[String]>,
}

/// Which client a request goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Listed: plain HTTP, any address.
    Listed,
    /// HTTPS, public or private addresses, never this host.
    Ordinary,
}

impl Guard {
    pub(crate) fn new(insecure: &[String]) -> Self {
        Self { insecure: insecure.iter().map(|host| host.to_ascii_lowercase()).collect() }
    }

    /// The address of a registry, by the scheme that it is to be spoken to with.
    pub(crate) fn registry_url(&self, registry: &str) -> Result<Url, ImageError> {
        let listed = self.insecure.contains(&registry.to_ascii_lowercase());
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let scheme = if listed { "http" } else { "https" };
        Url::parse(&format!("{scheme}://{host}/v2/"))
            .map_err(|error| refused(registry, format!("its address is invalid ({error})")))
    }

    /// Whether and how this address may be asked.
    pub(crate) fn check(&self, url: &Url) -> Result<Trust, ImageError> {
        let target = authority(url);
        match url.scheme() {
            "http" if self.is_listed(url) => return Ok(Trust::Listed),
            "https" => {}
            scheme => {
                let reason =
                    format!("{scheme} is only used for registries listed with --insecure-registry");
                return Err(refused(&target, reason));
            }
        }
        // The parser has already turned `127.1` and the like into plain dotted form.
        let literal =
            url.host_str().and_then(|host| host.trim_matches(['[', ']']).parse::<IpAddr>().ok());
        if literal.is_some_and(is_forbidden) {
            return Err(refused(&target, FORBIDDEN.to_owned()));
        }
        Ok(Trust::Ordinary)
    }

    /// Whether `next` may be gone to after `from` redirected there.
    pub(crate) fn check_redirect(&self, from: &Url, next: &Url) -> Result<Trust, ImageError> {
        if from.scheme() == "https" && next.scheme() != "https" {
            let reason =
                format!("{} redirected there, from HTTPS to {}", authority(from), next.scheme());
            return Err(refused(&authority(next), reason));
        }
        self.check(next)
    }

    fn is_listed(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let port = url.port_or_known_default().unwrap_or(0);
        self.insecure
            .iter()
            .any(|listed| *listed == format!("{host}:{port}") || (port == 80 && listed == host))
    }
}

const FORBIDDEN: &str = "it is an address of this host or link-local; if a registry runs there, \
                         allow it on the server: caddis serve --insecure-registry HOST:PORT";

fn refused(target: &str, reason: String) -> ImageError {
    ImageError::Refused { target: target.to_owned(), reason }
}

/// Host and port, for messages and comparison.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or("?");
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// This host's own addresses, link-local (cloud metadata lives there) and what no registry can
/// have.
fn is_forbidden(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_loopback()
                || address.octets()[0] == 0
                || address.is_link_local()
                || address.is_multicast()
                || address == Ipv4Addr::BROADCAST
        }
        IpAddr::V6(address) => {
            if let Some(v4) = address.to_ipv4_mapped() {
                return is_forbidden(IpAddr::V4(v4));
            }
            let segments = address.segments();
            address.is_loopback()
                || address.is_unspecified()
                || address.is_multicast()
                || segments[0] & 0xffc0 == 0xfe80
                || segments == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]
        }
    }
}

/// Resolves names by the system's means and drops addresses that are forbidden: the check is made
/// on the very addresses that are then connected to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GuardedResolver;

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let allowed: Vec<SocketAddr> =
                found.iter().copied().filter(|address| !is_forbidden(address.ip())).collect();
            if allowed.is_empty() && !found.is_empty() {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, FORBIDDEN).into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn only_listed_registries_are_spoken_to_over_http_or_on_this_host() {
        let guard = Guard::new(&["127.0.0.1:5000".to_owned(), "registry.lan".to_owned()]);
        assert_eq!(guard.check(&url("http://127.0.0.1:5000/v2/")).unwrap(), Trust::Listed);
        assert_eq!(guard.check(&url("http://registry.lan/v2/")).unwrap(), Trust::Listed);
        assert_eq!(guard.check(&url("https://ghcr.io/v2/")).unwrap(), Trust::Ordinary);
        assert_eq!(guard.check(&url("https://10.1.2.3/v2/")).unwrap(), Trust::Ordinary);
        for refused in [
            "http://ghcr.io/v2/",
            "http://127.0.0.1:5001/v2/",
            "https://127.0.0.1/v2/",
            "https://127.1/v2/",
            "https://2130706433/v2/",
            "https://0.0.0.0/v2/",
            "https://[::1]/v2/",
            "https://[::ffff:127.0.0.1]/v2/",
            "https://[fe80::1]/v2/",
            "https://169.254.169.254/latest/meta-data",
            "ftp://ghcr.io/",
            "file:///etc/passwd",
        ] {
            assert!(
                matches!(guard.check(&url(refused)), Err(ImageError::Refused { .. })),
                "{refused}"
            );
        }
    }

    #[test]
    fn redirects_never_leave_https() {
        let guard = Guard::new(&["registry.lan:80".to_owned()]);
        assert!(guard.check_redirect(&url("https://a.b/"), &url("http://registry.lan/")).is_err());
        assert!(guard.check_redirect(&url("http://registry.lan/"), &url("https://a.b/")).is_ok());
    }

    #[tokio::test]
    async fn names_of_this_host_do_not_resolve() {
        let error = GuardedResolver
            .resolve("localhost".parse().unwrap())
            .await
            .err()
            .expect("localhost is refused");
        assert!(error.to_string().contains("--insecure-registry"), "{error}");
    }
}
