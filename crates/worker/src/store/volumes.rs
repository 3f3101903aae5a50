//! The volumes in the database.

use caddis_api::{UnixMillis, VolumeId};
use rusqlite::{Transaction, params};

use super::{
    Durability, Room, Store, StoreError,
    tables::{remember, to_json},
};
use crate::volumes::{FORMAT, VolumeRow};

impl Store {
    /// Records volumes in one transaction, with the request that asked for it, and when.
    ///
    /// # Errors
    /// When they could not be recorded; then none was.
    pub async fn record_volumes(
        &self,
        rows: Vec<VolumeRow>,
        request: Option<(String, UnixMillis)>,
        durability: Durability,
        room: Room,
    ) -> Result<(), StoreError> {
        let work = move |transaction: &Transaction<'_>| {
            for row in &rows {
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO volumes (id, record) VALUES (?1, ?2)")?
                    .execute(params![row.id.as_str(), to_json(row)?])?;
            }
            request.as_ref().map_or(Ok(()), |request| remember(transaction, request))
        };
        match room {
            Room::Free => self.run("record a volume", durability, work).await,
            Room::Reserve => self.run_anyway("record a volume", durability, work).await,
        }
    }

    /// All volumes.
    ///
    /// # Errors
    /// When a record can't be read.
    pub async fn volumes(&self) -> Result<Vec<VolumeRow>, StoreError> {
        let path = self.path.clone();
        let damaged = move |detail| StoreError::Damaged { path: path.clone(), detail };
        let found = self.run("load volumes", Durability::Process, move |transaction| {
            let mut statement =
                transaction.prepare("SELECT id, record FROM volumes ORDER BY id")?;
            let mut rows = statement.query([])?;
            let mut volumes = Vec::new();
            while let Some(row) = rows.next()? {
                let (id, record): (String, String) = (row.get(0)?, row.get(1)?);
                volumes.push(match serde_json::from_str::<VolumeRow>(&record) {
                    Ok(row) if row.format > FORMAT => Err(damaged(format!(
                        "record of volume {id} has the newer format {}",
                        row.format
                    ))),
                    Ok(row) => Ok(row),
                    Err(error) => Err(damaged(format!("record of volume {id}: {error}"))),
                });
            }
            Ok(volumes)
        });
        found.await?.into_iter().collect()
    }

    /// Forgets a volume that is gone, with the request that asked for it, and when.
    ///
    /// # Errors
    /// When that could not be recorded.
    pub async fn forget_volume(
        &self,
        volume: &VolumeId,
        request: Option<(String, UnixMillis)>,
    ) -> Result<(), StoreError> {
        let volume = volume.clone();
        self.run_anyway("forget a volume", Durability::Synced, move |transaction| {
            transaction.execute("DELETE FROM volumes WHERE id = ?1", [volume.as_str()])?;
            request.as_ref().map_or(Ok(()), |request| remember(transaction, request))
        })
        .await
    }
}
