//! A machine as the API shows it.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    LeaseNonce, MachineId, MachineState, RawConfig, RegionCode, VersionId, event::MachineEvent,
    lease::PublicLease,
};

/// A machine. Optional parts are left out by `summary` lists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Machine {
    /// Stable id.
    pub id: MachineId,
    /// Unique in its app.
    pub name: String,
    /// State.
    pub state: MachineState,
    /// Region.
    #[schema(value_type = String)]
    pub region: RegionCode,
    /// Image it runs.
    pub image_ref: ImageRef,
    /// Same as `version`.
    pub instance_id: VersionId,
    /// Version of the configuration.
    pub version: VersionId,
    /// Address in its private network.
    pub private_ip: String,
    /// RFC 3339, whole seconds.
    pub created_at: String,
    /// RFC 3339, whole seconds.
    pub updated_at: String,
    /// Configuration as sent, with `guest` and `restart` filled in. Lists leave it out of destroyed
    /// machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<RawConfig>,
    /// Always null.
    #[serde(default)]
    pub incomplete_config: Option<RawConfig>,
    /// Latest events, newest first.
    // Shared: machines are copied often, and their events never change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<Arc<MachineEvent>>>,
    /// Health checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<Vec<CheckStatus>>,
    /// `ok`, `unknown` or `unreachable`.
    #[serde(default = "ok", skip_serializing_if = "String::is_empty")]
    pub host_status: String,
    /// Why `host_status` is not `ok`: `guest_silent` (its init does not answer), `disk_full` or
    /// `disk_error` (the VM is paused until its disk can be written). Caddis extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_status_reason: Option<String>,
    /// Taken out of routing.
    #[serde(default)]
    pub cordoned: bool,
    /// Only in the reply to a create or update with `lease_ttl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<LeaseNonce>,
    /// Only in the reply to a create or update: parts of the request, the configuration or the
    /// image that have no effect on this server. Caddis extension.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Only with `include_leases`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<PublicLease>,
    /// Operation in progress. Caddis extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
    /// `hardware` or `emulated`. Caddis extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<String>,
    /// How it was last started: `cold` or `template`. Caddis extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_kind: Option<String>,
    /// Private IPv4 address, reachable from its host. Caddis extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_ipv4: Option<String>,
    /// Total size of the image's layers as in its registry or archive, compressed or not, bytes.
    /// Caddis extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<u64>,
}

impl Machine {
    /// The same, with these lines before its warnings.
    #[must_use]
    pub fn warning(mut self, mut lines: Vec<String>) -> Self {
        lines.append(&mut self.warnings);
        Self { warnings: lines, ..self }
    }
}

fn ok() -> String {
    "ok".to_owned()
}

/// Image of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageRef {
    /// Registry host.
    pub registry: String,
    /// Repository.
    pub repository: String,
    /// Tag; missing when pinned by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// `sha256:…`.
    pub digest: String,
    /// Labels of the image, null when it has none.
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
}

/// A health check's latest result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckStatus {
    /// Its name.
    pub name: String,
    /// `passing`, `warning` or `critical`.
    pub status: String,
    /// Output of the check.
    #[serde(default)]
    pub output: String,
    /// RFC 3339.
    pub updated_at: String,
}

/// An operation on a machine, with its progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// `create`, `start`, `stop`, `restart`, `destroy`.
    pub kind: String,
    /// Current step, e.g. `pull`.
    pub step: String,
    /// Bytes done of this step, where it counts bytes.
    #[serde(default)]
    pub bytes_done: u64,
    /// Total bytes of this step, 0 if unknown.
    #[serde(default)]
    pub bytes_total: u64,
    /// Number of attempts of this step.
    pub attempt: u32,
    /// RFC 3339 with milliseconds.
    pub started_at: String,
    /// Deadline, RFC 3339 with milliseconds.
    pub deadline: String,
    /// The last failure of this step, when it is being tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When the next attempt or a restart is due. RFC 3339 with milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<String>,
}
