//! Apps: a name that machines live under.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{AppName, NetworkName};

/// An app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct App {
    /// 16 lowercase letters and digits.
    pub id: String,
    /// Number unique in this installation.
    pub internal_numeric_id: i32,
    /// Name, unique in this installation.
    #[schema(value_type = String)]
    pub name: AppName,
    /// `pending` (no machines yet), `deployed` or `suspended`.
    pub status: String,
    /// Name of its private network.
    #[schema(value_type = String)]
    pub network: NetworkName,
    /// The network's /48.
    pub network_cidr: String,
    /// Machines that are not destroyed.
    pub machine_count: u64,
    /// Volumes.
    pub volume_count: u64,
    /// Owner.
    pub organization: Organization,
    /// Where its services on ports 80 and 443 answer; absent where nothing listens for them.
    /// Caddis extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urls: Option<AppUrls>,
}

/// Where an app's services on ports 80 and 443 answer, for clients that name the app by host name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppUrls {
    /// Host name: `APP.DOMAIN`.
    pub hostname: String,
    /// Of a service on port 80.
    pub http: String,
    /// Of a service on port 443.
    pub https: String,
}

/// An organization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Organization {
    /// Display name.
    pub name: String,
    /// Name in the API.
    pub slug: String,
    /// Number unique in this installation.
    pub internal_numeric_id: i32,
}

/// Body of `POST /v1/apps`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({ "name": "hello", "org_slug": "personal" }))]
pub struct CreateAppRequest {
    /// Wanted name; generated when absent or empty.
    pub name: Option<String>,
    /// Name, as older clients send it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_name: Option<String>,
    /// Owner; required. `personal` is the caller's own.
    #[schema(value_type = String, required = true)]
    pub org_slug: Option<String>,
    /// Private network; empty means the organization's default.
    pub network: Option<String>,
    /// Requests with the same key return the same app.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

/// Reply of `POST /v1/apps`: the specification's two fields and the whole app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreateAppReply {
    /// Milliseconds since the Unix epoch.
    pub created_at: u64,
    /// The app.
    #[serde(flatten)]
    pub app: App,
}

/// Reply of `GET /v1/apps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListAppsReply {
    /// Total number of apps, on all pages.
    pub total_apps: u64,
    /// This page.
    pub apps: Vec<App>,
    /// Cursor of the next page; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}
