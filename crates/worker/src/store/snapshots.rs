//! The snapshots of volumes in the database.

use caddis_api::{SnapshotId, UnixMillis};
use rusqlite::{Transaction, params};

use super::{
    Durability, Room, Store, StoreError,
    tables::{remember, to_json},
};
use crate::volumes::snapshots::{FORMAT, SnapshotRow};

impl Store {
    /// Records a snapshot, with the request that asked for it, and when.
    ///
    /// # Errors
    /// When it could not be recorded.
    pub async fn record_snapshot(
        &self,
        row: SnapshotRow,
        request: Option<(String, UnixMillis)>,
        durability: Durability,
        room: Room,
    ) -> Result<(), StoreError> {
        let work = move |transaction: &Transaction<'_>| {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO snapshots (id, record) VALUES (?1, ?2)")?
                .execute(params![row.id.as_str(), to_json(&row)?])?;
            request.as_ref().map_or(Ok(()), |request| remember(transaction, request))
        };
        match room {
            Room::Free => self.run("record a snapshot", durability, work).await,
            Room::Reserve => self.run_anyway("record a snapshot", durability, work).await,
        }
    }

    /// All snapshots.
    ///
    /// # Errors
    /// When a record can't be read.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotRow>, StoreError> {
        let path = self.path.clone();
        let damaged = move |detail| StoreError::Damaged { path: path.clone(), detail };
        let found = self.run("load snapshots", Durability::Process, move |transaction| {
            let mut statement =
                transaction.prepare("SELECT id, record FROM snapshots ORDER BY id")?;
            let mut rows = statement.query([])?;
            let mut snapshots = Vec::new();
            while let Some(row) = rows.next()? {
                let (id, record): (String, String) = (row.get(0)?, row.get(1)?);
                snapshots.push(match serde_json::from_str::<SnapshotRow>(&record) {
                    Ok(row) if row.format > FORMAT => Err(damaged(format!(
                        "record of snapshot {id} has the newer format {}",
                        row.format
                    ))),
                    Ok(row) => Ok(row),
                    Err(error) => Err(damaged(format!("record of snapshot {id}: {error}"))),
                });
            }
            Ok(snapshots)
        });
        found.await?.into_iter().collect()
    }

    /// Forgets a snapshot that is gone.
    ///
    /// # Errors
    /// When that could not be recorded.
    pub async fn forget_snapshot(&self, snapshot: &SnapshotId) -> Result<(), StoreError> {
        let snapshot = snapshot.clone();
        self.run_anyway("forget a snapshot", Durability::Synced, move |transaction| {
            transaction.execute("DELETE FROM snapshots WHERE id = ?1", [snapshot.as_str()])?;
            Ok(())
        })
        .await
    }
}
