//! Machines: ids, names, addresses, and where they are.

use caddis_api::{AppName, MachineId, RegionCode, WorkerId, names};

use super::{Catalog, networks::random_address};
use crate::{
    AppState, CatalogError, FIRST_EPOCH, NewPlacement, Placement, Result,
    store::{PlacementConflict, PlacementRow},
};

impl Catalog {
    /// Gives a machine its id, name and address. Ids and addresses of released machines are not
    /// given again. With a keyed request it is noted there in the same transaction; a request has
    /// one machine that is not released, whoever carries it out.
    ///
    /// # Errors
    /// [`CatalogError::MachineNameTaken`], [`CatalogError::AppNotFound`],
    /// [`CatalogError::AppInDeletion`], [`CatalogError::RequestHasMachine`].
    pub async fn place(&self, new: NewPlacement) -> Result<Placement> {
        loop {
            let app = self
                .store
                .app(&new.app)
                .await?
                .ok_or_else(|| CatalogError::AppNotFound(new.app.to_string()))?;
            if app.state == AppState::Deleting {
                return Err(CatalogError::AppInDeletion(new.app));
            }
            let row = PlacementRow {
                machine: MachineId::random(),
                name: new.name.clone().unwrap_or_else(names::generate),
                app: app.number,
                worker: new.worker.clone(),
                region: new.region.clone(),
                epoch: FIRST_EPOCH,
                ipv6: random_address(&app.network_prefix),
                created_ms: self.now(),
                request: new.request.clone(),
            };
            match self.store.insert_placement(row.clone()).await? {
                Ok(()) => {
                    self.settle_egress(&new.app).await?;
                    return Ok(placed(row, new.app, app.network_prefix));
                }
                Err(PlacementConflict::Name(holder)) if new.name.is_some() => {
                    return Err(CatalogError::MachineNameTaken { name: row.name, holder });
                }
                Err(PlacementConflict::Request(machine)) => {
                    return Err(CatalogError::RequestHasMachine { machine });
                }
                // What we made up is taken, or the app has just been marked: the next round tells.
                Err(
                    PlacementConflict::Name(_)
                    | PlacementConflict::Identity
                    | PlacementConflict::App,
                ) => {}
            }
        }
    }

    /// Where a machine is, or was when it is gone.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn placement(&self, machine: &MachineId) -> Result<Option<Placement>> {
        Ok(self.store.placement(machine).await?)
    }

    /// Gives a machine another place, if it still has the one of that epoch: of several that want
    /// to move it one does. A call whose outcome got lost is not made again blindly:
    /// [`Self::placement`] tells what came of it.
    ///
    /// # Errors
    /// [`CatalogError::MachineNotFound`], [`CatalogError::MachineReleased`],
    /// [`CatalogError::MachineMoved`].
    pub async fn move_machine(
        &self,
        machine: &MachineId,
        from_epoch: u64,
        worker: &WorkerId,
        region: &RegionCode,
    ) -> Result<Placement> {
        loop {
            let found = self.store.placement(machine).await?;
            let found = found.ok_or_else(|| CatalogError::MachineNotFound(machine.clone()))?;
            if found.released {
                return Err(CatalogError::MachineReleased(machine.clone()));
            }
            if found.epoch != from_epoch {
                return Err(CatalogError::MachineMoved {
                    machine: machine.clone(),
                    current: found.epoch,
                });
            }
            if self.store.move_placement(machine, from_epoch, worker, region).await? {
                let (worker, region) = (worker.clone(), region.clone());
                self.settle_egress(&found.app).await?;
                return Ok(Placement { worker, region, epoch: from_epoch + 1, ..found });
            }
        }
    }

    /// Frees the name and the egress addresses of a machine that is gone or was never made. Doing
    /// it again changes nothing.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn release(&self, machine: &MachineId) -> Result<()> {
        self.store.release_placement(machine, self.now()).await?;
        match self.store.placement(machine).await? {
            Some(placement) => self.settle_egress(&placement.app).await,
            None => Ok(()),
        }
    }

    /// Placements that are not released: of one worker, or all.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn placements(&self, worker: Option<&WorkerId>) -> Result<Vec<Placement>> {
        Ok(self.store.placements(worker).await?)
    }

    /// The machine that a keyed request was about to make, also when it is gone.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn placement_of_request(&self, id: &str) -> Result<Option<Placement>> {
        Ok(self.store.placement_of_request(id).await?)
    }
}

fn placed(row: PlacementRow, app: AppName, network_prefix: String) -> Placement {
    Placement {
        machine: row.machine,
        name: row.name,
        app,
        worker: row.worker,
        region: row.region,
        epoch: row.epoch,
        ipv6: row.ipv6,
        network_prefix,
        created_ms: row.created_ms,
        released: false,
    }
}
