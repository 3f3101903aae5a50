//! Facts that must be unique in the whole installation: organisations, apps, networks and addresses, machine names
//! and ids with their worker and placement epoch, tokens, idempotency keys. Knows nothing of what a machine does.
//!
//! [`Catalog`] is what the gateway asks; [`SqliteCatalog`] keeps it in one file for an installation of one host.
#![forbid(unsafe_code)]

mod error;
mod records;
mod sqlite;

use std::path::Path;

use async_trait::async_trait;
use caddis_api::{MachineId, WorkerId, app::Organization};

pub use error::CatalogError;
pub use records::{
    Access, Answer, AppPage, AppQuery, AppRecord, AppState, Keyed, KeyedRequest, NewApp, NewPlacement, Placement,
    TokenRecord, TokenScope,
};
pub use sqlite::SqliteCatalog;

/// Slug of the organisation made at the first start, and the alias of the caller's own in requests.
pub const PERSONAL: &str = "personal";

/// Result of catalog calls.
pub type Result<T> = std::result::Result<T, CatalogError>;

/// The facts of an installation. Every change is durable when its call returns.
#[async_trait]
pub trait Catalog: Send + Sync + 'static {
    /// The organisation of this slug, if there is one.
    async fn organization(&self, slug: &str) -> Result<Option<Organization>>;

    /// Makes an app and, when it is the first of it, its network. With an idempotency key seen before it gives the
    /// app of the first call.
    ///
    /// # Errors
    /// [`CatalogError::AppNameTaken`], [`CatalogError::OrganizationNotFound`],
    /// [`CatalogError::IdempotencyMismatch`] when the key came with another name before.
    async fn create_app(&self, app: NewApp) -> Result<AppRecord>;

    /// The app of this name, if there is one; also while it is being deleted.
    async fn app(&self, name: &str) -> Result<Option<AppRecord>>;

    /// Apps in the order of their numbers.
    async fn apps(&self, query: AppQuery) -> Result<AppPage>;

    /// Marks an app for deletion: no machine can be placed in it any more. Doing it again changes nothing.
    ///
    /// # Errors
    /// [`CatalogError::AppNotFound`].
    async fn begin_app_deletion(&self, name: &str) -> Result<AppRecord>;

    /// Ends the deletion of an app once none of its machines is left, which frees its name. Says whether the app is
    /// gone; an app that is not marked stays.
    async fn finish_app_deletion(&self, name: &str) -> Result<bool>;

    /// Apps whose deletion has begun and not ended.
    async fn apps_in_deletion(&self) -> Result<Vec<AppRecord>>;

    /// Gives a machine its id, name and address. Ids and addresses of released machines are not given again.
    ///
    /// # Errors
    /// [`CatalogError::MachineNameTaken`], [`CatalogError::AppNotFound`], [`CatalogError::AppInDeletion`].
    async fn place(&self, placement: NewPlacement) -> Result<Placement>;

    /// Frees the name of a machine that is gone or was never made. Doing it again changes nothing.
    async fn release(&self, machine: &MachineId) -> Result<()>;

    /// Placements that are not released: of one worker, or all.
    async fn placements(&self, worker: Option<&WorkerId>) -> Result<Vec<Placement>>;

    /// Notes a request that came with a key, unless one with this key is known. Keys are remembered for a day.
    async fn begin_request(&self, request: KeyedRequest) -> Result<Keyed>;

    /// Keeps the answer to a keyed request.
    async fn end_request(&self, id: &str, answer: Answer) -> Result<()>;

    /// Forgets a keyed request that changed nothing.
    async fn forget_request(&self, id: &str) -> Result<()>;

    /// The machine that a keyed request was about to make, also when it is gone.
    async fn placement_of_request(&self, id: &str) -> Result<Option<Placement>>;

    /// The token this text is, if it is one of ours.
    async fn authenticate(&self, token: &str) -> Result<Option<TokenRecord>>;

    /// Makes the root token unless there is one. Gives its text, which is stored nowhere, the one time it is made.
    async fn ensure_root_token(&self) -> Result<Option<String>>;

    /// Replaces the root token, for when its text was lost; the old one is refused from now on.
    async fn replace_root_token(&self) -> Result<String>;

    /// Proves that a change could be made now, by making one.
    async fn check(&self) -> Result<()>;

    /// Writes a consistent copy to a new file while the catalog is in use.
    ///
    /// # Errors
    /// [`CatalogError::Backup`], also when the file exists.
    async fn backup(&self, to: &Path) -> Result<()>;
}
