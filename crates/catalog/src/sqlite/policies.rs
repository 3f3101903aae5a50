//! Rows of network policies.

use caddis_api::{PolicyId, UnixMillis};
use rusqlite::{Connection, Result, TransactionBehavior, params};

use crate::store::{PolicyConflict, PolicyRow};

pub(super) fn list(connection: &Connection, app: Option<i32>) -> Result<Vec<PolicyRow>> {
    connection
        .prepare_cached(
            "SELECT id, app, name, document, created_ms, updated_ms FROM policies
             WHERE ?1 IS NULL OR app = ?1 ORDER BY app, number",
        )?
        .query_map([app], |row| {
            Ok(PolicyRow {
                id: PolicyId::from_trusted(row.get::<_, String>(0)?),
                app: row.get(1)?,
                name: row.get(2)?,
                document: row.get(3)?,
                created_ms: UnixMillis::new(row.get(4)?),
                updated_ms: UnixMillis::new(row.get(5)?),
            })
        })?
        .collect()
}

pub(super) fn insert(
    connection: &mut Connection,
    row: &PolicyRow,
) -> Result<std::result::Result<(), PolicyConflict>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if let Some(conflict) = conflict(&transaction, row)? {
        return Ok(Err(conflict));
    }
    let inserted = transaction
        .prepare_cached(
            "INSERT INTO policies (id, app, name, document, created_ms, updated_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            row.id.as_str(),
            row.app,
            row.name,
            row.document,
            row.created_ms.as_u64(),
            row.updated_ms.as_u64(),
        ])?;
    transaction.commit()?;
    Ok(if inserted == 1 { Ok(()) } else { Err(PolicyConflict::Id) })
}

pub(super) fn replace(
    connection: &mut Connection,
    row: &PolicyRow,
) -> Result<std::result::Result<(), PolicyConflict>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if let Some(conflict) = conflict(&transaction, row)? {
        return Ok(Err(conflict));
    }
    let replaced = transaction
        .prepare_cached(
            "UPDATE policies SET name = ?3, document = ?4, updated_ms = ?5
             WHERE id = ?1 AND app = ?2",
        )?
        .execute(params![
            row.id.as_str(),
            row.app,
            row.name,
            row.document,
            row.updated_ms.as_u64(),
        ])?;
    transaction.commit()?;
    Ok(if replaced == 1 { Ok(()) } else { Err(PolicyConflict::Id) })
}

pub(super) fn delete(connection: &Connection, app: i32, id: &PolicyId) -> Result<bool> {
    let deleted = connection
        .prepare_cached("DELETE FROM policies WHERE app = ?1 AND id = ?2")?
        .execute(params![app, id.as_str()])?;
    Ok(deleted == 1)
}

/// What keeps the app from having this policy: that it is marked for deletion, or has another one
/// of the name.
fn conflict(connection: &Connection, row: &PolicyRow) -> Result<Option<PolicyConflict>> {
    let is_active = connection
        .prepare_cached(
            "SELECT 1 FROM apps WHERE number = ?1 AND deleting_ms IS NULL AND deleted_ms IS NULL",
        )?
        .exists([row.app])?;
    if !is_active {
        return Ok(Some(PolicyConflict::App));
    }
    let is_named = connection
        .prepare_cached("SELECT 1 FROM policies WHERE app = ?1 AND name = ?2 AND id <> ?3")?
        .exists(params![row.app, row.name, row.id.as_str()])?;
    Ok(is_named.then_some(PolicyConflict::Name))
}
