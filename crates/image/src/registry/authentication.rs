//! Answering a registry's 401: Basic at once, Bearer with a token from the realm that it names.
//! (Protocol: distribution, "Token Authentication Specification".)

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http_auth::{ChallengeRef, parse_challenges};
use reqwest::{
    Response, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE},
};
use serde::Deserialize;

use super::{
    Failure, Registry, Repository,
    credentials::{Credentials, Logins},
    failed_request,
    guard::authority,
};
use crate::ImageError;

/// Longest answer of a token server.
const LONGEST_ANSWER: u64 = 1 << 20;
/// What the specification gives a token that says nothing about its life.
const DEFAULT_LIFE: u64 = 60;

/// A header that a registry accepts, and until when.
pub(super) struct Authorization {
    pub(super) header: HeaderValue,
    expires: Option<Instant>,
    /// What it was got with.
    credentials: Option<Credentials>,
}

// The header is a secret.
impl std::fmt::Debug for Authorization {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Authorization(..)")
    }
}

impl Authorization {
    pub(super) fn is_fresh(&self) -> bool {
        self.expires.is_none_or(|expires| Instant::now() < expires)
    }

    /// Whether it was got with what the file says now. A file that can't be read takes away what came from it.
    pub(super) fn is_of(&self, logins: &Result<Logins, ImageError>) -> bool {
        self.credentials.as_ref() == logins.as_ref().ok().and_then(|logins| logins.credentials.as_ref())
    }
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl Registry {
    /// Gets what the registry asks for in this 401, and remembers it.
    pub(super) async fn authenticate(
        &self,
        repository: &Repository,
        url: &Url,
        response: &Response,
    ) -> Result<HeaderValue, Failure> {
        let asked: Vec<String> = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect();
        let challenges: Vec<ChallengeRef<'_>> =
            asked.iter().filter_map(|text| parse_challenges(text).ok()).flatten().collect();
        let find = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme.eq_ignore_ascii_case(scheme));
        let logins = self.logins(repository)?;

        let authorization = if let Some(challenge) = find("Bearer") {
            self.token(repository, url, challenge, logins).await?
        } else if find("Basic").is_some() {
            let reason = match &logins.credentials {
                Some(Credentials::Password(user, password)) => Ok(basic(user, password)?),
                Some(_) => Err("it wants a user and password, and the login for it is an identity token".to_owned()),
                None => Err(format!("it wants a user and password: {}", logins.advice())),
            };
            let header = reason.map_err(|reason| self.denied(repository, &reason))?;
            Authorization { header, expires: None, credentials: logins.credentials }
        } else {
            return Err(self.denied(repository, "it asks for no kind of authentication that is known here").into());
        };
        let header = authorization.header.clone();
        let mut known = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(repository.clone(), authorization);
        Ok(header)
    }

    async fn token(
        &self,
        repository: &Repository,
        registry: &Url,
        challenge: &ChallengeRef<'_>,
        logins: Logins,
    ) -> Result<Authorization, Failure> {
        let parameter = |name: &str| {
            let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        let realm = parameter("realm").and_then(|realm| Url::parse(&realm).ok());
        let mut realm = realm.ok_or_else(|| self.denied(repository, "it names no place to get a token"))?;
        let trust = self.guard.check_redirect(registry, &realm)?;
        // Asked for by us, not by the challenge: reading this repository is all that a token is needed for.
        let scope = format!("repository:{}:pull", repository.name);
        let service = parameter("service");

        let client = self.client(trust)?;
        let request = if let Some(Credentials::IdentityToken(token)) = &logins.credentials {
            let mut form = Url::parse("form:").map_err(|_| self.denied(repository, "no token could be asked for"))?;
            form.query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("service", service.as_deref().unwrap_or_default())
                .append_pair("scope", &scope)
                .append_pair("client_id", "caddis")
                .append_pair("refresh_token", token);
            client
                .post(realm.clone())
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.query().unwrap_or_default().to_owned())
        } else {
            let mut query = realm.query_pairs_mut();
            if let Some(service) = &service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &scope);
            drop(query);
            match &logins.credentials {
                Some(Credentials::Password(user, password)) => {
                    client.get(realm.clone()).header(AUTHORIZATION, basic(user, password)?)
                }
                _ => client.get(realm.clone()),
            }
        };
        let what = format!("a token for {}", repository.name);
        let response = request.send().await.map_err(|error| failed_request(&authority(&realm), &what, error))?;
        if response.status().is_redirection() {
            let reason = "its token server redirects, which would take the credentials elsewhere";
            return Err(self.denied(repository, reason).into());
        }
        if response.status().is_client_error() && response.status().as_u16() != 429 {
            return Err(self.denied(repository, &logins.advice()).into());
        }
        let response = self.judge(repository, response, &what)?;
        let body = self.body(repository, response, &what, LONGEST_ANSWER).await?;
        let token: Token = serde_json::from_slice(&body)
            .map_err(|_| self.denied(repository, "its token server's answer makes no sense"))?;
        let secret = if token.token.is_empty() { &token.access_token } else { &token.token };
        let mut header = HeaderValue::from_str(&format!("Bearer {secret}"))
            .map_err(|_| self.denied(repository, "its token server gave no usable token"))?;
        header.set_sensitive(true);
        // Renewed a little early; an absurd life is cut to a day.
        let life = token.expires_in.unwrap_or(DEFAULT_LIFE).min(86_400).saturating_sub(5);
        let expires = Some(Instant::now() + Duration::from_secs(life));
        Ok(Authorization { header, expires, credentials: logins.credentials })
    }

    fn denied(&self, repository: &Repository, reason: &str) -> ImageError {
        ImageError::Unauthorized {
            registry: repository.registry.clone(),
            repository: repository.name.clone(),
            reason: reason.to_owned(),
        }
    }
}

fn basic(user: &str, password: &str) -> Result<HeaderValue, ImageError> {
    // Base64 is always fit for a header.
    let mut header = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
        .map_err(|_| ImageError::unsupported("these credentials", "user and password must be text"))?;
    header.set_sensitive(true);
    Ok(header)
}
