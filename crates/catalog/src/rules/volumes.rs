//! Volumes: ids, and where they are.

use caddis_api::{VolumeId, WorkerId};

use super::Catalog;
use crate::{
    AppRecord, AppState, CatalogError, FIRST_EPOCH, NewVolume, Result, VolumePlacement,
    store::{VolumeConflict, VolumeRow},
};

impl Catalog {
    /// Gives a volume its place. Ids of volumes that are gone are not given again. With the id of
    /// one that there is, or was, in this app it gives that one.
    ///
    /// # Errors
    /// [`CatalogError::AppNotFound`], [`CatalogError::AppInDeletion`].
    pub async fn place_volume(&self, new: NewVolume) -> Result<VolumePlacement> {
        let mut wanted = new.id.clone();
        loop {
            let app = self
                .store
                .app(&new.app)
                .await?
                .ok_or_else(|| CatalogError::AppNotFound(new.app.to_string()))?;
            if app.state == AppState::Deleting {
                return Err(CatalogError::AppInDeletion(new.app));
            }
            if let Some(id) = &wanted
                && let Some(found) = self.store.volume(id).await?
            {
                if found.app_number == app.number {
                    return Ok(found);
                }
                // Of another app: no request of this one has made it.
                wanted = None;
            }
            let row = VolumeRow {
                id: wanted.clone().unwrap_or_else(VolumeId::random),
                name: new.name.clone(),
                app: app.number,
                worker: new.worker.clone(),
                region: new.region.clone(),
                epoch: FIRST_EPOCH,
                created_ms: self.now(),
            };
            match self.store.insert_volume(row.clone()).await? {
                Ok(()) => return Ok(placed(row, app)),
                // The next round tells.
                Err(VolumeConflict::App | VolumeConflict::Id) => {}
            }
        }
    }

    /// Where a volume is, or was when it is gone.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn volume(&self, id: &VolumeId) -> Result<Option<VolumePlacement>> {
        Ok(self.store.volume(id).await?)
    }

    /// All volumes of an app, deleted or not, by id; by the app's number, since names come again.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn volumes_of(&self, app: i32) -> Result<Vec<VolumePlacement>> {
        Ok(self.store.volumes_of(app).await?)
    }

    /// The volumes of a worker that are not deleted, by id.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn volumes_on(&self, worker: &WorkerId) -> Result<Vec<VolumePlacement>> {
        Ok(self.store.volumes_on(worker).await?)
    }

    /// Marks a volume as deleted: its app can go without it. Doing it again changes nothing.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn delete_volume(&self, id: &VolumeId) -> Result<()> {
        Ok(self.store.delete_volume(id, self.now()).await?)
    }

    /// Takes back that a volume is deleted. Doing it again changes nothing.
    ///
    /// # Errors
    /// [`CatalogError::VolumeNotFound`], also when its app is gone;
    /// [`CatalogError::AppInDeletion`].
    pub async fn undelete_volume(&self, id: &VolumeId) -> Result<()> {
        if self.store.undelete_volume(id).await? {
            return Ok(());
        }
        let not_found = || CatalogError::VolumeNotFound(id.clone());
        let found = self.store.volume(id).await?.ok_or_else(not_found)?;
        match self.store.app(&found.app).await? {
            Some(app) if app.number == found.app_number => {
                Err(CatalogError::AppInDeletion(found.app))
            }
            _ => Err(not_found()),
        }
    }
}

fn placed(row: VolumeRow, app: AppRecord) -> VolumePlacement {
    VolumePlacement {
        id: row.id,
        name: row.name,
        app: app.name,
        app_number: row.app,
        organization: app.organization.slug,
        worker: row.worker,
        region: row.region,
        epoch: row.epoch,
        created_ms: row.created_ms,
        deleted: false,
    }
}
