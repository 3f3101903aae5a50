//! What a database has to offer for a catalog to be kept in it.
//!
//! A method is one read, or one conditional write that any SQL database does in one transaction:
//! it happens as a whole or not at all, none is interleaved with another (serializable), and it is
//! durable when it returns. A write that a unique column or its condition forbids changes nothing
//! and says which it was; what that means is decided by the rules ([`Catalog`](crate::Catalog)),
//! which never need more than one method at once and may be cut short between any two.
//!
//! Writes marked *frees room* have to work for as long as possible on a full disk: what they record
//! is what gives room back.

use std::net::{IpAddr, Ipv6Addr};

use async_trait::async_trait;
use caddis_api::{
    AppName, MachineId, NetworkName, PolicyId, RegionCode, UnixMillis, VolumeId, WorkerId,
    app::Organization,
};
use tokio::sync::watch;

use crate::{
    Address, AddressKind, AppQuery, AppRecord, PeerConflict, PeerRecord, PeerRow, Placement,
    StoreError, StoredResponse, TokenRecord, VolumePlacement,
};

/// Result of store calls.
pub type Stored<T> = std::result::Result<T, StoreError>;

/// Rows of a catalog. A new store holds one organisation, [`PERSONAL`](crate::PERSONAL), and
/// nothing else. Numbers of organisations, networks and apps rise and are never given again, also
/// when their row is gone.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The organisation of this slug.
    async fn organization(&self, slug: &str) -> Stored<Option<Organization>>;

    /// A network of an organisation.
    async fn network(&self, organization: i32, name: &str) -> Stored<Option<NetworkRow>>;
    /// Does nothing where the organisation has a network of this name, or any has this prefix.
    async fn insert_network(&self, network: NewNetwork) -> Stored<()>;

    /// The app of this name that is not deleted.
    async fn app(&self, name: &str) -> Stored<Option<AppRecord>>;
    /// The app that was made with a key.
    async fn app_of_key(&self, organization: i32, key: &str) -> Stored<Option<AppRecord>>;
    /// Apps by number.
    async fn apps(&self, query: &AppQuery) -> Stored<Vec<AppRecord>>;
    /// How many there are, whatever the query says of `after` and `limit`.
    async fn count_apps(&self, query: &AppQuery) -> Stored<u64>;
    /// Apps that are marked for deletion and not deleted.
    async fn apps_in_deletion(&self) -> Stored<Vec<AppRecord>>;
    /// Inserts an app, and its key if it has one. Gives its number.
    async fn insert_app(&self, app: AppRow) -> Stored<Result<i32, AppConflict>>;
    /// Marks an app for deletion unless it is marked. False when it is deleted. *Frees room.*
    async fn mark_app_deleting(&self, number: i32, at_ms: UnixMillis) -> Stored<bool>;
    /// Deletes an app that is marked and has neither a placement that is not released nor a volume
    /// that is not deleted, its key, its addresses and its policies. False when it was not deleted
    /// by this. *Frees room.*
    async fn delete_app(&self, number: i32, at_ms: UnixMillis) -> Stored<bool>;

    /// A placement, released or not.
    async fn placement(&self, machine: &MachineId) -> Stored<Option<Placement>>;
    /// Placements that are not released, by machine: of one worker or all.
    async fn placements(&self, worker: Option<&WorkerId>) -> Stored<Vec<Placement>>;
    /// Placements of an app that are not released, by machine.
    async fn placements_of(&self, app: i32) -> Stored<Vec<Placement>>;
    /// Inserts a placement in an app that is not marked, and notes it with its request.
    async fn insert_placement(&self, row: PlacementRow) -> Stored<Result<(), PlacementConflict>>;
    /// Moves a placement that is not released and has this epoch, and adds one to the epoch. False
    /// when there is none such.
    async fn move_placement(
        &self,
        machine: &MachineId,
        epoch: u64,
        worker: &WorkerId,
        region: &RegionCode,
    ) -> Stored<bool>;
    /// Marks a placement as released unless it is. *Frees room.*
    async fn release_placement(&self, machine: &MachineId, at_ms: UnixMillis) -> Stored<()>;

    /// A volume, deleted or not.
    async fn volume(&self, id: &VolumeId) -> Stored<Option<VolumePlacement>>;
    /// The volumes of an app, deleted or not, by id.
    async fn volumes_of(&self, app: i32) -> Stored<Vec<VolumePlacement>>;
    /// The volumes of a worker that are not deleted, by id.
    async fn volumes_on(&self, worker: &WorkerId) -> Stored<Vec<VolumePlacement>>;
    /// Inserts a volume in an app that is not marked.
    async fn insert_volume(&self, row: VolumeRow) -> Stored<Result<(), VolumeConflict>>;
    /// Marks a volume as deleted unless it is. *Frees room.*
    async fn delete_volume(&self, id: &VolumeId, at_ms: UnixMillis) -> Stored<()>;
    /// Marks a volume of an app that is not marked as not deleted. False when there is none such.
    async fn undelete_volume(&self, id: &VolumeId) -> Stored<bool>;

    /// Addresses of an app, or of all apps: by app, oldest first.
    async fn addresses(&self, app: Option<i32>) -> Stored<Vec<Address>>;
    /// Inserts an address of an app that is not marked.
    async fn insert_address(&self, row: AddressRow) -> Stored<Result<(), AddressConflict>>;
    /// Deletes an address of an app. False when it has none such. *Frees room.*
    async fn delete_address(&self, app: i32, ip: IpAddr) -> Stored<bool>;
    /// All egress addresses with their blocks of ports, and the number of their last change.
    async fn egress(&self) -> Stored<EgressTable>;
    /// Changes egress addresses where their last change still has the number `from`, which then
    /// rises by one. False where it has not, or where an address or a block is taken. *Frees room.*
    async fn change_egress(&self, from: u64, change: EgressChange) -> Stored<bool>;

    /// A number that rises after each change of [`Self::addresses`], whoever made it, and may rise
    /// without one. A caller that stopped waiting for its change is told of it like any other.
    fn addresses_changed(&self) -> watch::Receiver<u64>;

    /// Network policies of an app, or of all apps: by app, oldest first.
    async fn policies(&self, app: Option<i32>) -> Stored<Vec<PolicyRow>>;
    /// Inserts a policy of an app that is not marked.
    async fn insert_policy(&self, row: PolicyRow) -> Stored<Result<(), PolicyConflict>>;
    /// Puts a policy in place of the one of its id, which an app has that is not marked; when it
    /// was made stays.
    async fn replace_policy(&self, row: PolicyRow) -> Stored<Result<(), PolicyConflict>>;
    /// Deletes a policy of an app. False when it has none such. *Frees room.*
    async fn delete_policy(&self, app: i32, id: &PolicyId) -> Stored<bool>;
    /// The number under which this was pushed to a worker last; 0 before the first.
    async fn push_revision(&self, push: Push, worker: &WorkerId) -> Stored<u64>;
    /// Raises that number above itself and above `known`. The new one. *Frees room*, since what
    /// was deleted is told with it.
    async fn raise_push_revision(&self, push: Push, worker: &WorkerId, known: u64) -> Stored<u64>;
    /// Peers of all networks, by network and name.
    async fn peers(&self) -> Stored<Vec<PeerRecord>>;
    /// Inserts a peer.
    async fn insert_peer(&self, row: PeerRow) -> Stored<Result<(), PeerConflict>>;
    /// Gives a peer of a network another key. False when there is none such.
    async fn change_peer_key(
        &self,
        network: i64,
        name: &str,
        key: &str,
    ) -> Stored<Result<bool, PeerConflict>>;
    /// Deletes a peer of a network. False when there is none such. *Frees room.*
    async fn delete_peer(&self, network: i64, name: &str) -> Stored<bool>;
    /// As [`Self::addresses_changed`], of [`Self::peers`].
    fn peers_changed(&self) -> watch::Receiver<u64>;

    /// Deletes all requests made earlier than `forget_before_ms`; then inserts this one, or gives
    /// the one that has its caller and key. *Frees room.*
    async fn note_request(
        &self,
        row: RequestRow,
        forget_before_ms: UnixMillis,
    ) -> Stored<Option<RequestRow>>;
    /// Replaces the lease of a request that is not answered, where it is still `from`. *Frees
    /// room.*
    async fn take_request(
        &self,
        id: &str,
        from: Option<&RequestLease>,
        to: &RequestLease,
    ) -> Stored<bool>;
    /// Moves the end of the lease that its holder has. False when he has it no more. *Frees room.*
    async fn renew_request(&self, id: &str, lease: &RequestLease) -> Stored<bool>;
    /// Ends the lease if this is its holder. *Frees room.*
    async fn give_up_request(&self, id: &str, holder: &str) -> Stored<()>;
    /// Keeps the answer to a request that has none, and ends its lease. *Frees room.*
    async fn answer_request(&self, id: &str, answer: &StoredResponse) -> Stored<()>;
    /// Deletes a request that is not answered, if this is the holder of its lease. *Frees room.*
    async fn delete_request(&self, id: &str, holder: &str) -> Stored<()>;
    /// The placement last noted with a request, released or not.
    async fn placement_of_request(&self, id: &str) -> Stored<Option<Placement>>;

    /// The token with this hash. Asked for each request: a store that is slow to ask keeps a copy,
    /// if it can tell when that is out of date.
    async fn token(&self, hash: &[u8; 32]) -> Stored<Option<TokenRecord>>;
    /// Inserts a token. False where there is one of this name.
    async fn insert_token(&self, row: TokenRow) -> Stored<bool>;
    /// Puts a token in place of the one of its name, if there is one.
    async fn replace_token(&self, row: TokenRow) -> Stored<()>;

    /// Writes something, to see whether that is possible.
    async fn check(&self, at_ms: UnixMillis) -> Stored<()>;
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkRow {
    /// Number.
    pub number: i64,
    /// Its /48.
    pub prefix: String,
}

/// A network to insert.
#[derive(Debug, Clone)]
pub struct NewNetwork {
    /// Number of its organisation.
    pub organization: i32,
    /// Unique in the organisation.
    pub name: NetworkName,
    /// Its /48; unique.
    pub prefix: String,
    /// When it was made.
    pub created_ms: UnixMillis,
}

/// An app to insert.
#[derive(Debug, Clone)]
pub struct AppRow {
    /// Unique for ever.
    pub id: String,
    /// Unique among apps that are not deleted.
    pub name: AppName,
    /// Number of its organisation.
    pub organization: i32,
    /// Number of its network.
    pub network: i64,
    /// Unique in the organisation, until the app is deleted.
    pub key: Option<String>,
    /// When it was made.
    pub created_ms: UnixMillis,
}

/// What is in the way of an app; the key comes first, since an app that has it has the name too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppConflict {
    /// An app was made with this key.
    Key,
    /// An app that is not deleted has this name.
    Name,
    /// An app has or had this id.
    Id,
}

/// A placement to insert.
#[derive(Debug, Clone)]
pub struct PlacementRow {
    /// Unique for ever.
    pub machine: MachineId,
    /// Unique among placements of the app that are not released.
    pub name: String,
    /// Number of the app.
    pub app: i32,
    /// Who runs it.
    pub worker: WorkerId,
    /// Where that is.
    pub region: RegionCode,
    /// Counts the places it had.
    pub epoch: u64,
    /// Unique for ever.
    pub ipv6: Ipv6Addr,
    /// When it was made.
    pub created_ms: UnixMillis,
    /// Id of the request that makes it. One that is no longer noted is passed over.
    pub request: Option<String>,
}

/// What is in the way of a placement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlacementConflict {
    /// The app is deleted or marked for it.
    App,
    /// The request has a placement that is not released.
    Request(MachineId),
    /// This machine of the app has the name.
    Name(MachineId),
    /// A machine has or had this id or address.
    Identity,
}

/// A volume to insert.
#[derive(Debug, Clone)]
pub struct VolumeRow {
    /// Unique for ever.
    pub id: VolumeId,
    /// Need not be unique.
    pub name: String,
    /// Number of the app.
    pub app: i32,
    /// Who has it.
    pub worker: WorkerId,
    /// Where that is.
    pub region: RegionCode,
    /// Counts the places it had.
    pub epoch: u64,
    /// When it was made.
    pub created_ms: UnixMillis,
}

/// What is in the way of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeConflict {
    /// The app is deleted or marked for it.
    App,
    /// A volume has or had this id.
    Id,
}

/// An address to insert.
#[derive(Debug, Clone)]
pub struct AddressRow {
    /// Number of the app.
    pub app: i32,
    /// Unique, unless its kind is shared: then unique in the app.
    pub ip: IpAddr,
    /// What it is for.
    pub kind: AddressKind,
    /// Number of the network that reaches it, of a private one.
    pub network: Option<i64>,
    /// A region's code; empty for all regions.
    pub region: String,
    /// A tag of the client; may be empty.
    pub service_name: String,
    /// Only where the app has no address of this kind but for these.
    pub only_beside: Option<Vec<IpAddr>>,
    /// When it was given.
    pub created_at: UnixMillis,
}

/// What is in the way of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressConflict {
    /// The app is deleted or marked for it.
    App,
    /// The app has one of this kind.
    Kind,
    /// An app has this very address, which is not shared, or this app has it.
    Address,
}

/// A network policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRow {
    /// Unique.
    pub id: PolicyId,
    /// Number of the app.
    pub app: i32,
    /// Unique in the app.
    pub name: String,
    /// What it says.
    pub document: String,
    /// When it was made.
    pub created_ms: UnixMillis,
    /// When it was last changed.
    pub updated_ms: UnixMillis,
}

/// What workers are told all of at once, under numbers that rise for each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Push {
    /// Network policies.
    Policies,
    /// Egress addresses of machines.
    Egress,
}

/// What is in the way of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyConflict {
    /// The app is deleted or marked for it.
    App,
    /// Another policy of the app has the name.
    Name,
    /// To insert it: there is one of this id. To replace it: the app has none of this id.
    Id,
}

/// An egress address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressRow {
    /// Unique.
    pub ip: IpAddr,
    /// Number of the app.
    pub app: i32,
    /// The machine that alone has it; none when it is of all machines of the app.
    pub machine: Option<MachineId>,
    /// Code of the region.
    pub region: String,
    /// The same for those that were given together, and no others.
    pub pair: u64,
    /// When it was given.
    pub created_at: UnixMillis,
    /// Number of the change by which it was taken away: hosts may not know of that yet, so it is
    /// not given again.
    pub released: Option<u64>,
}

/// A block of ports of an egress address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EgressBlockRow {
    /// The address.
    pub ip: IpAddr,
    /// Which block; unique for the address.
    pub block: u16,
    /// Who has it.
    pub machine: MachineId,
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EgressTable {
    /// Number of the last change.
    pub revision: u64,
    /// By address.
    pub addresses: Vec<EgressRow>,
    /// By address and block.
    pub blocks: Vec<EgressBlockRow>,
}

/// What is to become different.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EgressChange {
    /// Addresses that are new, or other than before.
    pub put: Vec<EgressRow>,
    /// Addresses that are gone.
    pub gone: Vec<IpAddr>,
    /// Blocks that are given. Those that are taken away are taken before.
    pub given: Vec<EgressBlockRow>,
    /// Blocks that are taken away.
    pub taken: Vec<EgressBlockRow>,
}

/// A keyed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRow {
    /// Whose key it is.
    pub caller: String,
    /// Unique for its caller.
    pub key: String,
    /// Unique.
    pub id: String,
    /// Digest of all that makes it this request.
    pub fingerprint: [u8; 32],
    /// When it was made.
    pub created_ms: UnixMillis,
    /// What was answered.
    pub answer: Option<StoredResponse>,
    /// Who is carrying it out.
    pub lease: Option<RequestLease>,
}

/// Who is carrying a request out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestLease {
    /// Another one for each time that a request comes.
    pub holder: String,
    /// Who has not renewed it by then has died.
    pub until_ms: UnixMillis,
}

/// A token.
#[derive(Debug, Clone)]
pub struct TokenRow {
    /// Unique.
    pub name: String,
    /// SHA-256 of its text; unique.
    pub hash: [u8; 32],
    /// Number of its organisation.
    pub organization: i32,
    /// When it was made.
    pub created_ms: UnixMillis,
}
