//! Rows of organisations, networks and apps.

use caddis_api::{AppName, NetworkName, UnixMillis, app::Organization};
use rusqlite::{Connection, OptionalExtension as _, Result, Row, TransactionBehavior, params};

use crate::{
    AppQuery, AppRecord, AppState,
    store::{AppConflict, AppRow, NetworkRow, NewNetwork},
};

const SELECT: &str = "SELECT a.id, a.number, a.name, o.name, o.slug, o.number, n.name, n.prefix, \
                      a.created_ms,
    a.deleting_ms IS NOT NULL
    FROM apps a JOIN organizations o ON o.number = a.organization JOIN networks n ON n.number = \
                      a.network
    WHERE a.deleted_ms IS NULL";
/// Of an [`AppQuery`].
const FILTER: &str = "AND (?1 IS NULL OR o.slug = ?1) AND a.created_ms <= ?2";

fn read(row: &Row<'_>) -> Result<AppRecord> {
    Ok(AppRecord {
        id: row.get(0)?,
        number: row.get(1)?,
        name: AppName::from_trusted(row.get::<_, String>(2)?),
        organization: Organization {
            name: row.get(3)?,
            slug: row.get(4)?,
            internal_numeric_id: row.get(5)?,
        },
        network: NetworkName::from_trusted(row.get::<_, String>(6)?),
        network_prefix: row.get(7)?,
        created_ms: UnixMillis::new(row.get(8)?),
        state: if row.get(9)? { AppState::Deleting } else { AppState::Active },
    })
}

pub(super) fn organization(connection: &Connection, slug: &str) -> Result<Option<Organization>> {
    connection
        .prepare_cached("SELECT name, slug, number FROM organizations WHERE slug = ?1")?
        .query_row([slug], |row| {
            Ok(Organization {
                name: row.get(0)?,
                slug: row.get(1)?,
                internal_numeric_id: row.get(2)?,
            })
        })
        .optional()
}

pub(super) fn network(
    connection: &Connection,
    organization: i32,
    name: &str,
) -> Result<Option<NetworkRow>> {
    connection
        .prepare_cached(
            "SELECT number, prefix FROM networks WHERE organization = ?1 AND name = ?2",
        )?
        .query_row(params![organization, name], |row| {
            Ok(NetworkRow { number: row.get(0)?, prefix: row.get(1)? })
        })
        .optional()
}

pub(super) fn insert_network(connection: &Connection, network: &NewNetwork) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO networks (organization, name, prefix, created_ms) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            network.organization,
            network.name.as_str(),
            network.prefix,
            network.created_ms.as_u64(),
        ])
        .map(drop)
}

pub(super) fn find(connection: &Connection, name: &str) -> Result<Option<AppRecord>> {
    connection
        .prepare_cached(&format!("{SELECT} AND a.name = ?1"))?
        .query_row([name], read)
        .optional()
}

pub(super) fn of_key(
    connection: &Connection,
    organization: i32,
    key: &str,
) -> Result<Option<AppRecord>> {
    let condition = "a.number = (SELECT app FROM app_keys WHERE organization = ?1 AND key = ?2)";
    connection
        .prepare_cached(&format!("{SELECT} AND {condition}"))?
        .query_row(params![organization, key], read)
        .optional()
}

fn created_until(query: &AppQuery) -> i64 {
    query.created_until_ms.map_or(i64::MAX, |at| i64::try_from(at.as_u64()).unwrap_or(i64::MAX))
}

pub(super) fn list(connection: &Connection, query: &AppQuery) -> Result<Vec<AppRecord>> {
    let limit = query.limit.map_or(i64::MAX, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
    connection
        .prepare_cached(&format!("{SELECT} {FILTER} AND a.number > ?3 ORDER BY a.number LIMIT ?4"))?
        .query_map(params![query.organization, created_until(query), query.after, limit], read)?
        .collect()
}

pub(super) fn count(connection: &Connection, query: &AppQuery) -> Result<u64> {
    connection
        .prepare_cached(&format!("SELECT count(*) FROM ({SELECT} {FILTER})"))?
        .query_row(params![query.organization, created_until(query)], |row| row.get(0))
}

pub(super) fn in_deletion(connection: &Connection) -> Result<Vec<AppRecord>> {
    connection
        .prepare_cached(&format!("{SELECT} AND a.deleting_ms IS NOT NULL ORDER BY a.number"))?
        .query_map([], read)?
        .collect()
}

pub(super) fn insert(
    connection: &mut Connection,
    app: &AppRow,
) -> Result<std::result::Result<i32, AppConflict>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let key_is_known = transaction
        .prepare_cached("SELECT 1 FROM app_keys WHERE organization = ?1 AND key = ?2")?
        .exists(params![app.organization, app.key])?;
    if key_is_known {
        return Ok(Err(AppConflict::Key));
    }
    let inserted: Option<i32> = transaction
        .prepare_cached(
            "INSERT INTO apps (id, name, organization, network, created_ms) VALUES (?1, ?2, ?3, \
             ?4, ?5)
             ON CONFLICT DO NOTHING RETURNING number",
        )?
        .query_row(
            params![
                app.id,
                app.name.as_str(),
                app.organization,
                app.network,
                app.created_ms.as_u64(),
            ],
            |row| row.get(0),
        )
        .optional()?;
    let Some(number) = inserted else {
        let name_is_taken = find(&transaction, &app.name)?.is_some();
        return Ok(Err(if name_is_taken { AppConflict::Name } else { AppConflict::Id }));
    };
    if let Some(key) = &app.key {
        transaction.execute(
            "INSERT INTO app_keys (organization, key, app) VALUES (?1, ?2, ?3)",
            params![app.organization, key, number],
        )?;
    }
    transaction.commit()?;
    Ok(Ok(number))
}

pub(super) fn mark_deleting(
    connection: &Connection,
    number: i32,
    at_ms: UnixMillis,
) -> Result<bool> {
    let marked = connection
        .prepare_cached(
            "UPDATE apps SET deleting_ms = ?2 WHERE number = ?1 AND deleting_ms IS NULL AND \
             deleted_ms IS NULL",
        )?
        .execute(params![number, at_ms.as_u64()])?;
    if marked == 1 {
        return Ok(true);
    }
    connection
        .prepare_cached("SELECT 1 FROM apps WHERE number = ?1 AND deleted_ms IS NULL")?
        .exists([number])
}

pub(super) fn delete(connection: &mut Connection, number: i32, at_ms: UnixMillis) -> Result<bool> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let deleted = transaction
        .prepare_cached(
            "UPDATE apps SET deleted_ms = ?2 WHERE number = ?1 AND deleting_ms IS NOT NULL AND \
             deleted_ms IS NULL
             AND NOT EXISTS (SELECT 1 FROM placements p WHERE p.app = apps.number AND \
             p.released_ms IS NULL)
             AND NOT EXISTS (SELECT 1 FROM volumes v WHERE v.app = apps.number AND v.deleted_ms \
             IS NULL)",
        )?
        .execute(params![number, at_ms.as_u64()])?;
    if deleted == 1 {
        transaction.prepare_cached("DELETE FROM app_keys WHERE app = ?1")?.execute([number])?;
        transaction.prepare_cached("DELETE FROM addresses WHERE app = ?1")?.execute([number])?;
        transaction.prepare_cached("DELETE FROM policies WHERE app = ?1")?.execute([number])?;
    }
    transaction.commit()?;
    Ok(deleted == 1)
}
