//! Rows of egress addresses and of their blocks of ports.

use std::net::IpAddr;

use caddis_api::{MachineId, UnixMillis};
use rusqlite::{Connection, ErrorCode, Result, TransactionBehavior, params, types::Type};

use crate::store::{EgressBlockRow, EgressChange, EgressRow, EgressTable};

pub(super) fn read(connection: &mut Connection) -> Result<EgressTable> {
    // All of it as of one moment.
    let transaction = connection.transaction()?;
    let revision = transaction
        .prepare_cached("SELECT revision FROM egress_revision")?
        .query_row([], |row| row.get(0))?;
    let addresses = transaction
        .prepare_cached(
            "SELECT ip, app, machine, region, pair, created_ms, released FROM egress_addresses
             ORDER BY ip",
        )?
        .query_map([], |row| {
            Ok(EgressRow {
                ip: address(row.get(0)?)?,
                app: row.get(1)?,
                machine: row.get::<_, Option<String>>(2)?.map(MachineId::from_trusted),
                region: row.get(3)?,
                pair: row.get(4)?,
                created_at: UnixMillis::new(row.get(5)?),
                released: row.get(6)?,
            })
        })?
        .collect::<Result<_>>()?;
    let blocks = transaction
        .prepare_cached("SELECT ip, block, machine FROM egress_blocks ORDER BY ip, block")?
        .query_map([], |row| {
            Ok(EgressBlockRow {
                ip: address(row.get(0)?)?,
                block: row.get(1)?,
                machine: MachineId::from_trusted(row.get::<_, String>(2)?),
            })
        })?
        .collect::<Result<_>>()?;
    Ok(EgressTable { revision, addresses, blocks })
}

fn address(text: String) -> Result<IpAddr> {
    let unreadable = |error: std::net::AddrParseError| {
        rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error))
    };
    text.parse().map_err(unreadable)
}

pub(super) fn change(
    connection: &mut Connection,
    from: u64,
    change: &EgressChange,
) -> Result<bool> {
    match try_change(connection, from, change) {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
            Ok(false)
        }
        outcome => outcome,
    }
}

fn try_change(connection: &mut Connection, from: u64, change: &EgressChange) -> Result<bool> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let raised = transaction
        .prepare_cached("UPDATE egress_revision SET revision = revision + 1 WHERE revision = ?1")?
        .execute([from])?;
    if raised == 0 {
        return Ok(false);
    }
    for EgressBlockRow { ip, block, .. } in &change.taken {
        transaction
            .prepare_cached("DELETE FROM egress_blocks WHERE ip = ?1 AND block = ?2")?
            .execute(params![ip.to_string(), block])?;
    }
    for ip in &change.gone {
        transaction
            .prepare_cached("DELETE FROM egress_addresses WHERE ip = ?1")?
            .execute([ip.to_string()])?;
    }
    for row in &change.put {
        transaction
            .prepare_cached(
                "INSERT INTO egress_addresses (ip, app, machine, region, pair, created_ms,
                 released) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (ip) DO UPDATE SET machine = ?3, pair = ?5, released = ?7
                 WHERE app = ?2",
            )?
            .execute(params![
                row.ip.to_string(),
                row.app,
                row.machine.as_ref().map(MachineId::as_str),
                row.region,
                row.pair,
                row.created_at.as_u64(),
                row.released,
            ])?;
    }
    for EgressBlockRow { ip, block, machine } in &change.given {
        transaction
            .prepare_cached("INSERT INTO egress_blocks (ip, block, machine) VALUES (?1, ?2, ?3)")?
            .execute(params![ip.to_string(), block, machine.as_str()])?;
    }
    transaction.commit()?;
    Ok(true)
}
