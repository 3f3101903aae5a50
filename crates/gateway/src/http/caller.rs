//! Who asks, and what a token lets it do.

use caddis_api::{ApiError, ErrorCode};
use caddis_catalog::{Access, PERSONAL, TokenScope};

use crate::http::{description::Scope, errors::app_not_found};

/// The one who asks, and what is asked of the thing that the request is about.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Name of the token.
    pub name: String,
    /// What `personal` means for it.
    pub organization: String,
    /// What it may see and change; [`crate::http::authorization`] asks.
    pub token: TokenScope,
    /// What the endpoint does.
    pub wants: Access,
}

impl Caller {
    /// As it appears as the owner of leases.
    pub fn owner(&self) -> String {
        format!("{}@tokens.caddis", self.name)
    }

    /// Whether endpoints of this scope are for it at all.
    pub fn admit(&self, scope: Scope) -> Result<(), ApiError> {
        match (&self.token, scope) {
            (TokenScope::All, _) => Ok(()),
            (_, Scope::Installation) => Err(denied("use one for the whole installation")),
            (_, Scope::Organization(Access::Write)) => Err(denied("use one for all apps")),
            _ => Ok(()),
        }
    }

    /// Whether it may do what it wants to an app of this name.
    pub fn may(&self, app: &str) -> Result<(), ApiError> {
        let TokenScope::App { name, access } = &self.token else { return Ok(()) };
        if name != app {
            return Err(app_not_found(app));
        }
        if *access < self.wants {
            return Err(denied("use one that may change the app"));
        }
        Ok(())
    }

    /// The slug meant by a request's.
    pub fn slug<'a>(&'a self, slug: &'a str) -> &'a str {
        if slug == PERSONAL { &self.organization } else { slug }
    }

    /// Who its requests are counted for by the limits, unless with those of all others: a caller
    /// that may not see all neither uses up what others may ask, nor learns that they do.
    pub fn counted_apart(&self) -> Option<&str> {
        (self.token != TokenScope::All).then_some(self.name.as_str())
    }
}

fn denied(advice: &str) -> ApiError {
    let text = format!("permission_denied: the token does not allow this, {advice}");
    ApiError::new(ErrorCode::PermissionDenied, text)
}
