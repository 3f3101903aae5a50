//! The rows, and what is found among them.

use std::collections::HashMap;

use caddis_api::{MachineId, PolicyId, WorkerId, app::Organization};

use crate::{
    Address, AppQuery, AppRecord, AppState, PERSONAL, PeerConflict, PeerRecord, PeerRow, Placement,
    PrivateNetwork, VolumePlacement,
    store::{
        AddressConflict, AddressRow, AppRow, EgressBlockRow, EgressChange, EgressTable, NewNetwork,
        PlacementConflict, PlacementRow, PolicyConflict, PolicyRow, Push, RequestRow, TokenRow,
        VolumeRow,
    },
};

#[derive(Default)]
pub(super) struct Rows {
    pub(super) networks: Vec<NewNetwork>,
    pub(super) apps: Vec<App>,
    pub(super) placements: Vec<(PlacementRow, bool)>,
    /// Each with whether it is deleted.
    pub(super) volumes: Vec<(VolumeRow, bool)>,
    /// Oldest first.
    pub(super) addresses: Vec<AddressRow>,
    /// Oldest first.
    pub(super) policies: Vec<PolicyRow>,
    pub(super) push_revisions: HashMap<(Push, WorkerId), u64>,
    pub(super) egress: EgressTable,
    pub(super) peers: Vec<PeerRow>,
    pub(super) requests: Vec<Request>,
    pub(super) tokens: HashMap<String, TokenRow>,
}

/// Its number is its place, from 1, which no other ever has.
pub(super) struct App {
    pub(super) row: AppRow,
    pub(super) deleting: bool,
    pub(super) deleted: bool,
}

pub(super) struct Request {
    pub(super) row: RequestRow,
    pub(super) machine: Option<MachineId>,
}

pub(super) fn personal() -> Organization {
    Organization { name: "Personal".to_owned(), slug: PERSONAL.to_owned(), internal_numeric_id: 1 }
}

pub(super) fn number(index: usize) -> i32 {
    i32::try_from(index + 1).unwrap_or(i32::MAX)
}

impl Rows {
    pub(super) fn app(&self, number: i32) -> Option<&App> {
        self.apps.get(usize::try_from(number).ok()?.checked_sub(1)?)
    }

    pub(super) fn app_mut(&mut self, number: i32) -> Option<&mut App> {
        self.apps.get_mut(usize::try_from(number).ok()?.checked_sub(1)?)
    }

    pub(super) fn network_of(&self, app: &App) -> Option<&NewNetwork> {
        self.network(app.row.network)
    }

    fn network(&self, number: i64) -> Option<&NewNetwork> {
        self.networks.get(usize::try_from(number).ok()?.checked_sub(1)?)
    }

    pub(super) fn peer(&self, row: &PeerRow) -> Option<PeerRecord> {
        let network = self.network(row.network)?;
        Some(PeerRecord {
            name: row.name.clone(),
            organization: PERSONAL.to_owned(),
            network: network.name.clone(),
            network_prefix: network.prefix.clone(),
            key: row.key.clone(),
            address: row.address,
            created_ms: row.created_ms,
        })
    }

    pub(super) fn peer_conflict(&self, row: &PeerRow) -> Option<PeerConflict> {
        let any = |same: &dyn Fn(&PeerRow) -> bool| self.peers.iter().any(same);
        if any(&|other| other.network == row.network && other.name == row.name) {
            Some(PeerConflict::Name)
        } else if any(&|other| other.key == row.key) {
            Some(PeerConflict::Key)
        } else {
            any(&|other| other.address == row.address).then_some(PeerConflict::Address)
        }
    }

    /// Apps that are not deleted, by number.
    pub(super) fn records(&self) -> impl Iterator<Item = AppRecord> {
        let live = self.apps.iter().enumerate().filter(|(_, app)| !app.deleted);
        live.filter_map(|(index, app)| {
            let network = self.network_of(app)?;
            Some(AppRecord {
                id: app.row.id.clone(),
                number: number(index),
                name: app.row.name.clone(),
                organization: personal(),
                network: network.name.clone(),
                network_prefix: network.prefix.clone(),
                created_ms: app.row.created_ms,
                state: if app.deleting { AppState::Deleting } else { AppState::Active },
            })
        })
    }

    pub(super) fn matching(&self, query: &AppQuery) -> impl Iterator<Item = AppRecord> {
        let (organization, until) = (query.organization.clone(), query.created_until_ms);
        self.records().filter(move |app| {
            organization.as_ref().is_none_or(|slug| app.organization.slug == *slug)
                && until.is_none_or(|until| app.created_ms <= until)
        })
    }

    /// Placements that are not released.
    pub(super) fn live(&self) -> impl Iterator<Item = &PlacementRow> {
        self.placements.iter().filter(|(_, released)| !released).map(|(row, _)| row)
    }

    pub(super) fn placement(&self, machine: &MachineId) -> Option<Placement> {
        let (row, released) = self.placements.iter().find(|(row, _)| row.machine == *machine)?;
        let app = self.app(row.app)?;
        Some(Placement {
            machine: row.machine.clone(),
            name: row.name.clone(),
            app: app.row.name.clone(),
            worker: row.worker.clone(),
            region: row.region.clone(),
            epoch: row.epoch,
            ipv6: row.ipv6,
            network_prefix: self.network_of(app)?.prefix.clone(),
            created_ms: row.created_ms,
            released: *released,
        })
    }

    pub(super) fn conflict(&self, row: &PlacementRow) -> Option<PlacementConflict> {
        if !self.is_active(row.app) {
            return Some(PlacementConflict::App);
        }
        let request =
            self.requests.iter().find(|request| row.request.as_ref() == Some(&request.row.id));
        if let Some(machine) = request.and_then(|request| request.machine.as_ref())
            && self.live().any(|other| other.machine == *machine)
        {
            return Some(PlacementConflict::Request(machine.clone()));
        }
        if let Some(holder) =
            self.live().find(|other| other.app == row.app && other.name == row.name)
        {
            return Some(PlacementConflict::Name(holder.machine.clone()));
        }
        let known = |other: &PlacementRow| other.machine == row.machine || other.ipv6 == row.ipv6;
        self.placements.iter().any(|(other, _)| known(other)).then_some(PlacementConflict::Identity)
    }

    /// Whether things can be put into this app.
    pub(super) fn is_active(&self, app: i32) -> bool {
        self.app(app).is_some_and(|app| !app.deleting && !app.deleted)
    }

    /// Those of which this holds, by id; it is given whether they are deleted.
    pub(super) fn volumes_where(
        &self,
        holds: impl Fn(&VolumeRow, bool) -> bool,
    ) -> Vec<VolumePlacement> {
        let found = self.volumes.iter().filter(|(row, deleted)| holds(row, *deleted));
        let mut found: Vec<_> = found
            .filter_map(|(row, deleted)| {
                Some(VolumePlacement {
                    id: row.id.clone(),
                    name: row.name.clone(),
                    app: self.app(row.app)?.row.name.clone(),
                    app_number: row.app,
                    organization: PERSONAL.to_owned(),
                    worker: row.worker.clone(),
                    region: row.region.clone(),
                    epoch: row.epoch,
                    created_ms: row.created_ms,
                    deleted: *deleted,
                })
            })
            .collect();
        found.sort_by(|one, other| one.id.cmp(&other.id));
        found
    }

    pub(super) fn address(&self, row: &AddressRow) -> Option<Address> {
        let network = row.network.and_then(|number| self.network(number));
        Some(Address {
            ip: row.ip,
            kind: row.kind,
            app: self.app(row.app)?.row.name.clone(),
            network: network.map(|network| PrivateNetwork {
                organization: PERSONAL.to_owned(),
                name: network.name.clone(),
            }),
            region: row.region.clone(),
            service_name: row.service_name.clone(),
            created_at: row.created_at,
        })
    }

    pub(super) fn address_conflict(&self, row: &AddressRow) -> Option<AddressConflict> {
        if !self.is_active(row.app) {
            return Some(AddressConflict::App);
        }
        let mut of_app = self.addresses.iter().filter(|other| other.app == row.app);
        if let Some(known) = &row.only_beside {
            let mut alike = of_app.clone().filter(|other| other.kind == row.kind);
            if alike.any(|other| !known.contains(&other.ip)) {
                return Some(AddressConflict::Kind);
            }
        }
        let is_of_another = |other: &AddressRow| {
            other.ip == row.ip && !row.kind.is_shared() && !other.kind.is_shared()
        };
        let taken =
            of_app.any(|other| other.ip == row.ip) || self.addresses.iter().any(is_of_another);
        taken.then_some(AddressConflict::Address)
    }

    pub(super) fn policies(&self, app: Option<i32>) -> Vec<PolicyRow> {
        let wanted = self.policies.iter().filter(|row| app.is_none_or(|app| app == row.app));
        let mut found: Vec<_> = wanted.cloned().collect();
        found.sort_by_key(|row| row.app);
        found
    }

    /// Inserts a policy, or replaces the one of its id.
    pub(super) fn put_policy(
        &mut self,
        row: PolicyRow,
        is_new: bool,
    ) -> Result<(), PolicyConflict> {
        if !self.is_active(row.app) {
            return Err(PolicyConflict::App);
        }
        let is_named = |other: &PolicyRow| other.app == row.app && other.name == row.name;
        if self.policies.iter().any(|other| is_named(other) && other.id != row.id) {
            return Err(PolicyConflict::Name);
        }
        match self.policies.iter_mut().find(|other| other.id == row.id) {
            None if is_new => self.policies.push(row),
            Some(former) if !is_new && former.app == row.app => {
                *former = PolicyRow { created_ms: former.created_ms, ..row };
            }
            _ => return Err(PolicyConflict::Id),
        }
        Ok(())
    }

    pub(super) fn delete_policy(&mut self, app: i32, id: &PolicyId) -> bool {
        let before = self.policies.len();
        self.policies.retain(|row| row.app != app || row.id != *id);
        self.policies.len() < before
    }

    /// Whether the change could be made.
    pub(super) fn change_egress(&mut self, change: EgressChange) -> bool {
        let mut table = self.egress.clone();
        table.blocks.retain(|block| !change.taken.contains(block));
        table.addresses.retain(|row| !change.gone.contains(&row.ip));
        for row in change.put {
            match table.addresses.iter_mut().find(|other| other.ip == row.ip) {
                Some(other) => *other = row,
                None => table.addresses.push(row),
            }
        }
        for given in change.given {
            let is_same =
                |other: &EgressBlockRow| (other.ip, other.block) == (given.ip, given.block);
            if table.blocks.iter().any(is_same) {
                return false;
            }
            table.blocks.push(given);
        }
        table.addresses.sort_by_key(|row| row.ip.to_string());
        table.blocks.sort_by_key(|block| (block.ip.to_string(), block.block));
        table.revision += 1;
        self.egress = table;
        true
    }

    pub(super) fn request(&mut self, id: &str) -> Option<&mut RequestRow> {
        self.requests.iter_mut().map(|request| &mut request.row).find(|row| row.id == id)
    }

    /// The request, if this is the holder of its lease.
    pub(super) fn held(&mut self, id: &str, holder: &str) -> Option<&mut RequestRow> {
        self.request(id)
            .filter(|row| row.lease.as_ref().is_some_and(|lease| lease.holder == holder))
    }
}
