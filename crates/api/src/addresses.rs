//! Addresses of apps.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::MachineId;

/// An address of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = IPAssignment)]
pub struct IpAssignment {
    /// The address.
    pub ip: String,
    /// Code of the region that answers; `global` for all.
    pub region: String,
    /// Tag of the client, may be empty.
    pub service_name: String,
    /// Whether other apps have the address too, and apps are told apart by host name.
    pub shared: bool,
    /// Whether it is for connections that machines make.
    pub egress: bool,
    /// RFC 3339.
    pub created_at: String,
    /// The network that reaches it, of a `private_v6`.
    pub network: Option<IpAssignmentNetwork>,
    /// Of an egress address: what machines have of it. Caddis extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machines: Option<Vec<EgressPorts>>,
}

/// What there is to say of an address that was released. Caddis extension.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReleasedIp {
    /// What does not work any more without it.
    pub warnings: Vec<String>,
}

/// The ports of an egress address that one machine has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EgressPorts {
    /// Id of the machine.
    pub machine_id: MachineId,
    /// First of them.
    pub first_port: u16,
    /// Last of them.
    pub last_port: u16,
}

/// An address that connections of a machine to the outside come from. Caddis extension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = EgressIP)]
pub struct EgressIp {
    /// Id of the machine; absent of an address of the app that no machine has ports of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<MachineId>,
    /// The address.
    pub ip: String,
    /// `v4` or `v6`.
    pub version: String,
    /// Code of the region.
    pub region: String,
    /// Whose it is.
    pub scope: EgressScope,
    /// First port that the machine has of it, where it is of the app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_port: Option<u16>,
    /// Last port, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_port: Option<u16>,
    /// When it was allocated, RFC 3339.
    pub created_at: String,
}

/// Whose an egress address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EgressScope {
    /// Of the machine alone.
    Machine,
    /// Of the app: its machines in the region share it.
    App,
}

/// Reply of the endpoints of egress addresses of machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = EgressIPs)]
pub struct EgressIps {
    /// IPv4 before IPv6.
    pub egress_ips: Vec<EgressIp>,
}

/// A network by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = IPAssignmentNetwork)]
pub struct IpAssignmentNetwork {
    /// Name; empty for the organization's default network.
    pub name: String,
    /// Slug of its organization.
    pub org_slug: String,
}

/// What an address is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = IPAssignmentType)]
pub enum IpAssignmentType {
    /// A public IPv4 address of the app alone: any port and protocol.
    V4,
    /// A public IPv6 address of the app alone.
    V6,
    /// The IPv4 address of the shared listeners: HTTP and TLS, apps told apart by host name.
    SharedV4,
    /// An IPv6 address within a private network, whose machines reach the app there: any TCP port
    /// without TLS.
    PrivateV6,
    /// An IPv4 address that connections of the app's machines in a region come from; at most 64
    /// machines share one.
    EgressV4,
    /// The same, IPv6.
    EgressV6,
    /// The same, one of each as far as the server has some; where the app has fewer of one family
    /// in the region than of the other, only one of that family, to complete a pair.
    #[serde(alias = "egress-pair")]
    EgressPair,
}

/// Body of `POST /v1/apps/{app}/ip_assignments`. Empty strings count as absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(as = AssignIPRequest, example = json!({ "type": "v4" }))]
pub struct AssignIpRequest {
    /// What the address is for; required.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = IpAssignmentType, required = true)]
    pub kind: Option<IpAssignmentType>,
    /// Code of the region that answers; all unless given. Of an egress address: the region of the
    /// machines; the server's own unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Of a `private_v6`: slug of the organization whose network reaches it; the app's own unless
    /// given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub org_slug: Option<String>,
    /// Of a `private_v6`: name of the network; the organization's default unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Tag of the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// Of a `v4` or `v6`: this very address, instead of the lowest that is free. Caddis extension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
}

/// Reply of `POST /v1/apps/{app}/ip_assignments`: the address, or of a pair both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = AssignIPResponse)]
pub struct AssignIpReply {
    /// The address; of an `egress_pair` its `ip` is null.
    #[serde(flatten)]
    pub assignment: AssignedIp,
    /// The addresses of an `egress_pair`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_pair: Option<IpPair>,
    /// Which connections of the app's machines come from an address of the host all the same.
    /// Caddis extension.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// An address that was assigned, or a pair of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = AssignedIP)]
pub struct AssignedIp {
    /// The address; null where it is a pair.
    pub ip: Option<String>,
    /// As of [`IpAssignment::region`].
    pub region: String,
    /// Tag of the client, may be empty.
    pub service_name: String,
    /// Whether other apps have the address too, and apps are told apart by host name.
    pub shared: bool,
    /// Whether it is for connections that machines make.
    pub egress: bool,
    /// RFC 3339.
    pub created_at: String,
    /// The network that reaches it, of a `private_v6`.
    pub network: Option<IpAssignmentNetwork>,
}

impl From<IpAssignment> for AssignedIp {
    fn from(address: IpAssignment) -> Self {
        Self {
            ip: Some(address.ip),
            region: address.region,
            service_name: address.service_name,
            shared: address.shared,
            egress: address.egress,
            created_at: address.created_at,
            network: address.network,
        }
    }
}

/// Two addresses that were assigned together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = IPPair)]
pub struct IpPair {
    /// IPv4; absent where the server has no such egress addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<String>,
    /// IPv6; likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<String>,
}

/// Reply of `GET /v1/apps/{app}/ip_assignments`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ListIPAssignmentsReply)]
pub struct IpAssignments {
    /// Oldest first.
    pub ips: Vec<IpAssignment>,
}
