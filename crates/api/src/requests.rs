//! Bodies and replies of the machine endpoints that have no better home.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ApiDuration, EventId, MachineState, RawConfig, Signal, VersionId};

/// Body of `POST …/machines`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({
    "config": { "image": "nginx", "guest": { "cpus": 1, "memory_mb": 256 } }
}))]
pub struct CreateMachineRequest {
    /// The configuration; required.
    #[schema(value_type = RawConfig, required = true)]
    pub config: Option<RawConfig>,
    /// Unique in the app; generated when absent or empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Region expression; default is any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Create the machine without starting it.
    #[serde(deserialize_with = "null_is_default")]
    pub skip_launch: bool,
    /// Create the machine cordoned.
    #[serde(deserialize_with = "null_is_default")]
    pub skip_service_registration: bool,
    /// Take a lease of this many seconds in the same step.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::duration::whole_seconds"
    )]
    #[schema(schema_with = crate::duration::whole_seconds_schema)]
    pub lease_ttl: Option<u64>,
    /// Boot without the app's secrets.
    #[serde(deserialize_with = "null_is_default")]
    pub skip_secrets: bool,
    /// Run with at least this version of the app's secrets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_secrets_version: Option<u64>,
    /// On update: the version that must be current.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_version: Option<VersionId>,
}

/// Body of `PATCH …/metadata`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({ "metadata": { "role": "web", "old": null } }))]
pub struct PatchMetadataRequest {
    /// Changes: null or an empty value removes a key, keys not named stay unchanged.
    #[serde(deserialize_with = "null_is_default")]
    pub metadata: BTreeMap<String, Option<String>>,
    /// The version that must be current.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_version: Option<VersionId>,
    /// Ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<String>,
}

/// Body of `POST …/metadata/{key}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({ "value": "web" }))]
pub struct SetMetadataRequest {
    /// The new value.
    pub value: String,
    /// Ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<String>,
}

/// Reply of `GET …/metadata/{key}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MetadataValue {
    /// The value.
    pub value: String,
}

/// An entry of `GET …/versions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineVersion {
    /// Id.
    pub version: VersionId,
    /// The configuration of that version.
    pub user_config: RawConfig,
}

/// For `#[serde(deserialize_with)]`: an explicit null counts as absent, as clients in the field
/// send it.
pub fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Body of `POST …/stop`; all optional, also the body itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({ "signal": "SIGTERM", "timeout": "10s" }))]
pub struct StopRequest {
    /// Overrides `stop_config.signal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<Signal>,
    /// Overrides `stop_config.timeout`; zero means no override.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<ApiDuration>,
}

/// Body of `POST …/signal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({ "signal": "SIGHUP" }))]
pub struct SignalRequest {
    /// Name or number.
    pub signal: Signal,
}

/// Reply of `POST …/start`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StartReply {
    /// State before.
    pub previous_state: MachineState,
    /// Whether it was moved to another host for capacity.
    #[serde(default)]
    pub migrated: bool,
    /// The new host.
    #[serde(default)]
    pub new_host: String,
}

/// Reply of `GET` and `PUT …/memory`: the memory limit of the machine's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Memory {
    /// Limit, MiB. Lasts until the next start.
    pub limit_mb: u64,
    /// Memory still available to them, MiB.
    pub available_mb: u64,
}

/// Body of `PUT …/memory`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetMemoryRequest {
    /// MiB, at most the machine's memory.
    pub limit_mb: u64,
}

/// Body of `POST …/memory/reclaim`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReclaimMemoryRequest {
    /// Amount to reclaim, MiB.
    pub amount_mb: u64,
}

/// Reply of `POST …/memory/reclaim`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReclaimMemoryReply {
    /// Amount reclaimed, MiB.
    pub actual_mb: u64,
}

/// `{"ok": true}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OkReply {
    /// Always true.
    pub ok: bool,
}

impl OkReply {
    /// The only value there is.
    pub const OK: Self = Self { ok: true };
}

/// Reply of `GET …/wait`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WaitReply {
    /// Always true.
    pub ok: bool,
    /// The state reached.
    pub state: MachineState,
    /// The machine's version.
    pub version: VersionId,
    /// The event that led to the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<EventId>,
}
