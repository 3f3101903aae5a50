//! Rows of placements.

use caddis_api::{AppName, MachineId, RegionCode, UnixMillis, WorkerId};
use rusqlite::{
    Connection, OptionalExtension as _, Params, Result, Transaction, TransactionBehavior, params,
};

use crate::{
    Placement,
    store::{PlacementConflict, PlacementRow},
};

pub(super) fn insert(
    connection: &mut Connection,
    row: &PlacementRow,
) -> Result<std::result::Result<(), PlacementConflict>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if let Some(conflict) = conflict(&transaction, row)? {
        return Ok(Err(conflict));
    }
    let inserted = transaction
        .prepare_cached(
            "INSERT INTO placements (machine, name, app, worker, region, epoch, ipv6, created_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            row.machine.as_str(),
            row.name,
            row.app,
            row.worker.as_str(),
            row.region.as_str(),
            row.epoch,
            row.ipv6.to_string(),
            row.created_ms.as_u64(),
        ])?;
    if inserted == 0 {
        // The name is free in this very transaction: it is the id or the address.
        return Ok(Err(PlacementConflict::Identity));
    }
    if let Some(request) = &row.request {
        transaction
            .prepare_cached("UPDATE requests SET machine = ?2 WHERE id = ?1")?
            .execute(params![request, row.machine.as_str()])?;
    }
    transaction.commit()?;
    Ok(Ok(()))
}

/// What is in the way of a placement, but for its id and address.
fn conflict(
    transaction: &Transaction<'_>,
    row: &PlacementRow,
) -> Result<Option<PlacementConflict>> {
    let app_takes_machines = transaction
        .prepare_cached(
            "SELECT 1 FROM apps WHERE number = ?1 AND deleting_ms IS NULL AND deleted_ms IS NULL",
        )?
        .exists([row.app])?;
    if !app_takes_machines {
        return Ok(Some(PlacementConflict::App));
    }
    let machine = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
        let machine =
            |row: &rusqlite::Row<'_>| Ok(MachineId::from_trusted(row.get::<_, String>(0)?));
        transaction.prepare_cached(sql)?.query_row(values, machine).optional()
    };
    let of_request = "SELECT p.machine FROM requests r JOIN placements p ON p.machine = r.machine
        WHERE r.id = ?1 AND p.released_ms IS NULL";
    if let Some(machine) = machine(of_request, &[&row.request])? {
        return Ok(Some(PlacementConflict::Request(machine)));
    }
    let of_name =
        "SELECT machine FROM placements WHERE app = ?1 AND name = ?2 AND released_ms IS NULL";
    Ok(machine(of_name, &[&row.app, &row.name])?.map(PlacementConflict::Name))
}

pub(super) fn set_worker(
    connection: &Connection,
    machine: &MachineId,
    epoch: u64,
    (worker, region): (&WorkerId, &RegionCode),
) -> Result<bool> {
    let moved = connection
        .prepare_cached(
            "UPDATE placements SET worker = ?3, region = ?4, epoch = epoch + 1
             WHERE machine = ?1 AND epoch = ?2 AND released_ms IS NULL",
        )?
        .execute(params![machine.as_str(), epoch, worker.as_str(), region.as_str()])?;
    Ok(moved == 1)
}

pub(super) fn release(
    connection: &Connection,
    machine: &MachineId,
    at_ms: UnixMillis,
) -> Result<()> {
    connection
        .prepare_cached(
            "UPDATE placements SET released_ms = ?2 WHERE machine = ?1 AND released_ms IS NULL",
        )?
        .execute(params![machine.as_str(), at_ms.as_u64()])
        .map(drop)
}

pub(super) fn find(connection: &Connection, machine: &MachineId) -> Result<Option<Placement>> {
    Ok(select(connection, "p.machine = ?1", [machine.as_str()])?.pop())
}

pub(super) fn list(connection: &Connection, worker: Option<&WorkerId>) -> Result<Vec<Placement>> {
    let condition = "p.released_ms IS NULL AND (?1 IS NULL OR p.worker = ?1)";
    select(connection, condition, params![worker.map(WorkerId::as_str)])
}

pub(super) fn of_app(connection: &Connection, app: i32) -> Result<Vec<Placement>> {
    select(connection, "p.released_ms IS NULL AND p.app = ?1", [app])
}

pub(super) fn of_request(connection: &Connection, id: &str) -> Result<Option<Placement>> {
    let condition = "p.machine = (SELECT machine FROM requests WHERE id = ?1)";
    Ok(select(connection, condition, [id])?.pop())
}

/// Those of which this holds, by machine.
fn select(connection: &Connection, condition: &str, values: impl Params) -> Result<Vec<Placement>> {
    connection
        .prepare_cached(&format!(
            "SELECT p.machine, p.name, a.name, p.worker, p.region, p.epoch, p.ipv6, n.prefix, \
             p.created_ms,
             p.released_ms IS NOT NULL
             FROM placements p JOIN apps a ON a.number = p.app JOIN networks n ON n.number = \
             a.network
             WHERE {condition} ORDER BY p.machine",
        ))?
        .query_map(values, |row| {
            let ipv6: String = row.get(6)?;
            Ok(Placement {
                machine: MachineId::from_trusted(row.get::<_, String>(0)?),
                name: row.get(1)?,
                app: AppName::from_trusted(row.get::<_, String>(2)?),
                worker: WorkerId::from_trusted(row.get::<_, String>(3)?),
                region: RegionCode::from_trusted(row.get::<_, String>(4)?),
                epoch: row.get(5)?,
                ipv6: ipv6.parse().map_err(|e| {
                    rusqlite::Error::FromSqlConversionFailure(
                        6,
                        rusqlite::types::Type::Text,
                        Box::new(e),
                    )
                })?,
                network_prefix: row.get(7)?,
                created_ms: UnixMillis::new(row.get(8)?),
                released: row.get(9)?,
            })
        })?
        .collect()
}
