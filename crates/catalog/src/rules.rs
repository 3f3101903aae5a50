//! The rules of the catalog, over any store: a file per kind of thing.

mod addresses;
mod apps;
mod egress;
mod machines;
mod networks;
mod peers;
mod policies;
mod pushes;
mod requests;
mod tokens;
mod volumes;

use std::sync::Arc;

use caddis_api::{UnixMillis, app::Organization};
use tokio::sync::watch;

use crate::{Result, store::Store};

pub use requests::{REQUEST_LEASE, REQUEST_RETENTION};

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> UnixMillis + Send + Sync>;

/// The facts of an installation. Every change is durable when its call returns. A call that was cut
/// short, or whose store failed, has done all of what it does or nothing that anybody would see,
/// and may be made again.
#[derive(Clone)]
pub struct Catalog {
    store: Arc<dyn Store>,
    clock: Clock,
    policy_changes: Arc<watch::Sender<u64>>,
    egress_changes: Arc<watch::Sender<u64>>,
    #[cfg(feature = "test-tokens")]
    test_tokens: tokens::TestTokens,
}

impl Catalog {
    /// The catalog that is kept in a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self::with_clock(store, Arc::new(UnixMillis::now))
    }

    /// The same, with a clock that tests move.
    pub fn with_clock(store: Arc<dyn Store>, clock: Clock) -> Self {
        Self {
            store,
            clock,
            policy_changes: Arc::default(),
            egress_changes: Arc::default(),
            #[cfg(feature = "test-tokens")]
            test_tokens: tokens::TestTokens::default(),
        }
    }

    fn now(&self) -> UnixMillis {
        (self.clock)()
    }

    /// The organisation of this slug, if there is one.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn organization(&self, slug: &str) -> Result<Option<Organization>> {
        Ok(self.store.organization(slug).await?)
    }

    /// Proves that a change could be made now, by making one.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn check(&self) -> Result<()> {
        Ok(self.store.check(self.now()).await?)
    }
}
