//! Rows of keyed requests.

use caddis_api::UnixMillis;
use rusqlite::{Connection, OptionalExtension as _, Result, Row, TransactionBehavior, params};

use crate::{
    StoredResponse,
    store::{RequestLease, RequestRow},
};

fn read(row: &Row<'_>) -> Result<RequestRow> {
    let status: Option<u16> = row.get(5)?;
    let answer = match status {
        Some(status) => {
            Some(StoredResponse { status, content_type: row.get(6)?, body: row.get(7)? })
        }
        None => None,
    };
    let holder: Option<String> = row.get(8)?;
    let lease = match holder {
        Some(holder) => Some(RequestLease { holder, until_ms: UnixMillis::new(row.get(9)?) }),
        None => None,
    };
    Ok(RequestRow {
        caller: row.get(0)?,
        key: row.get(1)?,
        id: row.get(2)?,
        fingerprint: row.get(3)?,
        created_ms: UnixMillis::new(row.get(4)?),
        answer,
        lease,
    })
}

pub(super) fn note(
    connection: &mut Connection,
    request: &RequestRow,
    forget_before_ms: UnixMillis,
) -> Result<Option<RequestRow>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction
        .prepare_cached("DELETE FROM requests WHERE created_ms < ?1")?
        .execute([forget_before_ms.as_u64()])?;
    let found = transaction
        .prepare_cached(
            "SELECT caller, key, id, fingerprint, created_ms, status, content_type, body, \
             lease_holder, lease_until_ms
             FROM requests WHERE caller = ?1 AND key = ?2",
        )?
        .query_row(params![request.caller, request.key], read)
        .optional()?;
    if found.is_none() {
        let lease = request.lease.as_ref();
        transaction
            .prepare_cached(
                "INSERT INTO requests (caller, key, id, fingerprint, created_ms, lease_holder, \
                 lease_until_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                request.caller,
                request.key,
                request.id,
                request.fingerprint,
                request.created_ms.as_u64(),
                lease.map(|lease| &lease.holder),
                lease.map(|lease| lease.until_ms.as_u64()),
            ])?;
    }
    transaction.commit()?;
    Ok(found)
}

pub(super) fn take(
    connection: &Connection,
    id: &str,
    from: Option<&RequestLease>,
    to: &RequestLease,
) -> Result<bool> {
    let taken = connection
        .prepare_cached(
            "UPDATE requests SET lease_holder = ?4, lease_until_ms = ?5
             WHERE id = ?1 AND status IS NULL AND lease_holder IS ?2 AND lease_until_ms IS ?3",
        )?
        .execute(params![
            id,
            from.map(|lease| &lease.holder),
            from.map(|lease| lease.until_ms.as_u64()),
            to.holder,
            to.until_ms.as_u64(),
        ])?;
    Ok(taken == 1)
}

pub(super) fn renew(connection: &Connection, id: &str, lease: &RequestLease) -> Result<bool> {
    let renewed = connection
        .prepare_cached(
            "UPDATE requests SET lease_until_ms = ?3 WHERE id = ?1 AND lease_holder = ?2",
        )?
        .execute(params![id, lease.holder, lease.until_ms.as_u64()])?;
    Ok(renewed == 1)
}

pub(super) fn give_up(connection: &Connection, id: &str, holder: &str) -> Result<()> {
    connection
        .prepare_cached(
            "UPDATE requests SET lease_holder = NULL, lease_until_ms = NULL WHERE id = ?1 AND \
             lease_holder = ?2",
        )?
        .execute([id, holder])
        .map(drop)
}

pub(super) fn answer(connection: &Connection, id: &str, answer: &StoredResponse) -> Result<()> {
    connection
        .prepare_cached(
            "UPDATE requests SET status = ?2, content_type = ?3, body = ?4, lease_holder = NULL, \
             lease_until_ms = NULL
             WHERE id = ?1 AND status IS NULL",
        )?
        .execute(params![id, answer.status, answer.content_type, answer.body])
        .map(drop)
}

pub(super) fn delete(connection: &Connection, id: &str, holder: &str) -> Result<()> {
    connection
        .prepare_cached(
            "DELETE FROM requests WHERE id = ?1 AND lease_holder = ?2 AND status IS NULL",
        )?
        .execute([id, holder])
        .map(drop)
}
