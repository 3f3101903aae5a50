//! The catalog in one SQLite file: WAL, fsync before every answer, one thread that owns the
//! connection. The file belongs to one process, which the lock on its data directory sees to.

mod addresses;
mod apps;
mod copy;
mod egress;
mod error;
mod peers;
mod placements;
mod policies;
mod pushes;
mod requests;
mod schema;
#[cfg(test)]
mod tests;
mod thread;
mod tokens;
mod volumes;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use caddis_api::{
    MachineId, PolicyId, RegionCode, UnixMillis, VolumeId, WorkerId, app::Organization,
};
use caddis_disk::Reserve;
use rusqlite::{Connection, params};
use tokio::sync::watch;

use crate::{
    Address, AppQuery, AppRecord, PeerConflict, PeerRecord, PeerRow, Placement, StoredResponse,
    TokenRecord, VolumePlacement,
    store::{
        AddressConflict, AddressRow, AppConflict, AppRow, EgressChange, EgressTable, NetworkRow,
        NewNetwork, PlacementConflict, PlacementRow, PolicyConflict, PolicyRow, Push, RequestLease,
        RequestRow, Store, Stored, TokenRow, VolumeConflict, VolumeRow,
    },
};

pub use error::SqliteError;

/// The store of an installation of one host.
pub struct SqliteStore {
    path: PathBuf,
    owner: thread::Owner,
    tokens: tokens::Tokens,
    address_changes: addresses::Changes,
    peer_changes: addresses::Changes,
}

impl SqliteStore {
    /// Opens the catalog at `path`; makes it, with the organisation `personal`, when there is no
    /// such file. Blocks.
    ///
    /// # Errors
    /// [`SqliteError::Corrupt`], [`SqliteError::Foreign`] or [`SqliteError::Newer`] for a file that
    /// is not to be touched, [`SqliteError::Open`] for one that can't be opened.
    pub fn open(path: &Path) -> Result<Self, SqliteError> {
        Self::open_with(path, Arc::new(Reserve::none()))
    }

    /// The same, with a reserve of room for what must be recorded also when the disk is full.
    /// Blocks.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(path: &Path, reserve: Arc<Reserve>) -> Result<Self, SqliteError> {
        let open_error = |reason: String| SqliteError::Open { path: path.to_owned(), reason };
        let connection = schema::open(path, &reserve)?;
        let tokens = tokens::Tokens::read(&connection).map_err(|e| open_error(e.to_string()))?;
        let owner = thread::Owner::new(connection, path.to_owned(), reserve)
            .map_err(|e| open_error(e.to_string()))?;
        let address_changes = addresses::Changes::new();
        let peer_changes = addresses::Changes::new();
        Ok(Self { path: path.to_owned(), owner, tokens, address_changes, peer_changes })
    }

    /// Writes a consistent copy to a new file while the catalog is in use.
    ///
    /// # Errors
    /// [`SqliteError::Backup`], also when the file exists.
    pub async fn backup(&self, to: &Path) -> Result<(), SqliteError> {
        let (from, target) = (self.path.clone(), to.to_owned());
        // A connection of its own reads one snapshot; changes go on meanwhile.
        tokio::task::spawn_blocking(move || copy::copy(&from, &target))
            .await
            .map_err(|e| SqliteError::Backup { path: to.to_owned(), reason: e.to_string() })?
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn organization(&self, slug: &str) -> Stored<Option<Organization>> {
        let slug = slug.to_owned();
        self.owner.run("read an organization", move |c| apps::organization(c, &slug)).await
    }

    async fn network(&self, organization: i32, name: &str) -> Stored<Option<NetworkRow>> {
        let name = name.to_owned();
        self.owner.run("read a network", move |c| apps::network(c, organization, &name)).await
    }

    async fn insert_network(&self, network: NewNetwork) -> Stored<()> {
        self.owner.run("make a network", move |c| apps::insert_network(c, &network)).await
    }

    async fn app(&self, name: &str) -> Stored<Option<AppRecord>> {
        let name = name.to_owned();
        self.owner.run("read an app", move |c| apps::find(c, &name)).await
    }

    async fn app_of_key(&self, organization: i32, key: &str) -> Stored<Option<AppRecord>> {
        let key = key.to_owned();
        self.owner
            .run("read an idempotency key", move |c| apps::of_key(c, organization, &key))
            .await
    }

    async fn apps(&self, query: &AppQuery) -> Stored<Vec<AppRecord>> {
        let query = query.clone();
        self.owner.run("list apps", move |c| apps::list(c, &query)).await
    }

    async fn count_apps(&self, query: &AppQuery) -> Stored<u64> {
        let query = query.clone();
        self.owner.run("list apps", move |c| apps::count(c, &query)).await
    }

    async fn apps_in_deletion(&self) -> Stored<Vec<AppRecord>> {
        self.owner.run("list apps", |c| apps::in_deletion(c)).await
    }

    async fn insert_app(&self, app: AppRow) -> Stored<Result<i32, AppConflict>> {
        self.owner.run("make an app", move |c| apps::insert(c, &app)).await
    }

    async fn mark_app_deleting(&self, number: i32, at_ms: UnixMillis) -> Stored<bool> {
        let attempt = "mark an app for deletion";
        self.owner.run_anyway(attempt, move |c| apps::mark_deleting(c, number, at_ms)).await
    }

    async fn delete_app(&self, number: i32, at_ms: UnixMillis) -> Stored<bool> {
        let changes = self.address_changes.clone();
        let delete = move |connection: &mut Connection| {
            let deleted = apps::delete(connection, number, at_ms)?;
            changes.raise();
            Ok(deleted)
        };
        self.owner.run_anyway("delete an app", delete).await
    }

    async fn placement(&self, machine: &MachineId) -> Stored<Option<Placement>> {
        let machine = machine.clone();
        self.owner.run("look for a machine", move |c| placements::find(c, &machine)).await
    }

    async fn placements(&self, worker: Option<&WorkerId>) -> Stored<Vec<Placement>> {
        let worker = worker.cloned();
        self.owner.run("list machines", move |c| placements::list(c, worker.as_ref())).await
    }

    async fn placements_of(&self, app: i32) -> Stored<Vec<Placement>> {
        self.owner.run("list machines", move |c| placements::of_app(c, app)).await
    }

    async fn insert_placement(&self, row: PlacementRow) -> Stored<Result<(), PlacementConflict>> {
        self.owner.run("place a machine", move |c| placements::insert(c, &row)).await
    }

    async fn move_placement(
        &self,
        machine: &MachineId,
        epoch: u64,
        worker: &WorkerId,
        region: &RegionCode,
    ) -> Stored<bool> {
        let (machine, worker, region) = (machine.clone(), worker.clone(), region.clone());
        self.owner
            .run("move a machine", move |c| {
                placements::set_worker(c, &machine, epoch, (&worker, &region))
            })
            .await
    }

    async fn release_placement(&self, machine: &MachineId, at_ms: UnixMillis) -> Stored<()> {
        let machine = machine.clone();
        self.owner
            .run_anyway("release a machine", move |c| placements::release(c, &machine, at_ms))
            .await
    }

    async fn volume(&self, id: &VolumeId) -> Stored<Option<VolumePlacement>> {
        let id = id.clone();
        self.owner.run("look for a volume", move |c| volumes::find(c, &id)).await
    }

    async fn volumes_of(&self, app: i32) -> Stored<Vec<VolumePlacement>> {
        self.owner.run("list volumes", move |c| volumes::of_app(c, app)).await
    }

    async fn volumes_on(&self, worker: &WorkerId) -> Stored<Vec<VolumePlacement>> {
        let worker = worker.clone();
        self.owner.run("list volumes", move |c| volumes::on(c, &worker)).await
    }

    async fn insert_volume(&self, row: VolumeRow) -> Stored<Result<(), VolumeConflict>> {
        self.owner.run("place a volume", move |c| volumes::insert(c, &row)).await
    }

    async fn delete_volume(&self, id: &VolumeId, at_ms: UnixMillis) -> Stored<()> {
        let id = id.clone();
        self.owner.run_anyway("delete a volume", move |c| volumes::delete(c, &id, at_ms)).await
    }

    async fn undelete_volume(&self, id: &VolumeId) -> Stored<bool> {
        let id = id.clone();
        self.owner.run("undelete a volume", move |c| volumes::undelete(c, &id)).await
    }

    async fn addresses(&self, app: Option<i32>) -> Stored<Vec<Address>> {
        self.owner.run("list addresses", move |c| addresses::list(c, app)).await
    }

    async fn insert_address(&self, row: AddressRow) -> Stored<Result<(), AddressConflict>> {
        let changes = self.address_changes.clone();
        self.owner
            .run("give an app an address", move |connection| {
                let inserted = addresses::insert(connection, &row)?;
                changes.raise();
                Ok(inserted)
            })
            .await
    }

    async fn delete_address(&self, app: i32, ip: IpAddr) -> Stored<bool> {
        let changes = self.address_changes.clone();
        let delete = move |connection: &mut Connection| {
            let deleted = addresses::delete(connection, app, ip)?;
            changes.raise();
            Ok(deleted)
        };
        self.owner.run_anyway("release an address", delete).await
    }

    async fn egress(&self) -> Stored<EgressTable> {
        self.owner.run("list egress addresses", egress::read).await
    }

    async fn change_egress(&self, from: u64, change: EgressChange) -> Stored<bool> {
        let attempt = "change egress addresses";
        self.owner.run_anyway(attempt, move |c| egress::change(c, from, &change)).await
    }

    fn addresses_changed(&self) -> watch::Receiver<u64> {
        self.address_changes.subscribe()
    }

    async fn policies(&self, app: Option<i32>) -> Stored<Vec<PolicyRow>> {
        self.owner.run("list network policies", move |c| policies::list(c, app)).await
    }

    async fn insert_policy(&self, row: PolicyRow) -> Stored<Result<(), PolicyConflict>> {
        self.owner.run("make a network policy", move |c| policies::insert(c, &row)).await
    }

    async fn replace_policy(&self, row: PolicyRow) -> Stored<Result<(), PolicyConflict>> {
        self.owner.run("change a network policy", move |c| policies::replace(c, &row)).await
    }

    async fn delete_policy(&self, app: i32, id: &PolicyId) -> Stored<bool> {
        let id = id.clone();
        let delete = move |c: &mut Connection| policies::delete(c, app, &id);
        self.owner.run_anyway("delete a network policy", delete).await
    }

    async fn push_revision(&self, push: Push, worker: &WorkerId) -> Stored<u64> {
        let worker = worker.clone();
        let read = move |c: &mut Connection| pushes::revision(c, push, &worker);
        self.owner.run("look for the number of what a worker was told", read).await
    }

    async fn raise_push_revision(&self, push: Push, worker: &WorkerId, known: u64) -> Stored<u64> {
        let worker = worker.clone();
        let raise = move |c: &mut Connection| pushes::raise(c, push, &worker, known);
        self.owner.run_anyway("raise the number of what a worker is told", raise).await
    }

    async fn peers(&self) -> Stored<Vec<PeerRecord>> {
        self.owner.run("list peers", |c| peers::list(c)).await
    }

    async fn insert_peer(&self, row: PeerRow) -> Stored<Result<(), PeerConflict>> {
        let changes = self.peer_changes.clone();
        self.owner
            .run("make a peer", move |connection| {
                let inserted = peers::insert(connection, &row)?;
                changes.raise();
                Ok(inserted)
            })
            .await
    }

    async fn change_peer_key(
        &self,
        network: i64,
        name: &str,
        key: &str,
    ) -> Stored<Result<bool, PeerConflict>> {
        let (changes, name, key) = (self.peer_changes.clone(), name.to_owned(), key.to_owned());
        self.owner
            .run("change the key of a peer", move |connection| {
                let changed = peers::change_key(connection, network, &name, &key)?;
                changes.raise();
                Ok(changed)
            })
            .await
    }

    async fn delete_peer(&self, network: i64, name: &str) -> Stored<bool> {
        let (changes, name) = (self.peer_changes.clone(), name.to_owned());
        let delete = move |connection: &mut Connection| {
            let deleted = peers::delete(connection, network, &name)?;
            changes.raise();
            Ok(deleted)
        };
        self.owner.run_anyway("remove a peer", delete).await
    }

    fn peers_changed(&self) -> watch::Receiver<u64> {
        self.peer_changes.subscribe()
    }

    async fn note_request(
        &self,
        row: RequestRow,
        forget_before_ms: UnixMillis,
    ) -> Stored<Option<RequestRow>> {
        self.owner
            .run_anyway("note a request", move |c| requests::note(c, &row, forget_before_ms))
            .await
    }

    async fn take_request(
        &self,
        id: &str,
        from: Option<&RequestLease>,
        to: &RequestLease,
    ) -> Stored<bool> {
        let (id, from, to) = (id.to_owned(), from.cloned(), to.clone());
        self.owner
            .run_anyway("take over a request", move |c| requests::take(c, &id, from.as_ref(), &to))
            .await
    }

    async fn renew_request(&self, id: &str, lease: &RequestLease) -> Stored<bool> {
        let (id, lease) = (id.to_owned(), lease.clone());
        self.owner
            .run_anyway("go on with a request", move |c| requests::renew(c, &id, &lease))
            .await
    }

    async fn give_up_request(&self, id: &str, holder: &str) -> Stored<()> {
        let (id, holder) = (id.to_owned(), holder.to_owned());
        self.owner
            .run_anyway("give up a request", move |c| requests::give_up(c, &id, &holder))
            .await
    }

    async fn answer_request(&self, id: &str, answer: &StoredResponse) -> Stored<()> {
        let (id, answer) = (id.to_owned(), answer.clone());
        self.owner.run_anyway("keep an answer", move |c| requests::answer(c, &id, &answer)).await
    }

    async fn delete_request(&self, id: &str, holder: &str) -> Stored<()> {
        let (id, holder) = (id.to_owned(), holder.to_owned());
        self.owner.run_anyway("forget a request", move |c| requests::delete(c, &id, &holder)).await
    }

    async fn placement_of_request(&self, id: &str) -> Stored<Option<Placement>> {
        let id = id.to_owned();
        self.owner
            .run("look for a request's machine", move |c| placements::of_request(c, &id))
            .await
    }

    async fn token(&self, hash: &[u8; 32]) -> Stored<Option<TokenRecord>> {
        Ok(self.tokens.get(hash))
    }

    async fn insert_token(&self, row: TokenRow) -> Stored<bool> {
        let tokens = self.tokens.clone();
        self.owner.run("make a token", move |c| tokens.insert(c, &row, false)).await
    }

    async fn replace_token(&self, row: TokenRow) -> Stored<()> {
        let tokens = self.tokens.clone();
        self.owner.run("replace a token", move |c| tokens.insert(c, &row, true).map(drop)).await
    }

    async fn check(&self, at_ms: UnixMillis) -> Stored<()> {
        self.owner
            .run("write", move |connection| {
                // Whether it can be written is the question, not whether this row survives a power
                // cut.
                let write = |connection: &Connection| {
                    connection.pragma_update(None, "synchronous", "NORMAL")?;
                    connection.execute(
                        "INSERT INTO health (only, checked_ms) VALUES (0, ?1)
                         ON CONFLICT (only) DO UPDATE SET checked_ms = excluded.checked_ms",
                        params![at_ms.as_u64()],
                    )
                };
                let written = write(connection);
                connection.pragma_update(None, "synchronous", "FULL")?;
                written.map(drop)
            })
            .await
    }
}
