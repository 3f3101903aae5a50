//! Answering a registry's 401: Basic at once, Bearer with a token from the realm that it names.
//! (Protocol: distribution, "Token Authentication Specification".)

use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue},
};

use super::{
    Registry,
    challenge::{Challenge, challenges},
    credentials::{Credentials, Logins},
    failure::{Failure, failed_request},
    guard::authority,
    repository::Repository,
    token::Token,
    words,
};
use crate::ImageError;

/// Longest answer of a token server.
const LONGEST_ANSWER: u64 = 1 << 20;
/// A token is renewed so long before it ends.
const EARLY: Duration = Duration::from_secs(5);

/// A header that a registry accepts, and until when.
pub(super) struct Authorization {
    pub(super) header: HeaderValue,
    /// Whether the registry has taken it.
    pub(super) accepted: bool,
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

    /// Whether it was got with what the file says now. A file that can't be read takes away what
    /// came from it.
    pub(super) fn is_of(&self, logins: &Result<Logins, ImageError>) -> bool {
        self.credentials.as_ref()
            == logins.as_ref().ok().and_then(|logins| logins.credentials.as_ref())
    }
}

impl Registry {
    /// Gets what the registry asks for in this 401, and remembers it.
    pub(super) async fn authenticate(
        &self,
        repository: &Repository,
        url: &Url,
        response: Response,
    ) -> Result<HeaderValue, Failure> {
        let challenges = challenges(response.headers());
        let bearer = bearer(url, &challenges);
        let logins = self.logins(repository)?;

        let authorization = if let Some((realm, challenge)) = bearer {
            self.token(repository, url, realm, challenge, logins).await?
        } else if of_scheme(&challenges, "Basic").next().is_some() {
            let reason = match &logins.credentials {
                Some(Credentials::Password(user, password)) => Ok(basic(user, password)?),
                Some(_) => Err(
                    "it requires a user and password, and the login for it is an identity token"
                        .to_owned(),
                ),
                None => Err(format!("it requires a user and password: {}", logins.advice())),
            };
            let header = reason.map_err(|reason| self.denied(repository, &reason))?;
            Authorization {
                header,
                accepted: false,
                expires: None,
                credentials: logins.credentials,
            }
        } else {
            let said = words::of(response).await;
            let schemes: Vec<_> =
                challenges.iter().map(|challenge| challenge.scheme.as_str()).collect();
            let reason = match of_scheme(&challenges, "Bearer").next() {
                Some(_) => format!("{said}; it names no token server"),
                None if schemes.is_empty() => format!("{said}; it does not say how to log in"),
                None => format!(
                    "{said}; it asks for {}, and only Bearer and Basic are known here",
                    schemes.join(", ")
                ),
            };
            return Err(self.denied(repository, &reason).into());
        };
        let header = authorization.header.clone();
        let mut known = self.authorizations.lock();
        known.insert(repository.clone(), authorization);
        Ok(header)
    }

    async fn token(
        &self,
        repository: &Repository,
        registry: &Url,
        mut realm: Url,
        challenge: &Challenge,
        logins: Logins,
    ) -> Result<Authorization, Failure> {
        let trust = self.guard.check_redirect(registry, &realm)?;
        // Asked for by us, not by the challenge: reading this repository is all that a token is
        // needed for.
        let scope = format!("repository:{}:pull", repository.name);
        let service = challenge.parameter("service");
        let (server, what) = (authority(&realm), format!("a token for {}", repository.name));

        let response = if let Some(Credentials::IdentityToken(token)) = &logins.credentials {
            let mut form = Url::parse("form:")
                .map_err(|_| self.denied(repository, "no token could be asked for"))?;
            form.query_pairs_mut().extend_pairs([
                ("grant_type", "refresh_token"),
                ("service", service.unwrap_or_default()),
                ("scope", &scope),
                ("client_id", "caddis"),
                ("refresh_token", token),
            ]);
            let request = self
                .client(trust)?
                .post(realm)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.query().unwrap_or_default().to_owned());
            let response =
                request.send().await.map_err(|error| failed_request(&server, &what, error))?;
            if response.status().is_redirection() {
                let reason = format!(
                    "its token server {server} redirects, which would take the login elsewhere"
                );
                return Err(self.denied(repository, &reason).into());
            }
            response
        } else {
            let asked = [("service", service), ("scope", Some(scope.as_str()))];
            realm
                .query_pairs_mut()
                .extend_pairs(asked.iter().filter_map(|(name, value)| Some((name, (*value)?))));
            let authorization = match &logins.credentials {
                Some(Credentials::Password(user, password)) => Some(basic(user, password)?),
                _ => None,
            };
            let none = HeaderMap::new();
            self.follow(&Method::GET, repository, &realm, &none, authorization.as_ref(), &what)
                .await?
        };
        let status = response.status();
        if status.is_client_error()
            && !matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
        {
            let said = words::of(response).await;
            let reason = format!("its token server {server} answered {said}; {}", logins.advice());
            return Err(self.denied(repository, &reason).into());
        }
        let response = self.judge(repository, response, &what).await?;
        let body = self.body(repository, response, &what, LONGEST_ANSWER).await?;
        let token = Token::read(&body).ok_or_else(|| {
            let what = if words::is_page_text(&body) { "a web page (HTML)" } else { "no token" };
            self.denied(repository, &format!("its token server {server} answered with {what}"))
        })?;
        let mut header =
            HeaderValue::from_str(&format!("Bearer {}", token.secret)).map_err(|_| {
                self.denied(repository, &format!("its token server {server} gave no usable token"))
            })?;
        header.set_sensitive(true);
        let expires = Some(Instant::now() + token.life.saturating_sub(EARLY));
        Ok(Authorization { header, accepted: false, expires, credentials: logins.credentials })
    }

    fn denied(&self, repository: &Repository, reason: &str) -> ImageError {
        ImageError::Unauthorized {
            registry: repository.registry.clone(),
            repository: repository.name.clone(),
            reason: reason.to_owned(),
        }
    }
}

/// Whether an answer asks for anything that can be done.
pub(super) fn is_known(url: &Url, response: &Response) -> bool {
    let challenges = challenges(response.headers());
    bearer(url, &challenges).is_some() || of_scheme(&challenges, "Basic").next().is_some()
}

fn of_scheme<'a>(
    challenges: &'a [Challenge],
    scheme: &'static str,
) -> impl Iterator<Item = &'a Challenge> {
    challenges.iter().filter(move |challenge| challenge.scheme.eq_ignore_ascii_case(scheme))
}

/// The first challenge that says where to get a token, and where. Relative places are the
/// registry's own.
fn bearer<'a>(url: &Url, challenges: &'a [Challenge]) -> Option<(Url, &'a Challenge)> {
    let realm = |challenge: &Challenge| url.join(challenge.parameter("realm")?).ok();
    of_scheme(challenges, "Bearer").find_map(|challenge| Some((realm(challenge)?, challenge)))
}

fn basic(user: &str, password: &str) -> Result<HeaderValue, ImageError> {
    // Base64 is always fit for a header.
    let mut header =
        HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            .map_err(|_| {
                ImageError::unsupported("these credentials", "user and password must be text")
            })?;
    header.set_sensitive(true);
    Ok(header)
}
