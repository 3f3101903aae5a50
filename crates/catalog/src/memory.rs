//! A store in memory: for tests, and the shortest statement of what a store has to do.

mod rows;

use std::net::IpAddr;

use async_trait::async_trait;
use caddis_api::{
    MachineId, PolicyId, RegionCode, UnixMillis, VolumeId, WorkerId, app::Organization,
};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::{
    Address, AppQuery, AppRecord, AppState, PERSONAL, PeerConflict, PeerRecord, PeerRow, Placement,
    StoredResponse, TokenRecord, TokenScope, VolumePlacement,
    store::{
        AddressConflict, AddressRow, AppConflict, AppRow, EgressChange, EgressTable, NetworkRow,
        NewNetwork, PlacementConflict, PlacementRow, PolicyConflict, PolicyRow, Push, RequestLease,
        RequestRow, Store, Stored, TokenRow, VolumeConflict, VolumeRow,
    },
};

use rows::{App, Request, Rows, number, personal};

/// A store that ends with its process.
#[derive(Default)]
pub struct MemoryStore {
    rows: Mutex<Rows>,
    address_changes: watch::Sender<u64>,
    peer_changes: watch::Sender<u64>,
}

impl MemoryStore {
    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock()
    }

    fn raise_address_changes(&self) {
        self.address_changes.send_modify(|number| *number += 1);
    }

    fn raise_peer_changes(&self) {
        self.peer_changes.send_modify(|number| *number += 1);
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn organization(&self, slug: &str) -> Stored<Option<Organization>> {
        Ok((slug == PERSONAL).then(personal))
    }

    async fn network(&self, organization: i32, name: &str) -> Stored<Option<NetworkRow>> {
        let rows = self.rows();
        let mut networks = rows.networks.iter().enumerate();
        let found = networks
            .find(|(_, network)| network.organization == organization && network.name == name);
        Ok(found.map(|(index, network)| NetworkRow {
            number: i64::from(number(index)),
            prefix: network.prefix.clone(),
        }))
    }

    async fn insert_network(&self, network: NewNetwork) -> Stored<()> {
        let mut rows = self.rows();
        let same = |other: &NewNetwork| {
            other.prefix == network.prefix
                || (other.organization == network.organization && other.name == network.name)
        };
        if !rows.networks.iter().any(same) {
            rows.networks.push(network);
        }
        Ok(())
    }

    async fn app(&self, name: &str) -> Stored<Option<AppRecord>> {
        Ok(self.rows().records().find(|app| app.name == name))
    }

    async fn app_of_key(&self, organization: i32, key: &str) -> Stored<Option<AppRecord>> {
        let rows = self.rows();
        let of_key = |app: &AppRecord| {
            let row = rows.app(app.number).map(|app| &app.row);
            row.is_some_and(|row| {
                row.organization == organization && row.key.as_deref() == Some(key)
            })
        };
        Ok(rows.records().find(of_key))
    }

    async fn apps(&self, query: &AppQuery) -> Stored<Vec<AppRecord>> {
        let rows = self.rows();
        let later = rows.matching(query).filter(|app| app.number > query.after);
        Ok(later.take(query.limit.unwrap_or(usize::MAX)).collect())
    }

    async fn count_apps(&self, query: &AppQuery) -> Stored<u64> {
        Ok(self.rows().matching(query).count() as u64)
    }

    async fn apps_in_deletion(&self) -> Stored<Vec<AppRecord>> {
        Ok(self.rows().records().filter(|app| app.state == AppState::Deleting).collect())
    }

    async fn insert_app(&self, app: AppRow) -> Stored<Result<i32, AppConflict>> {
        let mut rows = self.rows();
        let any = |same: &dyn Fn(&AppRow) -> bool| {
            rows.apps.iter().any(|other| !other.deleted && same(&other.row))
        };
        let of_key =
            |other: &AppRow| other.organization == app.organization && other.key == app.key;
        if app.key.is_some() && any(&of_key) {
            return Ok(Err(AppConflict::Key));
        }
        if any(&|other| other.name == app.name) {
            return Ok(Err(AppConflict::Name));
        }
        if rows.apps.iter().any(|other| other.row.id == app.id) {
            return Ok(Err(AppConflict::Id));
        }
        rows.apps.push(App { row: app, deleting: false, deleted: false });
        Ok(Ok(number(rows.apps.len() - 1)))
    }

    async fn mark_app_deleting(&self, number: i32, _at_ms: UnixMillis) -> Stored<bool> {
        let mut rows = self.rows();
        let Some(app) = rows.app_mut(number).filter(|app| !app.deleted) else { return Ok(false) };
        app.deleting = true;
        Ok(true)
    }

    async fn delete_app(&self, number: i32, _at_ms: UnixMillis) -> Stored<bool> {
        let mut rows = self.rows();
        let is_empty = !rows.live().any(|row| row.app == number)
            && !rows.volumes.iter().any(|(row, deleted)| row.app == number && !deleted);
        let Some(app) = rows.app_mut(number) else { return Ok(false) };
        let deleted = app.deleting && !app.deleted && is_empty;
        app.deleted |= deleted;
        if deleted {
            rows.addresses.retain(|row| row.app != number);
            rows.policies.retain(|row| row.app != number);
            drop(rows);
            self.raise_address_changes();
        }
        Ok(deleted)
    }

    async fn placement(&self, machine: &MachineId) -> Stored<Option<Placement>> {
        Ok(self.rows().placement(machine))
    }

    async fn placements(&self, worker: Option<&WorkerId>) -> Stored<Vec<Placement>> {
        let rows = self.rows();
        let live = rows.live().filter(|row| worker.is_none_or(|worker| row.worker == *worker));
        let mut found: Vec<_> = live.filter_map(|row| rows.placement(&row.machine)).collect();
        found.sort_by(|one, other| one.machine.as_str().cmp(other.machine.as_str()));
        Ok(found)
    }

    async fn placements_of(&self, app: i32) -> Stored<Vec<Placement>> {
        let rows = self.rows();
        let mut found: Vec<_> = rows
            .live()
            .filter(|row| row.app == app)
            .filter_map(|row| rows.placement(&row.machine))
            .collect();
        found.sort_by(|one, other| one.machine.cmp(&other.machine));
        Ok(found)
    }

    async fn insert_placement(&self, row: PlacementRow) -> Stored<Result<(), PlacementConflict>> {
        let mut rows = self.rows();
        if let Some(conflict) = rows.conflict(&row) {
            return Ok(Err(conflict));
        }
        let of_row = |request: &&mut Request| row.request.as_ref() == Some(&request.row.id);
        if let Some(request) = rows.requests.iter_mut().find(of_row) {
            request.machine = Some(row.machine.clone());
        }
        rows.placements.push((row, false));
        Ok(Ok(()))
    }

    async fn move_placement(
        &self,
        machine: &MachineId,
        epoch: u64,
        worker: &WorkerId,
        region: &RegionCode,
    ) -> Stored<bool> {
        let mut rows = self.rows();
        let is_there = |row: &PlacementRow| row.machine == *machine && row.epoch == epoch;
        let found = rows.placements.iter_mut().find(|(row, released)| !released && is_there(row));
        let Some((row, _)) = found else { return Ok(false) };
        (row.worker, row.region, row.epoch) = (worker.clone(), region.clone(), epoch + 1);
        Ok(true)
    }

    async fn release_placement(&self, machine: &MachineId, _at_ms: UnixMillis) -> Stored<()> {
        let mut rows = self.rows();
        if let Some((_, released)) =
            rows.placements.iter_mut().find(|(row, _)| row.machine == *machine)
        {
            *released = true;
        }
        Ok(())
    }

    async fn volume(&self, id: &VolumeId) -> Stored<Option<VolumePlacement>> {
        Ok(self.rows().volumes_where(|row, _| row.id == *id).pop())
    }

    async fn volumes_of(&self, app: i32) -> Stored<Vec<VolumePlacement>> {
        Ok(self.rows().volumes_where(|row, _| row.app == app))
    }

    async fn volumes_on(&self, worker: &WorkerId) -> Stored<Vec<VolumePlacement>> {
        Ok(self.rows().volumes_where(|row, deleted| row.worker == *worker && !deleted))
    }

    async fn insert_volume(&self, row: VolumeRow) -> Stored<Result<(), VolumeConflict>> {
        let mut rows = self.rows();
        if !rows.is_active(row.app) {
            return Ok(Err(VolumeConflict::App));
        }
        if rows.volumes.iter().any(|(other, _)| other.id == row.id) {
            return Ok(Err(VolumeConflict::Id));
        }
        rows.volumes.push((row, false));
        Ok(Ok(()))
    }

    async fn delete_volume(&self, id: &VolumeId, _at_ms: UnixMillis) -> Stored<()> {
        let mut rows = self.rows();
        let found = rows.volumes.iter_mut().find(|(row, _)| row.id == *id);
        found.into_iter().for_each(|(_, deleted)| *deleted = true);
        Ok(())
    }

    async fn undelete_volume(&self, id: &VolumeId) -> Stored<bool> {
        let mut rows = self.rows();
        let found = rows.volumes.iter().position(|(row, _)| row.id == *id);
        let Some(index) = found.filter(|index| rows.is_active(rows.volumes[*index].0.app)) else {
            return Ok(false);
        };
        rows.volumes[index].1 = false;
        Ok(true)
    }

    async fn addresses(&self, app: Option<i32>) -> Stored<Vec<Address>> {
        let rows = self.rows();
        let mut wanted: Vec<_> =
            rows.addresses.iter().filter(|row| app.is_none_or(|app| app == row.app)).collect();
        wanted.sort_by_key(|row| row.app);
        Ok(wanted.into_iter().filter_map(|row| rows.address(row)).collect())
    }

    async fn insert_address(&self, row: AddressRow) -> Stored<Result<(), AddressConflict>> {
        let mut rows = self.rows();
        if let Some(conflict) = rows.address_conflict(&row) {
            return Ok(Err(conflict));
        }
        rows.addresses.push(row);
        drop(rows);
        self.raise_address_changes();
        Ok(Ok(()))
    }

    async fn delete_address(&self, app: i32, ip: IpAddr) -> Stored<bool> {
        let mut rows = self.rows();
        let before = rows.addresses.len();
        rows.addresses.retain(|row| row.app != app || row.ip != ip);
        let deleted = rows.addresses.len() < before;
        drop(rows);
        self.raise_address_changes();
        Ok(deleted)
    }

    async fn egress(&self) -> Stored<EgressTable> {
        Ok(self.rows().egress.clone())
    }

    async fn change_egress(&self, from: u64, change: EgressChange) -> Stored<bool> {
        let mut rows = self.rows();
        Ok(rows.egress.revision == from && rows.change_egress(change))
    }

    fn addresses_changed(&self) -> watch::Receiver<u64> {
        self.address_changes.subscribe()
    }

    async fn policies(&self, app: Option<i32>) -> Stored<Vec<PolicyRow>> {
        Ok(self.rows().policies(app))
    }

    async fn insert_policy(&self, row: PolicyRow) -> Stored<Result<(), PolicyConflict>> {
        Ok(self.rows().put_policy(row, true))
    }

    async fn replace_policy(&self, row: PolicyRow) -> Stored<Result<(), PolicyConflict>> {
        Ok(self.rows().put_policy(row, false))
    }

    async fn delete_policy(&self, app: i32, id: &PolicyId) -> Stored<bool> {
        Ok(self.rows().delete_policy(app, id))
    }

    async fn push_revision(&self, push: Push, worker: &WorkerId) -> Stored<u64> {
        let of_worker = (push, worker.clone());
        Ok(self.rows().push_revisions.get(&of_worker).copied().unwrap_or_default())
    }

    async fn raise_push_revision(&self, push: Push, worker: &WorkerId, known: u64) -> Stored<u64> {
        let mut rows = self.rows();
        let revision = rows.push_revisions.entry((push, worker.clone())).or_default();
        *revision = known.max(*revision) + 1;
        Ok(*revision)
    }

    async fn peers(&self) -> Stored<Vec<PeerRecord>> {
        let rows = self.rows();
        let mut peers: Vec<_> = rows.peers.iter().collect();
        peers.sort_by_key(|row| (row.network, row.name.clone()));
        Ok(peers.into_iter().filter_map(|row| rows.peer(row)).collect())
    }

    async fn insert_peer(&self, row: PeerRow) -> Stored<Result<(), PeerConflict>> {
        let mut rows = self.rows();
        if let Some(conflict) = rows.peer_conflict(&row) {
            return Ok(Err(conflict));
        }
        rows.peers.push(row);
        drop(rows);
        self.raise_peer_changes();
        Ok(Ok(()))
    }

    async fn change_peer_key(
        &self,
        network: i64,
        name: &str,
        key: &str,
    ) -> Stored<Result<bool, PeerConflict>> {
        let mut rows = self.rows();
        let found = rows.peers.iter().position(|row| row.network == network && row.name == name);
        let Some(index) = found else { return Ok(Ok(false)) };
        let mut others = rows.peers.iter().enumerate().filter(|(other, _)| *other != index);
        if others.any(|(_, row)| row.key == key) {
            return Ok(Err(PeerConflict::Key));
        }
        rows.peers[index].key = key.to_owned();
        drop(rows);
        self.raise_peer_changes();
        Ok(Ok(true))
    }

    async fn delete_peer(&self, network: i64, name: &str) -> Stored<bool> {
        let mut rows = self.rows();
        let before = rows.peers.len();
        rows.peers.retain(|row| row.network != network || row.name != name);
        let deleted = rows.peers.len() < before;
        drop(rows);
        self.raise_peer_changes();
        Ok(deleted)
    }

    fn peers_changed(&self) -> watch::Receiver<u64> {
        self.peer_changes.subscribe()
    }

    async fn note_request(
        &self,
        row: RequestRow,
        forget_before_ms: UnixMillis,
    ) -> Stored<Option<RequestRow>> {
        let mut rows = self.rows();
        rows.requests.retain(|request| request.row.created_ms >= forget_before_ms);
        let same = |other: &&Request| other.row.caller == row.caller && other.row.key == row.key;
        let found = rows.requests.iter().find(same).map(|request| request.row.clone());
        if found.is_none() {
            rows.requests.push(Request { row, machine: None });
        }
        Ok(found)
    }

    async fn take_request(
        &self,
        id: &str,
        from: Option<&RequestLease>,
        to: &RequestLease,
    ) -> Stored<bool> {
        let mut rows = self.rows();
        let as_found = |row: &&mut RequestRow| row.answer.is_none() && row.lease.as_ref() == from;
        let found = rows.request(id).filter(as_found);
        Ok(found.map(|row| row.lease = Some(to.clone())).is_some())
    }

    async fn renew_request(&self, id: &str, lease: &RequestLease) -> Stored<bool> {
        Ok(self.rows().held(id, &lease.holder).map(|row| row.lease = Some(lease.clone())).is_some())
    }

    async fn give_up_request(&self, id: &str, holder: &str) -> Stored<()> {
        if let Some(row) = self.rows().held(id, holder) {
            row.lease = None;
        }
        Ok(())
    }

    async fn answer_request(&self, id: &str, answer: &StoredResponse) -> Stored<()> {
        if let Some(row) = self.rows().request(id).filter(|row| row.answer.is_none()) {
            (row.answer, row.lease) = (Some(answer.clone()), None);
        }
        Ok(())
    }

    async fn delete_request(&self, id: &str, holder: &str) -> Stored<()> {
        let mut rows = self.rows();
        if rows.held(id, holder).is_some_and(|row| row.answer.is_none()) {
            rows.requests.retain(|request| request.row.id != id);
        }
        Ok(())
    }

    async fn placement_of_request(&self, id: &str) -> Stored<Option<Placement>> {
        let rows = self.rows();
        let machine = rows.requests.iter().find(|request| request.row.id == id);
        Ok(machine.and_then(|request| rows.placement(request.machine.as_ref()?)))
    }

    async fn token(&self, hash: &[u8; 32]) -> Stored<Option<TokenRecord>> {
        let rows = self.rows();
        let found = rows.tokens.values().find(|token| token.hash == *hash);
        Ok(found.map(|token| TokenRecord {
            name: token.name.clone(),
            organization: PERSONAL.to_owned(),
            scope: TokenScope::All,
        }))
    }

    async fn insert_token(&self, row: TokenRow) -> Stored<bool> {
        let mut rows = self.rows();
        let is_new = !rows.tokens.contains_key(&row.name);
        if is_new {
            rows.tokens.insert(row.name.clone(), row);
        }
        Ok(is_new)
    }

    async fn replace_token(&self, row: TokenRow) -> Stored<()> {
        self.rows().tokens.insert(row.name.clone(), row);
        Ok(())
    }

    async fn check(&self, _at_ms: UnixMillis) -> Stored<()> {
        Ok(())
    }
}
