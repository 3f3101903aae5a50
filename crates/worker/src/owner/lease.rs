//! Leases: who may change the machine.

use caddis_api::{
    ApiError, ErrorCode, LeaseNonce, UnixMillis,
    lease::{Lease, MAX_TTL_SECONDS},
    time,
};
use caddis_bus::message::{WorkerReply, WorkerResult};

use super::Owner;
use crate::{row::MachineRow, store::Durability};

/// A lease of `ttl` seconds from now.
pub fn grant(
    row: &MachineRow,
    nonce: LeaseNonce,
    ttl: u64,
    owner: String,
    description: String,
    now: UnixMillis,
) -> Lease {
    let expires_at = now.as_seconds() + ttl.clamp(1, MAX_TTL_SECONDS);
    Lease { nonce, expires_at, owner, description, version: row.version.clone() }
}

/// 409 in the words that clients look for.
pub fn held(row: &MachineRow, lease: &Lease) -> ApiError {
    let expires = time::seconds(UnixMillis::from_seconds(lease.expires_at).into());
    ApiError::aborted(format!(
        "machine ID {} lease currently held by {}, expires at {expires}",
        row.id, lease.owner
    ))
}

fn not_found(row: &MachineRow) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("machine ID {} lease not found", row.id))
}

impl Owner {
    /// Refuses when the machine is leased and `nonce` is not the lease's.
    pub(super) fn check_lease(&self, nonce: Option<&LeaseNonce>) -> Result<(), ApiError> {
        let now = self.shared.clock.unix_now();
        match self.row.valid_lease(now) {
            Some(lease) if !self.row.lease_allows(nonce, now) => Err(held(&self.row, lease)),
            _ => Ok(()),
        }
    }

    pub(super) async fn acquire_lease(
        &mut self,
        nonce: Option<LeaseNonce>,
        ttl: u64,
        owner: String,
        description: String,
    ) -> WorkerResult {
        let now = self.shared.clock.unix_now();
        let lease = match (self.row.valid_lease(now), nonce) {
            (None, Some(_)) => return Err(not_found(&self.row)),
            (Some(current), Some(nonce)) if current.nonce == nonce => {
                let (owner, description) = (current.owner.clone(), current.description.clone());
                grant(&self.row, nonce, ttl, owner, description, now)
            }
            (Some(current), _) => return Err(held(&self.row, current)),
            (None, None) => grant(&self.row, LeaseNonce::random(), ttl, owner, description, now),
        };
        self.try_change(Durability::Synced, |draft| draft.row.lease = Some(lease.clone())).await?;
        Ok(WorkerReply::Lease { lease })
    }

    pub(super) fn current_lease(&self) -> WorkerResult {
        let lease = self
            .row
            .valid_lease(self.shared.clock.unix_now())
            .ok_or_else(|| not_found(&self.row))?;
        Ok(WorkerReply::Lease {
            lease: Lease { version: self.row.version.clone(), ..lease.clone() },
        })
    }

    pub(super) async fn release_lease(
        &mut self,
        nonce: Option<&LeaseNonce>,
    ) -> Result<(), ApiError> {
        let now = self.shared.clock.unix_now();
        let lease = self.row.valid_lease(now).ok_or_else(|| not_found(&self.row))?;
        if !self.row.lease_allows(nonce, now) {
            return Err(held(&self.row, lease));
        }
        self.try_change(Durability::Synced, |draft| draft.row.lease = None).await
    }
}
