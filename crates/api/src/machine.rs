//! A machine as the API shows it.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    LeaseNonce, MachineId, MachineState, RawConfig, RegionCode, VersionId, config::CheckPurpose,
    event::MachineEvent, hold::Hold, lease::PublicLease,
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
    /// `disk_error` (the VM is paused until its disk can be used). Caddis extension.
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
    /// Keeps it from being put to sleep when idle. Caddis extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
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

    /// Whether traffic may reach one of its services, by its place in `config.services`, as far as
    /// state and checks say: it is started, and all checks of the service and all readiness checks
    /// of the machine pass. Whether it is cordoned is not asked.
    pub fn is_ready(&self, service: usize) -> bool {
        let gating = self.checks.iter().flatten().filter(|check| check.gates(service));
        self.state == MachineState::Started
            && gating.into_iter().all(|check| check.status == CheckState::Passing)
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
    /// `servicecheck-00-http-8080` for a check of a service: its number among those of all
    /// services, its type and port. Otherwise its key in `config.checks`.
    pub name: String,
    /// Latest result; of a machine that does not run, the last one before it stopped.
    pub status: CheckState,
    /// What was found, or why it failed.
    #[serde(default)]
    pub output: String,
    /// Time of the last change of `status`. RFC 3339 with milliseconds.
    pub updated_at: String,
    /// Of a service's check, the place of the service in `config.services`: it gets no traffic
    /// unless the check passes. Caddis extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<usize>,
    /// `readiness`: no service of the machine gets traffic unless the check passes. Caddis
    /// extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<CheckPurpose>,
}

impl CheckStatus {
    /// Whether a service, by its place in `config.services`, gets no traffic unless this passes.
    pub fn gates(&self, service: usize) -> bool {
        self.service == Some(service) || self.kind == Some(CheckPurpose::Readiness)
    }
}

/// How a check stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    /// The last attempt succeeded.
    Passing,
    /// It has not been tried yet since the machine started.
    Warning,
    /// The last attempt failed.
    Critical,
}

impl CheckState {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
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
