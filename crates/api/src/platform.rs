//! Regions, and how the server is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::Guest;

/// Reply of `GET /v1/platform/regions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RegionsReply {
    /// The region that answered.
    #[serde(alias = "Nearest")]
    pub nearest: String,
    /// All there are.
    #[serde(alias = "Regions")]
    pub regions: Vec<Region>,
}

/// A region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Region {
    /// Short name.
    pub code: String,
    /// For people.
    pub name: String,
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
    /// Takes part in private networking.
    pub gateway_available: bool,
    /// Always false here.
    pub requires_paid_plan: bool,
    /// No new machines.
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
    /// Of the server.
    pub version: String,
    /// Whether requests will succeed.
    pub ok: bool,
    /// Why they will not.
    pub problems: Vec<String>,
    /// What works less well than it should, though requests succeed.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// All that are known.
    pub hosts: Vec<HostStatus>,
}

/// Whether a host is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// It is.
    #[default]
    Ok,
    /// It has said nothing for some seconds. The `host_status` of its machines is `unknown`.
    Suspected,
    /// It has said nothing for longer. Its machines are shown as they were, their `host_status` is
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

/// A host that machines run on. What is promised to a machine is not free, whether it runs or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostStatus {
    /// Of its worker.
    pub id: String,
    /// Where it is.
    pub region: String,
    /// Whether it is there. What it has free is 0 where it does not answer.
    #[serde(default)]
    pub state: HostState,
    /// When it last said anything, RFC 3339.
    #[serde(default)]
    pub last_seen: String,
    /// Machines that are not destroyed.
    pub machines: u64,
    /// Those of them that run.
    pub started: u64,
    /// Virtual processors that nobody was promised.
    pub free_cpus: u32,
    /// Memory that nobody was promised, MiB.
    pub free_memory_mb: u64,
    /// Disk that nobody was promised, GiB.
    pub free_disk_gb: u64,
    /// Images it holds; absent when it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<u64>,
    /// What they take up on its disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_bytes: Option<u64>,
}

/// Body of `POST /v1/platform/placements`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlacementsRequest {
    /// Whose machines they would be; `personal` is the caller's own organisation.
    pub org_slug: String,
    /// Regions to try, in their order: codes, aliases and `any`, with commas between. The server's
    /// own, then any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// How many machines; 0 asks how many would fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Their size; performance-1x unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<Guest>,
    /// Not available yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_name: Option<String>,
    /// Not available yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_size_bytes: Option<u64>,
    /// `region`: how much the order of the regions counts, 50 unless given; `spread`: how much that
    /// machines are spread over them, 1 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<BTreeMap<String, i64>>,
}

/// Reply of `POST /v1/platform/placements`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlacementsReply {
    /// Those where machines would go, in the order they are tried.
    #[serde(alias = "Regions")]
    pub regions: Vec<RegionPlacement>,
}

/// What would be placed in a region.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RegionPlacement {
    /// Its code.
    #[serde(alias = "Region")]
    pub region: String,
    /// How many machines.
    #[serde(alias = "Count")]
    pub count: u64,
    /// Hosts that have room for any of them.
    #[serde(alias = "Concurrency")]
    pub concurrency: u64,
}
