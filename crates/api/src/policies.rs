//! Network policies: which connections the machines of an app may have.
//!
//! A policy only ever allows. Once any policy that selects a machine has a rule of a direction,
//! all else of that direction is refused to the machine.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{MachineId, PolicyId};

/// A network policy of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkPolicy {
    /// Stable id.
    pub id: PolicyId,
    /// Unique in the app.
    pub name: String,
    /// The machines that it is for.
    pub selector: PolicySelector,
    /// What these may do.
    pub rules: Vec<PolicyRule>,
    /// Whether they may ask the name server. Caddis extension.
    #[serde(default)]
    pub dns: PolicyDns,
    /// When it was created, RFC 3339.
    pub created_at: String,
    /// When it was last changed, RFC 3339.
    pub updated_at: String,
}

/// Body of `POST /v1/apps/{app}/network_policies`: the whole policy, new or as it is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(example = json!({
    "name": "web",
    "selector": { "metadata": { "role": "web" } },
    "rules": [
        { "action": "allow", "direction": "egress",
          "ports": [{ "protocol": "tcp", "port": 5432 }], "to": [{ "app": "db" }] }
    ]
}))]
pub struct PutPolicyRequest {
    /// The policy to replace; a new one is made without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// 1 to 63 letters, digits, `-`, `_` and `.`; unique in the app.
    pub name: String,
    /// The machines that it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = true, value_type = PolicySelector)]
    pub selector: Option<PolicySelector>,
    /// What these may do, 1 to 50 rules.
    #[schema(required = true)]
    pub rules: Vec<PolicyRule>,
    /// Whether they may ask the name server; `deny` of any policy counts. Caddis extension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<PolicyDns>,
    /// No effect: taken so that a policy can be sent as it was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// No effect, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<String>,
}

/// Machines of the app. A machine is selected that fits all of what is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicySelector {
    /// All machines, as far as the other fields do not narrow it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all: Option<bool>,
    /// Any of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machines: Option<Vec<SelectedMachine>>,
    /// Those that have all of these values in their metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// A machine of a [`PolicySelector`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SelectedMachine {
    /// Id of the machine.
    pub id: MachineId,
}

/// What machines may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyRule {
    /// Always `allow`.
    pub action: PolicyAction,
    /// Which connections: those that the machines make or those that others make to them.
    pub direction: PolicyDirection,
    /// On any of these; all protocols and ports unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<PolicyPort>>,
    /// Of `egress`: to any of these; everywhere unless given. Caddis extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<PolicyPeer>>,
    /// Of `ingress`: from any of these; from everywhere unless given. Caddis extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<PolicyPeer>>,
}

impl PolicyRule {
    /// The other ends that it names, `to` or `from`.
    pub fn peers(&self) -> Option<&[PolicyPeer]> {
        match self.direction {
            PolicyDirection::Egress => self.to.as_deref(),
            PolicyDirection::Ingress => self.from.as_deref(),
        }
    }
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PolicyAction {
    /// Lets connections pass.
    Allow,
}

/// Which connections a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PolicyDirection {
    /// Those that others make to the machine, but for the proxy and health checks.
    Ingress,
    /// Those that the machine makes, but for those to services behind the proxy.
    Egress,
}

/// A port that connections are made to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyPort {
    /// Its protocol.
    pub protocol: PolicyProtocol,
    /// 1 to 65535; all ports of the protocol unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A protocol of a [`PolicyPort`].
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum PolicyProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6, as for `ping`; it has no ports. Caddis extension.
    Icmp,
}

impl PolicyProtocol {
    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

/// The other end of connections: exactly one of these.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyPeer {
    /// Addresses, as `10.0.0.0/8` or `2001:db8::1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr: Option<String>,
    /// The machines of an app of the same organization, by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// The machines and WireGuard peers of a private network of the same organization, by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// Whether machines may ask the name server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PolicyDns {
    /// Whatever the rules say.
    #[default]
    Allow,
    /// Not at all.
    Deny,
}
