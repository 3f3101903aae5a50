//! What is said of an endpoint, once: whom it serves, how its requests are counted, and what
//! becomes of one that was cut short. Router, limits, idempotency and the OpenAPI document are
//! made from it; [`crate::endpoints`] is the table.

use caddis_catalog::Access;

/// Whom an endpoint serves, and what of: what it finds for a caller is what that caller may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Anybody, without a token.
    Open,
    /// Whoever has a token. What it lists is what the caller may see.
    Caller,
    /// Only callers that may see and change the whole installation.
    Installation,
    /// The organization that the request names. Writing is not for tokens of one app.
    Organization(Access),
    /// The app in the path.
    App(Access),
    /// The machine in the path, and the app it is looked for in.
    Machine(Access),
}

impl Scope {
    /// What is done to what the request is about.
    pub(crate) fn access(self) -> Access {
        match self {
            Self::Open | Self::Caller => Access::Read,
            Self::Installation => Access::Write,
            Self::Organization(access) | Self::App(access) | Self::Machine(access) => access,
        }
    }

    /// Whether a token of ours may not be enough.
    pub(crate) fn may_be_refused(self) -> bool {
        self == Self::Installation || self.access() == Access::Write
    }
}

/// Which requests are counted together, for the limits on how often they may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// None: it is not limited.
    Unlimited,
    /// Those of one method and path.
    Path,
    /// Those of one method for one machine, under this name, which several endpoints may share.
    Machine(&'static str),
    /// Reads of one machine, which may come more often.
    MachineRead,
    /// Deletions of apps, of all apps together.
    AppDeletion,
}

/// What becomes of a POST with an `Idempotency-Key` that was cut short before, and may have been
/// carried out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Replay {
    /// It is refused: only the client can find out.
    #[default]
    Refuse,
    /// It is carried out again, which comes to the same.
    Repeatable,
    /// It is carried out again, and finds what it has made by the id of the request.
    Makes,
    /// The key is not looked at.
    Exempt,
}

/// What is said of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// Whom it serves.
    pub scope: Scope,
    /// Which of its requests are counted together.
    pub rate: Rate,
    /// What becomes of a request that was cut short; only of POST.
    pub replay: Replay,
}
