//! Rows of volumes.

use caddis_api::{AppName, RegionCode, UnixMillis, VolumeId, WorkerId};
use rusqlite::{Connection, Params, Result, TransactionBehavior, params};

use crate::{
    VolumePlacement,
    store::{VolumeConflict, VolumeRow},
};

/// Apps that things can be put into.
const IS_ACTIVE: &str = "deleting_ms IS NULL AND deleted_ms IS NULL";

pub(super) fn insert(
    connection: &mut Connection,
    row: &VolumeRow,
) -> Result<std::result::Result<(), VolumeConflict>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let app_takes_volumes = transaction
        .prepare_cached(&format!("SELECT 1 FROM apps WHERE number = ?1 AND {IS_ACTIVE}"))?
        .exists([row.app])?;
    if !app_takes_volumes {
        return Ok(Err(VolumeConflict::App));
    }
    let inserted = transaction
        .prepare_cached(
            "INSERT INTO volumes (volume, name, app, worker, region, epoch, created_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            row.id.as_str(),
            row.name,
            row.app,
            row.worker.as_str(),
            row.region.as_str(),
            row.epoch,
            row.created_ms.as_u64(),
        ])?;
    transaction.commit()?;
    Ok(if inserted == 1 { Ok(()) } else { Err(VolumeConflict::Id) })
}

pub(super) fn find(connection: &Connection, id: &VolumeId) -> Result<Option<VolumePlacement>> {
    Ok(select(connection, "v.volume = ?1", [id.as_str()])?.pop())
}

pub(super) fn of_app(connection: &Connection, app: i32) -> Result<Vec<VolumePlacement>> {
    select(connection, "v.app = ?1", [app])
}

pub(super) fn on(connection: &Connection, worker: &WorkerId) -> Result<Vec<VolumePlacement>> {
    select(connection, "v.worker = ?1 AND v.deleted_ms IS NULL", [worker.as_str()])
}

pub(super) fn delete(connection: &Connection, id: &VolumeId, at_ms: UnixMillis) -> Result<()> {
    connection
        .prepare_cached(
            "UPDATE volumes SET deleted_ms = ?2 WHERE volume = ?1 AND deleted_ms IS NULL",
        )?
        .execute(params![id.as_str(), at_ms.as_u64()])
        .map(drop)
}

pub(super) fn undelete(connection: &Connection, id: &VolumeId) -> Result<bool> {
    let undeleted = connection
        .prepare_cached(&format!(
            "UPDATE volumes SET deleted_ms = NULL WHERE volume = ?1
             AND app IN (SELECT number FROM apps WHERE {IS_ACTIVE})"
        ))?
        .execute([id.as_str()])?;
    Ok(undeleted == 1)
}

/// Those of which this holds, by id.
fn select(
    connection: &Connection,
    condition: &str,
    values: impl Params,
) -> Result<Vec<VolumePlacement>> {
    connection
        .prepare_cached(&format!(
            "SELECT v.volume, v.name, a.name, a.number, v.worker, v.region, v.epoch, v.created_ms,
             v.deleted_ms IS NOT NULL, o.slug
             FROM volumes v JOIN apps a ON a.number = v.app
             JOIN organizations o ON o.number = a.organization WHERE {condition} ORDER BY v.volume",
        ))?
        .query_map(values, |row| {
            Ok(VolumePlacement {
                id: VolumeId::from_trusted(row.get::<_, String>(0)?),
                name: row.get(1)?,
                app: AppName::from_trusted(row.get::<_, String>(2)?),
                app_number: row.get(3)?,
                worker: WorkerId::from_trusted(row.get::<_, String>(4)?),
                region: RegionCode::from_trusted(row.get::<_, String>(5)?),
                epoch: row.get(6)?,
                created_ms: UnixMillis::new(row.get(7)?),
                deleted: row.get(8)?,
                organization: row.get(9)?,
            })
        })?
        .collect()
}
