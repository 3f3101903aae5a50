//! Regions.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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
