//! Network policies, as workers carry them out.

use caddis_api::{
    AppName,
    policies::{PolicyPort, PolicySelector},
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The policies of one app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppPolicies {
    /// Name of the app.
    pub app: AppName,
    /// They.
    pub policies: Vec<Policy>,
}

/// A policy: what the machines may do that it selects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Which of the app's machines it is for.
    pub selector: PolicySelector,
    /// Connections that they may make; `None` says nothing of them.
    pub egress: Option<Vec<Allowance>>,
    /// Connections that others may make to them; `None` says nothing of them.
    pub ingress: Option<Vec<Allowance>>,
    /// Whether they may ask the name server.
    pub dns: bool,
}

/// Connections that are allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowance {
    /// With any of these; `None`: with anyone.
    pub peers: Option<Vec<IpNet>>,
    /// On any of these; `None`: on all.
    pub ports: Option<Vec<PolicyPort>>,
}
