//! How machines, their events and versions are written to the tables.

use caddis_api::{MachineId, UnixMillis, event::MachineEvent};
use rusqlite::{OptionalExtension as _, Transaction, params};

use super::{Change, EVENTS_PER_MACHINE, VERSIONS_PER_MACHINE, VersionChange};
use crate::row::MachineRow;

/// A machine as recorded.
pub(super) fn row(
    transaction: &Transaction<'_>,
    machine: &MachineId,
) -> rusqlite::Result<Option<MachineRow>> {
    let mut statement = transaction.prepare_cached("SELECT record FROM machines WHERE id = ?1")?;
    let record = statement.query_row([machine.as_str()], |row| row.get::<_, String>(0));
    record.optional()?.map(|text| serde_json::from_str(&text).map_err(from_json)).transpose()
}

/// The latest events of a machine, newest first.
pub(super) fn events(
    transaction: &Transaction<'_>,
    machine: &MachineId,
    limit: usize,
) -> rusqlite::Result<Vec<MachineEvent>> {
    let mut statement = transaction
        .prepare_cached("SELECT event FROM events WHERE machine = ?1 ORDER BY id DESC LIMIT ?2")?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let texts =
        statement.query_map(params![machine.as_str(), limit], |row| row.get::<_, String>(0))?;
    let event =
        |text: String| serde_json::from_str(&text).map(MachineEvent::renewed).map_err(from_json);
    texts.map(|text| event(text?)).collect()
}

/// Records a change, and returns the bytes of its records.
pub(super) fn record(
    transaction: &Transaction<'_>,
    Change { row, events, versions, request }: &Change,
) -> rusqlite::Result<usize> {
    let text = to_json(row)?;
    let mut bytes = text.len();
    transaction
        .prepare_cached(
            "INSERT INTO machines (id, app, state, destroyed_at, record) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (id) DO UPDATE SET state = ?3, destroyed_at = ?4, record = ?5",
        )?
        .execute(params![
            row.id.as_str(),
            row.app.as_str(),
            row.state.as_str(),
            row.destroyed_at.map(column),
            text,
        ])?;
    for event in events {
        let text = to_json(event)?;
        bytes += text.len();
        transaction
            .prepare_cached("INSERT INTO events (machine, id, event) VALUES (?1, ?2, ?3)")?
            .execute(params![row.id.as_str(), event.id.as_str(), text])?;
    }
    if let Some(request) = request {
        remember(transaction, request)?;
    }
    for change in versions {
        bytes += record_version(transaction, &row.id, change)?;
    }
    if !events.is_empty() {
        transaction
            .prepare_cached(
                "DELETE FROM events WHERE machine = ?1 AND id <=
                 (SELECT id FROM events WHERE machine = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            )?
            .execute(params![row.id.as_str(), EVENTS_PER_MACHINE as i64])?;
    }
    Ok(bytes)
}

/// Records the id of a request whose change is recorded, and when.
pub(super) fn remember(
    transaction: &Transaction<'_>,
    (id, at): &(String, UnixMillis),
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR IGNORE INTO requests (id, accepted_at) VALUES (?1, ?2)")?
        .execute(params![id, column(*at)])?;
    Ok(())
}

/// Returns the bytes of what was recorded.
fn record_version(
    transaction: &Transaction<'_>,
    machine: &MachineId,
    change: &VersionChange,
) -> rusqlite::Result<usize> {
    let mut bytes = 0;
    match change {
        VersionChange::Keep(record) => {
            let text = to_json(record)?;
            bytes = text.len();
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO versions (machine, id, record) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![machine.as_str(), record.version.as_str(), text])?;
            transaction
                .prepare_cached(
                    "DELETE FROM versions WHERE machine = ?1 AND id <=
                     (SELECT id FROM versions WHERE machine = ?1 ORDER BY id DESC LIMIT 1 OFFSET \
                     ?2)",
                )?
                .execute(params![machine.as_str(), VERSIONS_PER_MACHINE as i64])?;
        }
        VersionChange::Forget(version) => {
            transaction
                .prepare_cached("DELETE FROM versions WHERE machine = ?1 AND id = ?2")?
                .execute(params![machine.as_str(), version.as_str()])?;
        }
    }
    Ok(bytes)
}

/// A time as columns hold it.
pub(super) fn column(time: UnixMillis) -> i64 {
    i64::try_from(time.as_u64()).unwrap_or(i64::MAX)
}

pub(super) fn to_json<T: serde::Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}

pub(super) fn from_json(error: serde_json::Error) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
}
