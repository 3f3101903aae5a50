//! Requests that came with a key of their client, and what was answered to them.
//!
//! ```text
//!            begin                    end
//! (unknown) ───────▶ in progress ────────────▶ answered ──(a day)──▶ (unknown)
//!     ▲                │  │   ▲
//!     │     forget     │  │   │ begin
//!     └────────────────┘  ▼   │
//!                       cut short      give_up, or the lease has run out
//! ```
//!
//! Who begins a request holds it under a lease, so that another gateway does not take it for cut
//! short. The lease is short and renewed: its holder's death is noticed soon. Times are those of
//! the hosts' clocks, which may differ by less than a lease. Where that fails, or a holder stands
//! still for longer than its lease, two may carry a request out; it still makes one machine, app or
//! version, and what was answered first stays the answer.

use std::time::Duration;

use super::Catalog;
use crate::{
    IdempotencyState, KeyedRequest, Result, StoredResponse,
    store::{RequestLease, RequestRow},
};

/// How long a key is remembered.
pub const REQUEST_RETENTION: Duration = Duration::from_secs(24 * 3600);
/// How long a request is its gateway's without being renewed.
pub const REQUEST_LEASE: Duration = Duration::from_secs(25);

impl Catalog {
    /// Notes a request that came with a key, unless one with this key is known. Keys are remembered
    /// for a day. [`IdempotencyState::New`] and [`IdempotencyState::Interrupted`] make the caller
    /// the one who carries it out: `request.id` is then the holder that the other calls ask for.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn begin_request(&self, request: KeyedRequest) -> Result<IdempotencyState> {
        loop {
            let now = self.now();
            let lease = self.lease(&request.id);
            let row = RequestRow {
                caller: request.caller.clone(),
                key: request.key.clone(),
                id: request.id.clone(),
                fingerprint: request.fingerprint,
                created_ms: now,
                answer: None,
                lease: Some(lease.clone()),
            };
            let Some(found) = self.store.note_request(row, now - REQUEST_RETENTION).await? else {
                return Ok(IdempotencyState::New);
            };
            if found.fingerprint != request.fingerprint {
                return Ok(IdempotencyState::Another);
            }
            if let Some(answer) = found.answer {
                return Ok(IdempotencyState::Answered(answer));
            }
            if let Some(RequestLease { holder, until_ms }) = &found.lease
                && *until_ms > now
                // Our own: the store failed after it had noted that.
                && *holder != request.id
            {
                return Ok(IdempotencyState::InProgress { until_ms: *until_ms });
            }
            if self.store.take_request(&found.id, found.lease.as_ref(), &lease).await? {
                let ours = found.id == request.id;
                return Ok(if ours {
                    IdempotencyState::New
                } else {
                    IdempotencyState::Interrupted { id: found.id }
                });
            }
        }
    }

    /// Goes on holding a request. False when it is somebody else's by now.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn renew_request(&self, id: &str, holder: &str) -> Result<bool> {
        Ok(self.store.renew_request(id, &self.lease(holder)).await?)
    }

    /// Keeps the answer to a keyed request. The first one stays.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn end_request(&self, id: &str, answer: StoredResponse) -> Result<()> {
        Ok(self.store.answer_request(id, &answer).await?)
    }

    /// Ends a keyed request of which nobody knows whether it was carried out: the next one with its
    /// key finds it cut short.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn give_up_request(&self, id: &str, holder: &str) -> Result<()> {
        Ok(self.store.give_up_request(id, holder).await?)
    }

    /// Forgets a keyed request that changed nothing, unless it is somebody else's by now.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forget_request(&self, id: &str, holder: &str) -> Result<()> {
        Ok(self.store.delete_request(id, holder).await?)
    }

    fn lease(&self, holder: &str) -> RequestLease {
        RequestLease { holder: holder.to_owned(), until_ms: self.now() + REQUEST_LEASE }
    }
}
