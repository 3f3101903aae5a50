//! What the catalog takes and gives.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use caddis_api::{
    AppName, MachineId, NetworkName, PolicyId, RegionCode, UnixMillis, VolumeId, WorkerId,
    app::Organization,
};
use ipnet::IpNet;

/// Where an app is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppState {
    /// In use.
    Active,
    /// Its machines are being destroyed; none can be added.
    Deleting,
}

/// An app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppRecord {
    /// 16 lowercase letters and digits.
    pub id: String,
    /// Rises with every app made, never given again.
    pub number: i32,
    /// Name, unique in the installation.
    pub name: AppName,
    /// Organisation that it belongs to.
    pub organization: Organization,
    /// Name of its network.
    pub network: NetworkName,
    /// The network's /48.
    pub network_prefix: String,
    /// When it was made.
    pub created_ms: UnixMillis,
    /// Where it is in its life.
    pub state: AppState,
}

/// An app to make.
#[derive(Debug, Clone, Default)]
pub struct NewApp {
    /// Name; made up when absent.
    pub name: Option<AppName>,
    /// Slug of its owner.
    pub organization: String,
    /// Network; `default` when absent.
    pub network: Option<NetworkName>,
    /// The same key gives the same app.
    pub idempotency_key: Option<String>,
}

/// Which apps to list.
#[derive(Debug, Clone, Default)]
pub struct AppQuery {
    /// Only of this organisation, by slug.
    pub organization: Option<String>,
    /// Only those with a greater number.
    pub after: i32,
    /// Only those made up to then.
    pub created_until_ms: Option<UnixMillis>,
    /// At most so many.
    pub limit: Option<usize>,
}

/// Listed apps.
#[derive(Debug, Clone)]
pub struct AppPage {
    /// In the order of their numbers.
    pub apps: Vec<AppRecord>,
    /// Matching apps regardless of `after` and `limit`.
    pub total: u64,
    /// There are more after these.
    pub more: bool,
}

/// A machine to place.
#[derive(Debug, Clone)]
pub struct NewPlacement {
    /// Name of its app.
    pub app: AppName,
    /// Name; the caller has checked its form. Made up when absent.
    pub name: Option<String>,
    /// Who is to run it.
    pub worker: WorkerId,
    /// Where that is.
    pub region: RegionCode,
    /// Id of the keyed request that asks for it.
    pub request: Option<String>,
}

/// A machine's unique facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Id of the machine.
    pub machine: MachineId,
    /// Its name, unique in its app.
    pub name: String,
    /// Name of its app.
    pub app: AppName,
    /// Who runs it.
    pub worker: WorkerId,
    /// Where that is.
    pub region: RegionCode,
    /// Counts its placements.
    pub epoch: u64,
    /// Its address: a random /112 in its network, host part 2.
    pub ipv6: Ipv6Addr,
    /// Its network's /48.
    pub network_prefix: String,
    /// When it was made.
    pub created_ms: UnixMillis,
    /// Its name is free again: it is gone or was never made.
    pub released: bool,
}

/// A volume to place.
#[derive(Debug, Clone)]
pub struct NewVolume {
    /// Its id, where the request that asks for it can come again; made up when absent.
    pub id: Option<VolumeId>,
    /// Name of its app.
    pub app: AppName,
    /// Its name; the caller has checked its form.
    pub name: String,
    /// Who is to have it.
    pub worker: WorkerId,
    /// Where that is.
    pub region: RegionCode,
}

/// Where a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePlacement {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// Name of its app.
    pub app: AppName,
    /// Number of its app: names come again.
    pub app_number: i32,
    /// Slug of the app's organisation.
    pub organization: String,
    /// Who has it.
    pub worker: WorkerId,
    /// Where that is.
    pub region: RegionCode,
    /// Counts its placements.
    pub epoch: u64,
    /// When it was made.
    pub created_ms: UnixMillis,
    /// It is deleted, for now or for good, or was never made.
    pub deleted: bool,
}

/// What an address of an app is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressKind {
    /// A public IPv4 address of the app alone.
    V4,
    /// A public IPv6 address of the app alone.
    V6,
    /// The IPv4 address of the shared listeners, which many apps have.
    SharedV4,
    /// An IPv6 address within a private network.
    PrivateV6,
}

impl AddressKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::V4, Self::V6, Self::SharedV4, Self::PrivateV6];

    /// Its name, in the API and in stores.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
            Self::SharedV4 => "shared_v4",
            Self::PrivateV6 => "private_v6",
        }
    }

    /// Whether several apps may have the same address.
    pub fn is_shared(self) -> bool {
        self == Self::SharedV4
    }
}

/// An address of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// What it is for.
    pub kind: AddressKind,
    /// Name of the app.
    pub app: AppName,
    /// Network that reaches it, of a private one.
    pub network: Option<PrivateNetwork>,
    /// A region's code; empty for all regions.
    pub region: String,
    /// A tag of the client; may be empty.
    pub service_name: String,
    /// When it was given.
    pub created_at: UnixMillis,
}

/// A private network by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateNetwork {
    /// Slug of its organisation.
    pub organization: String,
    /// Unique in the organisation.
    pub name: NetworkName,
}

/// An address to give to an app.
#[derive(Debug, Clone)]
pub struct NewAddress {
    /// Name of the app.
    pub app: AppName,
    /// Which one, and what for.
    pub wanted: WantedAddress,
    /// A region's code; empty for all regions.
    pub region: String,
    /// A tag of the client; may be empty.
    pub service_name: String,
}

/// Which address an app is to have.
#[derive(Debug, Clone)]
pub enum WantedAddress {
    /// One of its own, [`AddressKind::V4`] or [`AddressKind::V6`] by what is in the pool.
    Own(AddressPool),
    /// This one of the pool.
    This(IpAddr, AddressPool),
    /// That of the shared listeners; an app that has it keeps it.
    Shared(Ipv4Addr),
    /// One in a private network of an organisation.
    Private {
        /// Slug of the organisation; the app's own unless given.
        organization: Option<String>,
        /// Name of the network; the organisation's default unless given.
        network: Option<NetworkName>,
    },
}

/// Addresses that apps may have as their own.
#[derive(Debug, Clone, Default)]
pub struct AddressPool {
    /// Prefixes of one address family. The first and the last address of each are left out where
    /// they have a meaning of their own: both of IPv4, the first of IPv6.
    pub prefixes: Vec<IpNet>,
    /// Addresses within them that are not given.
    pub reserved: Vec<IpAddr>,
}

/// A network policy of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRecord {
    /// Its id.
    pub id: PolicyId,
    /// Name of the app.
    pub app: AppName,
    /// The app's organization.
    pub organization: Organization,
    /// Its name, unique in the app.
    pub name: String,
    /// What it says, as it was given.
    pub document: String,
    /// When it was made.
    pub created_at: UnixMillis,
    /// When it was last changed.
    pub updated_at: UnixMillis,
}

/// An egress address: what connections of machines to the outside come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressAddress {
    /// The address.
    pub ip: IpAddr,
    /// The machine that alone has it; none when it is of the app.
    pub machine: Option<MachineId>,
    /// Code of the region.
    pub region: String,
    /// When it was given.
    pub created_at: UnixMillis,
    /// Of an app's: what its machines have of it, by machine.
    pub blocks: Vec<EgressBlock>,
}

/// The ports of an egress address that one machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressBlock {
    /// The machine.
    pub machine: MachineId,
    /// First of them.
    pub first_port: u16,
    /// Last of them.
    pub last_port: u16,
}

/// Egress addresses to give.
#[derive(Debug, Clone)]
pub struct NewEgress {
    /// Name of the app.
    pub app: AppName,
    /// The machine that alone is to have them; the app unless given.
    pub machine: Option<MachineId>,
    /// Code of the region.
    pub region: String,
    /// One address of each.
    pub pools: Vec<AddressPool>,
    /// Where the app has more addresses of one family in the region than of the other, and there is
    /// a pool of each: gives one of the other family alone, which belongs to one that is there.
    pub completes: bool,
}

/// An egress address that a machine has, and the first and last port of it if it shares it.
pub type SharedAddress = (IpAddr, Option<(u16, u16)>);

/// A request that came with a key of its client, so that it may be sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyedRequest {
    /// Name of the token it came with: keys of others are others.
    pub caller: String,
    /// The key.
    pub key: String,
    /// Another one each time it comes. What it makes goes by this id from here on, if it is new.
    pub id: String,
    /// Digest of all that makes it this request.
    pub fingerprint: [u8; 32],
}

/// What is known of a request with this key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdempotencyState {
    /// Nothing: it is noted now.
    New,
    /// It came before and somebody is carrying it out.
    InProgress {
        /// So long at least, unless it ends before.
        until_ms: UnixMillis,
    },
    /// It came before and was not answered: it may have been carried out.
    Interrupted {
        /// The id it was given then.
        id: String,
    },
    /// It was answered.
    Answered(StoredResponse),
    /// Another request came with this key.
    Another,
}

/// An answer that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredResponse {
    /// HTTP status code.
    pub status: u16,
    /// Of the body.
    pub content_type: Option<String>,
    /// Absent when it was too long to be kept.
    pub body: Option<Vec<u8>>,
}

/// A token that was presented and is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Its name, for logs and lease owners.
    pub name: String,
    /// Slug of the organisation that `personal` means for its bearer.
    pub organization: String,
    /// What its bearer may see and change.
    pub scope: TokenScope,
}

/// What a token is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenScope {
    /// The whole installation, to read and to change.
    All,
    /// One app with its machines. No token that is stored has this scope yet.
    App {
        /// The app's name.
        name: AppName,
        /// Whether it may also be changed.
        access: Access,
    },
}

/// What is done to a thing; who may write may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Looking at it.
    Read,
    /// Changing it, or running something in it.
    Write,
}
