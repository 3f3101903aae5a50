//! Leases: the exclusive right to change a machine for a while.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{LeaseNonce, VersionId, requests::OkReply};

/// Default and largest time to live, seconds. The reference names no maximum; a day bounds what a
/// lost client blocks.
pub const DEFAULT_TTL_SECONDS: u64 = 30;
/// See [`DEFAULT_TTL_SECONDS`].
pub const MAX_TTL_SECONDS: u64 = 24 * 3600;

/// A lease as its holder sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lease {
    /// Proof of holding the lease; shown only to its owner.
    #[schema(required = false)]
    pub nonce: LeaseNonce,
    /// Seconds since the Unix epoch.
    pub expires_at: u64,
    /// Owner of the lease.
    pub owner: String,
    /// Description given by the holder.
    #[serde(default)]
    pub description: String,
    /// The machine's current version.
    pub version: VersionId,
}

/// The reply to lease requests: wrapped as clients in the field expect, with the inner fields
/// repeated at the top as the published specification has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseReply {
    /// `success`.
    pub status: String,
    /// The lease.
    pub data: Lease,
    /// The lease again.
    #[serde(flatten)]
    pub lease: Lease,
}

impl From<Lease> for LeaseReply {
    fn from(lease: Lease) -> Self {
        Self { status: "success".to_owned(), data: lease.clone(), lease }
    }
}

/// The reply to the release of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseReleased {
    /// `success`.
    pub status: String,
    /// That it is gone.
    pub data: OkReply,
}

impl Default for LeaseReleased {
    fn default() -> Self {
        Self { status: "success".to_owned(), data: OkReply::OK }
    }
}

/// A lease as others see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PublicLease {
    /// Who holds it.
    pub owner: String,
    /// Description given by the holder.
    #[serde(default)]
    pub description: String,
    /// Seconds since the Unix epoch.
    pub expires_at: u64,
}

impl From<&Lease> for PublicLease {
    fn from(lease: &Lease) -> Self {
        Self {
            owner: lease.owner.clone(),
            description: lease.description.clone(),
            expires_at: lease.expires_at,
        }
    }
}

/// Body of `POST …/lease`; all optional, also the body itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({ "ttl": 60, "description": "deploy" }))]
pub struct LeaseRequest {
    /// Seconds.
    #[serde(default, deserialize_with = "crate::duration::whole_seconds")]
    #[schema(schema_with = crate::duration::whole_seconds_schema)]
    pub ttl: Option<u64>,
    /// Description given by the holder.
    #[serde(default)]
    pub description: Option<String>,
}
