//! Numbers under which workers were told what they are told all of at once.

use caddis_api::WorkerId;
use rusqlite::{Connection, OptionalExtension as _, Result, params};

use crate::store::Push;

fn name(push: Push) -> &'static str {
    match push {
        Push::Policies => "policies",
        Push::Egress => "egress",
    }
}

pub(super) fn revision(connection: &Connection, push: Push, worker: &WorkerId) -> Result<u64> {
    let found = connection
        .prepare_cached("SELECT revision FROM push_revisions WHERE push = ?1 AND worker = ?2")?
        .query_row(params![name(push), worker.as_str()], |row| row.get(0))
        .optional()?;
    Ok(found.unwrap_or_default())
}

pub(super) fn raise(
    connection: &Connection,
    push: Push,
    worker: &WorkerId,
    known: u64,
) -> Result<u64> {
    connection
        .prepare_cached(
            "INSERT INTO push_revisions (push, worker, revision) VALUES (?1, ?2, ?3 + 1)
             ON CONFLICT (push, worker) DO UPDATE SET revision = MAX(revision, ?3) + 1
             RETURNING revision",
        )?
        .query_row(params![name(push), worker.as_str(), known], |row| row.get(0))
}
