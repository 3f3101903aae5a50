//! Requests that came with a key of their client, and what was answered to them.

use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};

use super::{placements, schema::now_ms, storage};
use crate::{Answer, Keyed, KeyedRequest, Placement, Result};

/// How long a key is remembered, milliseconds.
const RETENTION_MS: i64 = 24 * 3600 * 1000;

pub(super) fn begin(connection: &mut Connection, request: &KeyedRequest) -> Result<Keyed> {
    let begin = |connection: &mut Connection| {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.prepare_cached("DELETE FROM requests WHERE created_ms < ?1")?.execute([now_ms() - RETENTION_MS])?;
        let found = find(&transaction, request)?;
        if matches!(found, Keyed::New) {
            transaction
                .prepare_cached(
                    "INSERT INTO requests (caller, key, id, fingerprint, created_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![request.caller, request.key, request.id, request.fingerprint, now_ms()])?;
        }
        transaction.commit()?;
        Ok(found)
    };
    begin(connection).map_err(storage("note a request"))
}

fn find(transaction: &Transaction<'_>, request: &KeyedRequest) -> rusqlite::Result<Keyed> {
    let found = transaction
        .prepare_cached(
            "SELECT id, fingerprint, status, content_type, body FROM requests WHERE caller = ?1 AND key = ?2",
        )?
        .query_row(params![request.caller, request.key], |row| {
            let fingerprint: [u8; 32] = row.get(1)?;
            let status: Option<u16> = row.get(2)?;
            Ok(match status {
                _ if fingerprint != request.fingerprint => Keyed::Another,
                Some(status) => Keyed::Answered(Answer { status, content_type: row.get(3)?, body: row.get(4)? }),
                None => Keyed::CutShort { id: row.get(0)? },
            })
        });
    Ok(found.optional()?.unwrap_or(Keyed::New))
}

pub(super) fn answered(connection: &Connection, id: &str, answer: &Answer) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE requests SET status = ?2, content_type = ?3, body = ?4 WHERE id = ?1")?
        .execute(params![id, answer.status, answer.content_type, answer.body])
        .map(drop)
}

pub(super) fn forget(connection: &Connection, id: &str) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM requests WHERE id = ?1")?.execute([id]).map(drop)
}

/// Notes which machine a request is about to make, in the transaction that places it.
pub(super) fn places(transaction: &Transaction<'_>, id: &str, placement: &Placement) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE requests SET machine = ?2 WHERE id = ?1")?
        .execute(params![id, placement.machine.as_str()])
        .map(drop)
}

pub(super) fn placement(connection: &Connection, id: &str) -> rusqlite::Result<Option<Placement>> {
    let condition = "p.machine = (SELECT machine FROM requests WHERE id = ?1)";
    Ok(placements::select(connection, condition, [id])?.pop())
}
