//! Holds: for a while a machine is not put to sleep when idle.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Longest time of a hold, seconds: a day bounds what a lost client keeps awake. It can be renewed.
pub const MAX_TTL_SECONDS: u64 = 24 * 3600;

/// Longest `reason`, bytes.
pub const MAX_REASON_BYTES: usize = 256;

/// Keeps a machine from being put to sleep when idle. Ends earlier when the machine
/// stops. Caddis extension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Hold {
    /// When it ends, RFC 3339 with milliseconds.
    pub until: String,
    /// Given with the request, or that it came from inside the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Body of `PUT …/hold`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({ "ttl": 600, "reason": "migration" }))]
pub struct HoldRequest {
    /// How long from now, at most a day; required.
    #[serde(default, deserialize_with = "crate::duration::whole_seconds")]
    #[schema(schema_with = crate::duration::whole_seconds_schema, required = true)]
    pub ttl: Option<u64>,
    /// Shown with the hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
