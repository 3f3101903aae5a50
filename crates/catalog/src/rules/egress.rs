//! Egress addresses: each is of one machine, or of an app's machines in one region, of which at
//! most 64 share it, with a block of ports each.
//!
//! ```text
//! (free) ──allocate──▶ of a machine ──promote──▶ of an app
//!   ▲    ──allocate──────────────────────────────▶ │
//!   │                        │ release, or the machine is gone
//!   │                        ▼                     ▼
//!   └──every host knows── released ◀──release, or the app is gone
//! ```
//! What machines have of the addresses of their app follows from the addresses and the machines
//! (`settle`). All changes are made where nobody made another one meanwhile, and else thought over
//! again.

mod blocks;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
};

use caddis_api::{MachineId, WorkerId};
use ipnet::IpNet;
use tokio::sync::watch;

use self::blocks::{block, is_own, ports, settle};
use super::Catalog;
use crate::{
    AddressPool, AppRecord, AppState, CatalogError, EgressAddress, EgressBlock, NewEgress,
    Placement, Result, SharedAddress,
    store::{EgressBlockRow, EgressChange, EgressRow, EgressTable},
};

impl Catalog {
    /// Gives an app or one machine of it egress addresses: the lowest that are free, all or none.
    /// Machines of an app that have none get a block of ports. What was given is told, with what it
    /// belongs to.
    ///
    /// # Errors
    /// [`CatalogError::AppNotFound`], [`CatalogError::AppInDeletion`],
    /// [`CatalogError::MachineNotFound`], [`CatalogError::EgressTaken`],
    /// [`CatalogError::EgressExhausted`].
    pub async fn allocate_egress(&self, new: NewEgress) -> Result<Vec<EgressAddress>> {
        let mut given: Vec<IpAddr> = Vec::new();
        self.change_egress_of(&new.app, |app, machines, table| {
            if app.state == AppState::Deleting {
                return Err(CatalogError::AppInDeletion(new.app.clone()));
            }
            if let Some(machine) = &new.machine {
                if !machines.iter().any(|placement| placement.machine == *machine) {
                    return Err(CatalogError::MachineNotFound(machine.clone()));
                }
                if table.addresses.iter().any(|row| is_own(row, machine)) {
                    return Err(CatalogError::EgressTaken(machine.clone()));
                }
            }
            let taken: HashSet<_> = table.addresses.iter().map(|row| row.ip).collect();
            given.clear();
            let lone = if new.completes { lone(app, &new, table) } else { None };
            // There is one change of each number.
            let pair = lone.as_ref().map_or(table.revision + 1, |(pair, _)| *pair);
            if let Some((_, there)) = lone {
                given.push(there);
            }
            for pool in &new.pools {
                let is_there = |ip: &IpAddr| pool.prefixes.iter().any(|of| same_family(of, ip));
                if given.iter().any(is_there) {
                    continue;
                }
                let exhausted = || CatalogError::EgressExhausted { pool: pool.to_string() };
                let ip = lowest_free(pool, &taken).ok_or_else(exhausted)?;
                given.push(ip);
                table.addresses.push(EgressRow {
                    ip,
                    app: app.number,
                    machine: new.machine.clone(),
                    region: new.region.clone(),
                    pair,
                    created_at: self.now(),
                    released: None,
                });
            }
            Ok(())
        })
        .await?;
        let all = self.egress_addresses(&new.app).await?;
        Ok(all.into_iter().filter(|address| given.contains(&address.ip)).collect())
    }

    /// Egress addresses of an app and of its machines, oldest first.
    ///
    /// # Errors
    /// [`CatalogError::AppNotFound`].
    pub async fn egress_addresses(&self, app: &str) -> Result<Vec<EgressAddress>> {
        let app = self.known_app(app).await?;
        let table = self.store.egress().await?;
        let mut rows: Vec<_> = table.addresses.iter().filter(|row| is_of(row, &app)).collect();
        rows.sort_by_key(|row| (row.pair, row.ip));
        Ok(rows.into_iter().map(|row| shown(row, &table)).collect())
    }

    /// Egress addresses of a region that none of these prefixes has, lowest first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn egress_outside(&self, region: &str, prefixes: &[IpNet]) -> Result<Vec<IpAddr>> {
        let table = self.store.egress().await?;
        let is_outside = |row: &&EgressRow| {
            row.released.is_none()
                && row.region == region
                && !prefixes.iter().any(|prefix| prefix.contains(&row.ip))
        };
        let mut found: Vec<_> =
            table.addresses.iter().filter(is_outside).map(|row| row.ip).collect();
        found.sort();
        Ok(found)
    }

    /// Takes an egress address from an app.
    ///
    /// # Errors
    /// [`CatalogError::AppNotFound`]; [`CatalogError::AddressNotFound`], also of one that is of a
    /// machine.
    pub async fn release_egress(&self, app: &str, ip: IpAddr) -> Result<()> {
        self.change_egress_of(app, |app, _, table| {
            let released = table.revision + 1;
            let rows = table.addresses.iter_mut();
            let found = rows.filter(|row| is_of(row, app)).find(|row| row.ip == ip);
            let found = found.filter(|row| row.machine.is_none());
            found.ok_or(CatalogError::AddressNotFound(ip))?.released = Some(released);
            Ok(())
        })
        .await
    }

    /// Takes its own egress addresses from a machine; they are told.
    ///
    /// # Errors
    /// [`CatalogError::AppNotFound`], [`CatalogError::EgressNotFound`].
    pub async fn release_egress_of(
        &self,
        app: &str,
        machine: &MachineId,
    ) -> Result<Vec<EgressAddress>> {
        self.change_own(app, machine, |row, revision| row.released = Some(revision)).await
    }

    /// Makes its own egress addresses of a machine those of its app; they are told. The machine
    /// goes on with them, with a block of ports.
    ///
    /// # Errors
    /// [`CatalogError::AppNotFound`], [`CatalogError::EgressNotFound`].
    pub async fn promote_egress(
        &self,
        app: &str,
        machine: &MachineId,
    ) -> Result<Vec<EgressAddress>> {
        self.change_own(app, machine, |row, _| row.machine = None).await
    }

    async fn change_own(
        &self,
        app: &str,
        machine: &MachineId,
        change: impl Fn(&mut EgressRow, u64) + Send + Sync,
    ) -> Result<Vec<EgressAddress>> {
        let mut changed = Vec::new();
        self.change_egress_of(app, |app, _, table| {
            changed.clear();
            let revision = table.revision + 1;
            let own = |row: &EgressRow| is_of(row, app) && is_own(row, machine);
            for row in table.addresses.iter_mut().filter(|row| own(row)) {
                changed.push(row.clone());
                change(row, revision);
                if row.machine.is_none() {
                    // Another machine must not take the first block of it.
                    let (ip, machine) = (row.ip, machine.clone());
                    table.blocks.push(EgressBlockRow { ip, block: block(0), machine });
                }
            }
            if changed.is_empty() {
                return Err(CatalogError::EgressNotFound(machine.clone()));
            }
            Ok(())
        })
        .await?;
        let nothing = EgressTable::default();
        Ok(changed.iter().map(|row| shown(row, &nothing)).collect())
    }

    /// Sees to it that machines of an app have what they should: to be called after one was placed
    /// or is gone.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn settle_egress(&self, app: &str) -> Result<()> {
        if self.store.egress().await?.addresses.is_empty() {
            return Ok(());
        }
        match self.change_egress_of(app, |_, _, _| Ok(())).await {
            Err(CatalogError::AppNotFound(_)) => self.settle_all_egress().await,
            outcome => outcome,
        }
    }

    /// The same for all apps, also for those that are gone.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn settle_all_egress(&self) -> Result<()> {
        if self.store.egress().await?.addresses.is_empty() {
            return Ok(());
        }
        let apps = self.store.apps(&crate::AppQuery::default()).await?;
        let known: HashSet<_> = apps.iter().map(|app| app.number).collect();
        self.change_egress(|table| {
            let released = table.revision + 1;
            for row in &mut table.addresses {
                if !known.contains(&row.app) && row.released.is_none() {
                    row.released = Some(released);
                }
            }
            let of_none: HashSet<_> = table
                .addresses
                .iter()
                .filter(|row| row.released.is_some())
                .map(|row| row.ip)
                .collect();
            table.blocks.retain(|block| !of_none.contains(&block.ip));
        })
        .await?;
        let table = self.store.egress().await?;
        let numbers: BTreeSet<_> = table.addresses.iter().map(|row| row.app).collect();
        for app in apps.iter().filter(|app| numbers.contains(&app.number)) {
            match self.change_egress_of(&app.name, |_, _, _| Ok(())).await {
                Ok(()) | Err(CatalogError::AppNotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The number of the last change of any egress address; `None` while there are none.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn egress_revision(&self) -> Result<Option<u64>> {
        let table = self.store.egress().await?;
        Ok((!table.addresses.is_empty()).then_some(table.revision))
    }

    /// What the machines of a worker have, IPv4 first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn egress_of_worker(
        &self,
        worker: &WorkerId,
    ) -> Result<BTreeMap<MachineId, Vec<SharedAddress>>> {
        let table = self.store.egress().await?;
        let mut machines = BTreeMap::new();
        if table.addresses.is_empty() {
            return Ok(machines);
        }
        for Placement { machine, .. } in self.store.placements(Some(worker)).await? {
            let own = table.addresses.iter().filter(|row| is_own(row, &machine));
            let mut found: Vec<_> = own.map(|row| (row.ip, None)).collect();
            let blocks = table.blocks.iter().filter(|block| block.machine == machine);
            found.extend(blocks.map(|block| (block.ip, Some(ports(block.block)))));
            found.sort();
            if !found.is_empty() {
                machines.insert(machine, found);
            }
        }
        Ok(machines)
    }

    /// A number that rises after each change that a copy of this catalog has made.
    pub fn egress_changed(&self) -> watch::Receiver<u64> {
        self.egress_changes.subscribe()
    }

    /// Frees the addresses that were released up to this change, of which all hosts know.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forget_released_egress(&self, revision: u64) -> Result<()> {
        self.change_egress(|table| {
            table.addresses.retain(|row| row.released.is_none_or(|released| released > revision));
        })
        .await
    }

    async fn known_app(&self, app: &str) -> Result<AppRecord> {
        let found = self.store.app(app).await?;
        found.ok_or_else(|| CatalogError::AppNotFound(app.to_owned()))
    }

    /// Changes addresses of an app, and then what its machines have of them.
    async fn change_egress_of(
        &self,
        app: &str,
        mut change: impl FnMut(&AppRecord, &[Placement], &mut EgressTable) -> Result<()> + Send,
    ) -> Result<()> {
        loop {
            // First, so that no machine is missing among those of its changes.
            let before = self.store.egress().await?;
            let app = self.known_app(app).await?;
            let machines = self.store.placements_of(app.number).await?;
            let mut after = before.clone();
            change(&app, &machines, &mut after)?;
            settle(&mut after, app.number, &machines);
            if self.commit_egress(&before, &after).await? {
                return Ok(());
            }
        }
    }

    async fn change_egress(&self, mut change: impl FnMut(&mut EgressTable) + Send) -> Result<()> {
        loop {
            let before = self.store.egress().await?;
            let mut after = before.clone();
            change(&mut after);
            if self.commit_egress(&before, &after).await? {
                return Ok(());
            }
        }
    }

    /// Makes a change, unless there was another one.
    async fn commit_egress(&self, before: &EgressTable, after: &EgressTable) -> Result<bool> {
        let difference = difference(before, after);
        if difference == EgressChange::default() {
            return Ok(true);
        }
        let is_made = self.store.change_egress(before.revision, difference).await?;
        if is_made {
            self.egress_changes.send_modify(|number| *number += 1);
        }
        Ok(is_made)
    }
}

fn is_of(row: &EgressRow, app: &AppRecord) -> bool {
    row.app == app.number && row.released.is_none()
}

fn same_family(prefix: &IpNet, ip: &IpAddr) -> bool {
    prefix.addr().is_ipv4() == ip.is_ipv4()
}

/// The oldest address of an app in a region that has none of the other family beside it, and the
/// number of its pair, where the app has fewer addresses of that other family there.
fn lone(app: &AppRecord, new: &NewEgress, table: &EgressTable) -> Option<(u64, IpAddr)> {
    let is_pooled = |is_v4: bool| {
        let mut prefixes = new.pools.iter().flat_map(|pool| &pool.prefixes);
        prefixes.any(|prefix| prefix.addr().is_ipv4() == is_v4)
    };
    if new.machine.is_some() || !is_pooled(true) || !is_pooled(false) {
        return None;
    }
    let is_shared =
        |row: &&EgressRow| is_of(row, app) && row.machine.is_none() && row.region == new.region;
    let shared: Vec<_> = table.addresses.iter().filter(is_shared).collect();
    let (v4, v6): (Vec<_>, Vec<_>) = shared.into_iter().partition(|row| row.ip.is_ipv4());
    let (more, fewer) = if v4.len() > v6.len() { (v4, v6) } else { (v6, v4) };
    if more.len() == fewer.len() {
        return None;
    }
    let is_alone = |row: &&&EgressRow| fewer.iter().all(|other| other.pair != row.pair);
    let oldest = more.iter().filter(is_alone).min_by_key(|row| (row.pair, row.ip))?;
    Some((oldest.pair, oldest.ip))
}

fn lowest_free(pool: &AddressPool, taken: &HashSet<IpAddr>) -> Option<IpAddr> {
    pool.all().find(|ip| !taken.contains(ip) && !pool.reserved.contains(ip))
}

fn shown(row: &EgressRow, table: &EgressTable) -> EgressAddress {
    let blocks = table.blocks.iter().filter(|block| block.ip == row.ip);
    let mut blocks: Vec<_> = blocks
        .map(|block| {
            let (first_port, last_port) = ports(block.block);
            EgressBlock { machine: block.machine.clone(), first_port, last_port }
        })
        .collect();
    blocks.sort_by(|one, other| one.machine.cmp(&other.machine));
    EgressAddress {
        ip: row.ip,
        machine: row.machine.clone(),
        region: row.region.clone(),
        created_at: row.created_at,
        blocks,
    }
}

fn difference(before: &EgressTable, after: &EgressTable) -> EgressChange {
    let has = |table: &EgressTable, ip: IpAddr| table.addresses.iter().any(|row| row.ip == ip);
    EgressChange {
        put: after
            .addresses
            .iter()
            .filter(|row| !before.addresses.contains(row))
            .cloned()
            .collect(),
        gone: before.addresses.iter().map(|row| row.ip).filter(|ip| !has(after, *ip)).collect(),
        given: after
            .blocks
            .iter()
            .filter(|block| !before.blocks.contains(block))
            .cloned()
            .collect(),
        taken: before
            .blocks
            .iter()
            .filter(|block| !after.blocks.contains(block))
            .cloned()
            .collect(),
    }
}
