//! A client for the pulling half of the OCI distribution protocol.
//!
//! Written over reqwest rather than on top of oci-client, whose HTTP client can't be told which
//! addresses and redirects to refuse, reads manifests of any size into memory, and has no resuming
//! of blobs that keeps their hash.
//!
//! ```text
//!  request ─▶ guard ─▶ connect (resolver filters addresses) ─▶ redirects, each through the guard,
//!     ▲                                                         credentials only to the registry
//!     └── 401: token from the realm, once ◀──────────────────── answer
//! ```

mod authentication;
mod challenge;
mod credentials;
mod failure;
#[cfg(test)]
mod fuzz;
mod guard;
mod patience;
mod repository;
mod token;
mod transfer;
mod words;

pub(crate) use self::{repository::Repository, transfer::Wanted};

use std::{collections::HashMap, path::PathBuf, sync::OnceLock};

use futures::StreamExt;
use jiff::Timestamp;
use parking_lot::Mutex;
use reqwest::{
    Client, Method, Response, StatusCode, Url,
    header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION},
    redirect,
};

use self::{
    authentication::Authorization,
    credentials::Logins,
    failure::{Failure, failed_request, no_client},
    guard::{Guard, GuardedResolver, Trust, authority},
    patience::Patience,
};
use crate::{Digest, ImageError, ImageStoreConfig, Transfer};

const MOST_REDIRECTS: usize = 5;

/// The client; shared by all pulls of a store.
#[derive(Debug)]
pub(crate) struct Registry {
    guard: Guard,
    listed: Client,
    ordinary: OnceLock<Client>,
    credentials: Option<PathBuf>,
    authorizations: Mutex<HashMap<Repository, Authorization>>,
    transfer: Transfer,
}

impl Registry {
    pub(crate) fn new(config: &ImageStoreConfig) -> Result<Self, ImageError> {
        // Whoever installed a provider before us is welcome to have done so.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        // Only ever speaks plain HTTP to hosts named in the configuration, so it trusts no
        // certificate at all.
        let listed =
            builder(&config.transfer).no_proxy().tls_certs_only([]).build().map_err(no_client)?;
        Ok(Self {
            guard: Guard::new(&config.insecure_registries),
            listed,
            ordinary: OnceLock::new(),
            credentials: config.registry_credentials.clone(),
            authorizations: Mutex::new(HashMap::new()),
            transfer: config.transfer.clone(),
        })
    }

    /// Fetches a manifest or index by tag or digest, at most `limit` bytes; also gives the digest
    /// that the registry claims for it. Nothing is verified here. What a tag means is asked for
    /// first, with a HEAD, which registries do not count: what `known` has is not fetched.
    pub(crate) async fn manifest(
        &self,
        repository: &Repository,
        version: &str,
        limit: u64,
        known: impl Fn(&Digest) -> Option<Vec<u8>>,
    ) -> Result<(Vec<u8>, Option<Digest>), ImageError> {
        const TYPES: &str = "application/vnd.oci.image.index.v1+json, \
                             application/vnd.oci.image.manifest.v1+json, \
                             application/vnd.docker.distribution.manifest.list.v2+json, \
                             application/vnd.docker.distribution.manifest.v2+json";
        let accept = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(TYPES))]);
        let what = repository.inside(version);
        let url = self.url(repository, &["manifests", version])?;
        let mut asks_first = version.parse::<Digest>().is_err();
        let mut patience = Patience::new(&self.transfer);
        loop {
            let failure = if std::mem::take(&mut asks_first) {
                match self.head(repository, &url, &accept, &what).await {
                    Ok(digest) => match digest.and_then(|digest| Some((known(&digest)?, digest))) {
                        Some((bytes, digest)) => return Ok((bytes, Some(digest))),
                        None => continue,
                    },
                    Err(failure) => failure,
                }
            } else {
                match self.try_document(repository, &url, &accept, &what, limit).await {
                    Ok((body, headers)) => return Ok((body, claimed_digest(&headers))),
                    Err(failure) => failure,
                }
            };
            patience.wait(failure).await?;
        }
    }

    /// What a HEAD says the digest is. `None` from registries that don't say, or only to a GET.
    async fn head(
        &self,
        repository: &Repository,
        url: &Url,
        headers: &HeaderMap,
        what: &str,
    ) -> Result<Option<Digest>, Failure> {
        let response = self.ask(Method::HEAD, repository, url, headers, what).await?;
        // Where it is refused a GET brings the reason too.
        Ok(if response.status() == StatusCode::OK {
            claimed_digest(response.headers())
        } else {
            None
        })
    }

    /// Fetches a small blob, at most `limit` bytes. Nothing is verified here.
    pub(crate) async fn small_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        limit: u64,
    ) -> Result<Vec<u8>, ImageError> {
        let what = format!("{}@{digest}", repository.name);
        let url = self.url(repository, &["blobs", digest.as_str()])?;
        let (none, mut patience) = (HeaderMap::new(), Patience::new(&self.transfer));
        loop {
            match self.try_document(repository, &url, &none, &what, limit).await {
                Ok((body, _)) => return Ok(body),
                Err(failure) => patience.wait(failure).await?,
            }
        }
    }

    /// Something small, whole.
    async fn try_document(
        &self,
        repository: &Repository,
        url: &Url,
        headers: &HeaderMap,
        what: &str,
        limit: u64,
    ) -> Result<(Vec<u8>, HeaderMap), Failure> {
        let response = self.get(repository, url, headers, what).await?;
        let (headers, says_page) = (response.headers().clone(), words::says_page(&response));
        let body = self.body(repository, response, what, limit).await?;
        if words::is_page_text(&body) || (says_page && !body.trim_ascii_start().starts_with(b"{")) {
            return Err(self.no_page(repository, what).into());
        }
        Ok((body, headers))
    }

    fn url(&self, repository: &Repository, last: &[&str]) -> Result<Url, ImageError> {
        let mut url = self.guard.registry_url(&repository.registry)?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(repository.name.split('/')).extend(last);
        }
        Ok(url)
    }

    /// One GET; only a success comes back as such.
    async fn get(
        &self,
        repository: &Repository,
        url: &Url,
        headers: &HeaderMap,
        what: &str,
    ) -> Result<Response, Failure> {
        let response = self.ask(Method::GET, repository, url, headers, what).await?;
        self.judge(repository, response, what).await
    }

    /// One request with authentication and redirects.
    async fn ask(
        &self,
        method: Method,
        repository: &Repository,
        url: &Url,
        headers: &HeaderMap,
        what: &str,
    ) -> Result<Response, Failure> {
        let known = self.known_authorization(repository);
        let shown = known.as_ref().map(|(header, _)| header);
        let response = self.follow(&method, repository, url, headers, shown, what).await?;
        // A 401 of a host that we were redirected to is no reason to show credentials to anyone.
        if response.status() != StatusCode::UNAUTHORIZED || !is_home(url, response.url()) {
            self.note_authorization(repository, true);
            return Ok(response);
        }
        // What was refused from the beginning is not asked for again; a HEAD's answer does not say
        // why.
        let is_new = known.is_some_and(|(_, accepted)| !accepted);
        if is_new || (method == Method::HEAD && !authentication::is_known(url, &response)) {
            self.note_authorization(repository, false);
            return Ok(response);
        }
        let fresh = self.authenticate(repository, url, response).await?;
        let response = self.follow(&method, repository, url, headers, Some(&fresh), what).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            self.note_authorization(repository, true);
        }
        Ok(response)
    }

    /// Follows redirects, each through the guard. Only where it was sent first it shows the
    /// authorization.
    async fn follow(
        &self,
        method: &Method,
        repository: &Repository,
        url: &Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
        what: &str,
    ) -> Result<Response, Failure> {
        let mut trust = self.guard.check(url)?;
        let mut current = url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let mut request = self
                .client(trust)?
                .request(method.clone(), current.clone())
                .headers(headers.clone());
            if let (true, Some(authorization)) = (is_home(url, &current), authorization) {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            let response = request
                .send()
                .await
                .map_err(|error| failed_request(&authority(&current), what, error))?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let next = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            let next = next.and_then(|location| current.join(location).ok());
            let next = next.ok_or_else(|| {
                self.unreachable(repository, what, "a redirect to nowhere".to_owned())
            })?;
            trust = self.guard.check_redirect(&current, &next)?;
            current = next;
        }
        Err(self
            .unreachable(repository, what, format!("more than {MOST_REDIRECTS} redirects"))
            .into())
    }

    async fn judge(
        &self,
        repository: &Repository,
        response: Response,
        what: &str,
    ) -> Result<Response, Failure> {
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            _ => Err(self.refusal(repository, response, what).await),
        }
    }

    /// What an answer that is no success means, in the registry's own words.
    async fn refusal(&self, repository: &Repository, response: Response, what: &str) -> Failure {
        let (status, now) = (response.status(), Timestamp::now());
        let asked = patience::asked(response.headers(), now);
        let said = words::of(response).await;
        let Repository { registry, name } = repository.clone();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let advice = self
                    .logins(repository)
                    .map_or_else(|error| error.to_string(), |logins| logins.advice());
                let reason = format!("{said}; check the name; {advice}");
                ImageError::Unauthorized { registry, repository: name, reason }.into()
            }
            StatusCode::NOT_FOUND => {
                let hint = format!("the registry has no such repository, tag or digest ({said})");
                ImageError::NotFound { what: format!("{registry}/{what}"), hint }.into()
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
                if asked.is_some() || status == 429 =>
            {
                let when = asked.map_or_else(
                    || "try again later".to_owned(),
                    |asked| patience::until(asked, now),
                );
                let what = what.to_owned();
                let error =
                    ImageError::RateLimited { registry, what, reason: format!("{said}; {when}") };
                Failure { error, again: true, asked }
            }
            _ => {
                let again = status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT;
                Failure { error: self.unreachable(repository, what, said), again, asked }
            }
        }
    }

    fn no_page(&self, repository: &Repository, what: &str) -> ImageError {
        let reason = "it answered with a web page (HTML): is it a registry, and does it need a \
                      browser to log in?";
        self.unreachable(repository, what, reason.to_owned())
    }

    /// The whole body, unless it is longer than allowed.
    async fn body(
        &self,
        repository: &Repository,
        response: Response,
        what: &str,
        limit: u64,
    ) -> Result<Vec<u8>, Failure> {
        let too_large = || {
            ImageError::too_large(
                what,
                format!("the limit for this kind of document is {limit} bytes"),
            )
        };
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(too_large().into());
        }
        let mut body = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| failed_request(&repository.registry, what, error))?;
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(too_large().into());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn client(&self, trust: Trust) -> Result<&Client, ImageError> {
        match trust {
            Trust::Listed => Ok(&self.listed),
            Trust::Ordinary => {
                if let Some(client) = self.ordinary.get() {
                    return Ok(client);
                }
                // Not made before it is needed: it wants certificates, which a host without
                // Internet may lack.
                let client = builder(&self.transfer)
                    .https_only(true)
                    .dns_resolver(GuardedResolver)
                    .build()
                    .map_err(no_client)?;
                Ok(self.ordinary.get_or_init(|| client))
            }
        }
    }

    /// What is configured for a repository now.
    fn logins(&self, repository: &Repository) -> Result<Logins, ImageError> {
        credentials::look_up(self.credentials.as_deref(), repository)
    }

    /// What was shown before, as long as it lasts and the file says the same as then, and whether
    /// it was accepted.
    fn known_authorization(&self, repository: &Repository) -> Option<(HeaderValue, bool)> {
        let mut known = self.authorizations.lock();
        known.retain(|_, authorization| authorization.is_fresh());
        let authorization = known.get(repository)?;
        if !authorization.is_of(&self.logins(repository)) {
            known.remove(repository);
            return None;
        }
        Some((authorization.header.clone(), authorization.accepted))
    }

    /// Notes that what is shown was accepted, or forgets it.
    fn note_authorization(&self, repository: &Repository, accepted: bool) {
        let mut known = self.authorizations.lock();
        if !accepted {
            known.remove(repository);
        } else if let Some(authorization) = known.get_mut(repository) {
            authorization.accepted = true;
        }
    }

    fn unreachable(&self, repository: &Repository, what: &str, reason: String) -> ImageError {
        ImageError::Unreachable {
            registry: repository.registry.clone(),
            what: what.to_owned(),
            reason,
        }
    }
}

/// What a registry says the digest of a manifest is.
fn claimed_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.trim().parse().ok()
}

/// Whether a place is the registry itself, which alone is shown what it asked for.
fn is_home(registry: &Url, place: &Url) -> bool {
    registry.scheme() == place.scheme() && authority(registry) == authority(place)
}

fn builder(transfer: &Transfer) -> reqwest::ClientBuilder {
    Client::builder()
        .user_agent(concat!("caddis/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .connect_timeout(transfer.connect_timeout)
        .read_timeout(transfer.idle_timeout)
}
