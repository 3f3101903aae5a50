//! Rows of WireGuard peers.

use caddis_api::{NetworkName, UnixMillis};
use rusqlite::{Connection, Result, TransactionBehavior, types::Type};

use crate::{PeerConflict, PeerRecord, PeerRow};

pub(super) fn list(connection: &Connection) -> Result<Vec<PeerRecord>> {
    connection
        .prepare_cached(
            "SELECT p.name, o.slug, n.name, n.prefix, p.key, p.address, p.created_ms
             FROM peers p JOIN networks n ON n.number = p.network
             JOIN organizations o ON o.number = n.organization ORDER BY p.network, p.name",
        )?
        .query_map([], |row| {
            let address: String = row.get(5)?;
            let unreadable =
                |e| rusqlite::Error::FromSqlConversionFailure(5, Type::Text, Box::new(e));
            Ok(PeerRecord {
                name: row.get(0)?,
                organization: row.get(1)?,
                network: NetworkName::from_trusted(row.get::<_, String>(2)?),
                network_prefix: row.get(3)?,
                key: row.get(4)?,
                address: address.parse().map_err(unreadable)?,
                created_ms: UnixMillis::new(row.get(6)?),
            })
        })?
        .collect()
}

pub(super) fn insert(
    connection: &mut Connection,
    row: &PeerRow,
) -> Result<std::result::Result<(), PeerConflict>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let has_name = transaction
        .prepare_cached("SELECT 1 FROM peers WHERE network = ?1 AND name = ?2")?
        .exists((row.network, &row.name))?;
    if has_name {
        return Ok(Err(PeerConflict::Name));
    }
    let has_key =
        transaction.prepare_cached("SELECT 1 FROM peers WHERE key = ?1")?.exists([&row.key])?;
    if has_key {
        return Ok(Err(PeerConflict::Key));
    }
    let inserted = transaction
        .prepare_cached(
            "INSERT INTO peers (network, name, key, address, created_ms)
             VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
        )?
        .execute((
            row.network,
            &row.name,
            &row.key,
            row.address.to_string(),
            row.created_ms.as_u64(),
        ))?;
    transaction.commit()?;
    Ok(if inserted == 1 { Ok(()) } else { Err(PeerConflict::Address) })
}

pub(super) fn change_key(
    connection: &Connection,
    network: i64,
    name: &str,
    key: &str,
) -> Result<std::result::Result<bool, PeerConflict>> {
    let changed = connection
        .prepare_cached("UPDATE OR IGNORE peers SET key = ?3 WHERE network = ?1 AND name = ?2")?
        .execute((network, name, key))?;
    if changed == 1 {
        return Ok(Ok(true));
    }
    let exists = connection
        .prepare_cached("SELECT 1 FROM peers WHERE network = ?1 AND name = ?2")?
        .exists((network, name))?;
    Ok(if exists { Err(PeerConflict::Key) } else { Ok(false) })
}

pub(super) fn delete(connection: &Connection, network: i64, name: &str) -> Result<bool> {
    let deleted = connection
        .prepare_cached("DELETE FROM peers WHERE network = ?1 AND name = ?2")?
        .execute((network, name))?;
    Ok(deleted == 1)
}
