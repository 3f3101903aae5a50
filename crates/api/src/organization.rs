//! What is seen of a whole organization.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{
    AppName, MachineId, MachineState, RawConfig, RegionCode, VersionId, app::Organization,
    config::Guest,
};

/// Reply of `GET /v1/orgs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OrganizationList {
    /// Organizations that the token has access to.
    pub organizations: Vec<Organization>,
}

/// Reply of `GET /v1/orgs/{org}/machines`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OrganizationMachines {
    /// This page.
    pub machines: Vec<OrganizationMachine>,
    /// Regions that did not answer.
    pub error_regions: Vec<String>,
    /// Cursor of the next page; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    /// The last machine of this page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_machine_id: Option<String>,
    /// Time of its last change, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_updated_at: Option<String>,
}

/// A machine as lists of an organization show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OrganizationMachine {
    /// Stable id.
    pub id: MachineId,
    /// Its app.
    #[schema(value_type = String)]
    pub app_name: AppName,
    /// Unique in its app.
    pub name: String,
    /// State.
    pub state: MachineState,
    /// Region.
    #[schema(value_type = String)]
    pub region: RegionCode,
    /// Address in its private network.
    pub private_ip: String,
    /// Version of the configuration.
    pub version: VersionId,
    /// RFC 3339, whole seconds.
    pub created_at: String,
    /// RFC 3339, whole seconds.
    pub updated_at: String,
    /// The main parts of its configuration; left out by `summary`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<MachineOverview>,
}

/// The main parts of a machine's configuration, as they were sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineOverview {
    /// Image reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Resources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Guest>)]
    pub guest: Option<Value>,
    /// User-defined key-value pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<std::collections::BTreeMap<String, String>>)]
    pub metadata: Option<Map<String, Value>>,
}

impl From<RawConfig> for MachineOverview {
    fn from(config: RawConfig) -> Self {
        let mut config = config.fields();
        let map = |value| if let Value::Object(map) = value { Some(map) } else { None };
        Self {
            image: config.get("image").and_then(Value::as_str).map(str::to_owned),
            guest: config.remove("guest"),
            metadata: config.remove("metadata").and_then(map),
        }
    }
}
