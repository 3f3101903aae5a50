//! Machines: ids, names, addresses, and where they are.

use std::net::Ipv6Addr;

use caddis_api::{MachineId, WorkerId, names};
use rand::Rng as _;
use rusqlite::{Connection, OptionalExtension as _, Params, Transaction, TransactionBehavior, params};

use super::{apps, requests, schema::now_ms, storage};
use crate::{AppState, CatalogError, NewPlacement, Placement, Result};

pub(super) fn place(connection: &mut Connection, new: NewPlacement) -> Result<Placement> {
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(storage("begin placing a machine"))?;
    let app = apps::find(&transaction, &new.app)
        .map_err(storage("read an app"))?
        .ok_or_else(|| CatalogError::AppNotFound(new.app.clone()))?;
    if app.state == AppState::Deleting {
        return Err(CatalogError::AppInDeletion(new.app));
    }
    let holder = |name: &str| holder(&transaction, app.number, name).map_err(storage("look for a machine's name"));
    let name = match new.name {
        Some(name) => match holder(&name)? {
            Some(holder) => return Err(CatalogError::MachineNameTaken { name, holder }),
            None => name,
        },
        None => loop {
            let name = names::generate();
            if holder(&name)?.is_none() {
                break name;
            }
        },
    };
    let mut placement = Placement {
        machine: MachineId::random(),
        name,
        app: new.app,
        worker: new.worker,
        region: new.region,
        epoch: 1,
        ipv6: Ipv6Addr::UNSPECIFIED,
        network_prefix: app.network_prefix,
        created_ms: 0,
        released: false,
    };
    insert(&transaction, app.number, &mut placement).map_err(storage("place a machine"))?;
    if let Some(id) = &new.request {
        requests::places(&transaction, id, &placement).map_err(storage("place a machine"))?;
    }
    transaction.commit().map_err(storage("place a machine"))?;
    Ok(placement)
}

fn holder(transaction: &Transaction<'_>, app: i32, name: &str) -> rusqlite::Result<Option<MachineId>> {
    transaction
        .prepare_cached("SELECT machine FROM placements WHERE app = ?1 AND name = ?2 AND released_ms IS NULL")?
        .query_row(params![app, name], |row| Ok(MachineId::from_trusted(row.get::<_, String>(0)?)))
        .optional()
}

/// Stores it under an id and an address that were never given before.
fn insert(transaction: &Transaction<'_>, app: i32, placement: &mut Placement) -> rusqlite::Result<()> {
    let now = now_ms();
    placement.created_ms = u64::try_from(now).unwrap_or(0);
    let network = placement.network_prefix.split('/').next().and_then(|text| text.parse::<Ipv6Addr>().ok());
    let network = network.unwrap_or(Ipv6Addr::UNSPECIFIED).to_bits() >> 80 << 80;
    let mut statement = transaction.prepare_cached(
        "INSERT INTO placements (machine, name, app, worker, region, epoch, ipv6, created_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO NOTHING",
    )?;
    loop {
        let subnet = u128::from(rand::rng().random::<u64>());
        placement.ipv6 = Ipv6Addr::from_bits(network | subnet << 16 | 2);
        let made = statement.execute(params![
            placement.machine.as_str(),
            placement.name,
            app,
            placement.worker.as_str(),
            placement.region,
            i64::try_from(placement.epoch).unwrap_or(i64::MAX),
            placement.ipv6.to_string(),
            now,
        ])?;
        if made == 1 {
            return Ok(());
        }
        // The name was free a moment ago in this very transaction: it was the id or the address.
        placement.machine = MachineId::random();
    }
}

pub(super) fn release(connection: &Connection, machine: &MachineId) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE placements SET released_ms = ?2 WHERE machine = ?1 AND released_ms IS NULL")?
        .execute(params![machine.as_str(), now_ms()])
        .map(drop)
}

pub(super) fn list(connection: &Connection, worker: Option<&WorkerId>) -> rusqlite::Result<Vec<Placement>> {
    let condition = "p.released_ms IS NULL AND (?1 IS NULL OR p.worker = ?1)";
    select(connection, condition, params![worker.map(WorkerId::as_str)])
}

/// Those of which this holds, by machine.
pub(super) fn select(
    connection: &Connection,
    condition: &str,
    values: impl Params,
) -> rusqlite::Result<Vec<Placement>> {
    connection
        .prepare_cached(&format!(
            "SELECT p.machine, p.name, a.name, p.worker, p.region, p.epoch, p.ipv6, n.prefix, p.created_ms,
             p.released_ms IS NOT NULL
             FROM placements p JOIN apps a ON a.number = p.app JOIN networks n ON n.number = a.network
             WHERE {condition} ORDER BY p.machine",
        ))?
        .query_map(values, |row| {
            let ipv6: String = row.get(6)?;
            Ok(Placement {
                machine: MachineId::from_trusted(row.get::<_, String>(0)?),
                name: row.get(1)?,
                app: row.get(2)?,
                worker: WorkerId::from_trusted(row.get::<_, String>(3)?),
                region: row.get(4)?,
                epoch: row.get(5)?,
                ipv6: ipv6.parse().map_err(|e| {
                    rusqlite::Error::FromSqlConversionFailure(6, rusqlite::types::Type::Text, Box::new(e))
                })?,
                network_prefix: row.get(7)?,
                created_ms: row.get(8)?,
                released: row.get(9)?,
            })
        })?
        .collect()
}
