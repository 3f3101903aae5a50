//! Regions, and how the server is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{RegionCode, config::Guest};

/// Reply of `GET /v1/platform/regions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RegionsReply {
    /// The region that answered.
    #[serde(alias = "Nearest")]
    #[schema(value_type = String)]
    pub nearest: RegionCode,
    /// All regions.
    #[serde(alias = "Regions")]
    pub regions: Vec<Region>,
}

/// A region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Region {
    /// Short name.
    #[schema(value_type = String)]
    pub code: RegionCode,
    /// Display name.
    pub name: String,
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
    /// Takes part in private networking.
    pub gateway_available: bool,
    /// Always false here.
    pub requires_paid_plan: bool,
    /// Accepts no new machines.
    pub deprecated: bool,
    /// Machines of the smallest size that would fit now.
    pub capacity: i64,
    /// Part of the world; empty when not configured.
    pub geo_region: String,
    /// Always false here.
    pub mpg_available: bool,
}

/// Reply of `GET /v1/platform/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlatformStatus {
    /// Version of the server.
    pub version: String,
    /// Whether requests will succeed.
    pub ok: bool,
    /// Reasons why not.
    pub problems: Vec<String>,
    /// Problems that do not make requests fail.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// All known hosts.
    pub hosts: Vec<HostStatus>,
}

/// Availability of a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// Available.
    #[default]
    Ok,
    /// No heartbeat for some seconds. The `host_status` of its machines is `unknown`.
    Suspected,
    /// No heartbeat for longer. Its machines are shown as last known, their `host_status` is
    /// `unreachable`.
    Unreachable,
    /// Its machines are being stopped for a shutdown, and none starts.
    Draining,
}

impl HostState {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Suspected => "suspected",
            Self::Unreachable => "unreachable",
            Self::Draining => "draining",
        }
    }
}

/// A host that machines run on. Resources reserved for a machine are not free, whether it runs or
/// not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostStatus {
    /// Id of its worker.
    pub id: String,
    /// Region.
    #[schema(value_type = String)]
    pub region: RegionCode,
    /// Availability. Free resources are 0 if the host does not answer.
    #[serde(default)]
    pub state: HostState,
    /// Time of its last heartbeat, RFC 3339.
    #[serde(default)]
    pub last_seen: String,
    /// Machines that are not destroyed.
    pub machines: u64,
    /// Running machines.
    pub started: u64,
    /// Free vCPUs, reserved for no machine.
    pub free_cpus: u32,
    /// Free memory, reserved for no machine, MiB.
    pub free_memory_mb: u64,
    /// Free disk, reserved for no machine, GiB.
    pub free_disk_gb: u64,
    /// Free space for volumes, GiB; absent if it is not limited or unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_volume_gb: Option<u64>,
    /// Volumes that are not deleted.
    #[serde(default)]
    pub volumes: u64,
    /// Number of images; absent if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<u64>,
    /// Disk space used by the images, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_bytes: Option<u64>,
}

/// Body of `POST /v1/platform/placements`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlacementsRequest {
    /// Organization of the machines; `personal` is the caller's own.
    pub org_slug: String,
    /// Regions to try, in this order: comma-separated codes, aliases and `any`; default: the
    /// server's own, then any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Number of machines; 0 returns how many would fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Size of the machines; default performance-1x.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<Guest>,
    /// Not available yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_name: Option<String>,
    /// Not available yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_size_bytes: Option<u64>,
    /// Weights: `region` for the order of the regions, default 50; `spread` for spreading machines
    /// over them, default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<BTreeMap<String, i64>>,
}

/// Reply of `POST /v1/platform/placements`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlacementsReply {
    /// Regions where machines would be placed, in the order they are tried.
    #[serde(alias = "Regions")]
    pub regions: Vec<RegionPlacement>,
}

/// Placement in a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RegionPlacement {
    /// Region code.
    #[serde(alias = "Region")]
    #[schema(value_type = String)]
    pub region: RegionCode,
    /// Number of machines.
    #[serde(alias = "Count")]
    pub count: u64,
    /// Hosts with capacity for at least one of them.
    #[serde(alias = "Concurrency")]
    pub concurrency: u64,
}
