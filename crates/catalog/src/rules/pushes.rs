//! Numbers under which workers are told what they are told all of at once.

use caddis_api::WorkerId;

use super::Catalog;
use crate::{Push, Result};

impl Catalog {
    /// The number under which a worker was told this last, by whichever copy of this catalog; 0
    /// before the first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn push_revision(&self, push: Push, worker: &WorkerId) -> Result<u64> {
        Ok(self.store.push_revision(push, worker).await?)
    }

    /// A number under which to tell a worker what is read from now on: above that of anyone who
    /// has begun before, and above `known`. So of two that arrive, the one with the higher number
    /// has all changes that there were before the other began.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn raise_push_revision(
        &self,
        push: Push,
        worker: &WorkerId,
        known: u64,
    ) -> Result<u64> {
        Ok(self.store.raise_push_revision(push, worker, known).await?)
    }
}
