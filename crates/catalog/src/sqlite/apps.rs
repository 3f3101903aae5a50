//! Apps and the networks they are in.

use caddis_api::{app::Organization, names};
use rand::Rng as _;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, params};

use super::{find_organization, schema::now_ms, storage};
use crate::{AppPage, AppQuery, AppRecord, AppState, CatalogError, NewApp, Result};

const SELECT: &str = "SELECT a.id, a.number, a.name, o.name, o.slug, o.number, n.name, n.prefix, a.created_ms,
    a.deleting_ms IS NOT NULL
    FROM apps a JOIN organizations o ON o.number = a.organization JOIN networks n ON n.number = a.network
    WHERE a.deleted_ms IS NULL";

/// Network of apps that name none.
const DEFAULT_NETWORK: &str = "default";

fn read(row: &Row<'_>) -> rusqlite::Result<AppRecord> {
    Ok(AppRecord {
        id: row.get(0)?,
        number: row.get(1)?,
        name: row.get(2)?,
        organization: Organization { name: row.get(3)?, slug: row.get(4)?, internal_numeric_id: row.get(5)? },
        network: row.get(6)?,
        network_prefix: row.get(7)?,
        created_ms: row.get(8)?,
        state: if row.get(9)? { AppState::Deleting } else { AppState::Active },
    })
}

pub(super) fn find(connection: &Connection, name: &str) -> rusqlite::Result<Option<AppRecord>> {
    connection.prepare_cached(&format!("{SELECT} AND a.name = ?1"))?.query_row([name], read).optional()
}

pub(super) fn list(connection: &Connection, query: &AppQuery) -> rusqlite::Result<AppPage> {
    let until = query.created_until_ms.map_or(i64::MAX, |ms| i64::try_from(ms).unwrap_or(i64::MAX));
    let limit = query.limit.map_or(i64::MAX - 1, |limit| i64::try_from(limit).unwrap_or(i64::MAX - 1));
    let filter = "AND (?1 IS NULL OR o.slug = ?1) AND a.created_ms <= ?2";
    let mut apps: Vec<AppRecord> = connection
        .prepare_cached(&format!("{SELECT} {filter} AND a.number > ?3 ORDER BY a.number LIMIT ?4"))?
        .query_map(params![query.organization, until, query.after, limit + 1], read)?
        .collect::<rusqlite::Result<_>>()?;
    let more = i64::try_from(apps.len()).unwrap_or(i64::MAX) > limit;
    if more {
        apps.pop();
    }
    let total = connection
        .prepare_cached(&format!("SELECT count(*) FROM ({SELECT} {filter})"))?
        .query_row(params![query.organization, until], |row| row.get(0))?;
    Ok(AppPage { apps, total, more })
}

pub(super) fn in_deletion(connection: &Connection) -> rusqlite::Result<Vec<AppRecord>> {
    connection.prepare_cached(&format!("{SELECT} AND a.deleting_ms IS NOT NULL"))?.query_map([], read)?.collect()
}

pub(super) fn create(connection: &mut Connection, new: &NewApp) -> Result<AppRecord> {
    let organization = find_organization(connection, &new.organization)
        .map_err(storage("read an organisation"))?
        .ok_or_else(|| CatalogError::OrganizationNotFound(new.organization.clone()))?;
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(storage("begin making an app"))?;
    if let Some(earlier) = with_key(&transaction, organization.internal_numeric_id, new)? {
        return Ok(earlier);
    }
    let name = match &new.name {
        Some(name) if find(&transaction, name).map_err(storage("read an app"))?.is_some() => {
            return Err(CatalogError::AppNameTaken);
        }
        Some(name) => name.clone(),
        None => loop {
            let name = names::generate();
            if find(&transaction, &name).map_err(storage("read an app"))?.is_none() {
                break name;
            }
        },
    };
    insert(&transaction, organization.internal_numeric_id, &name, new).map_err(storage("make an app"))?;
    let made = find(&transaction, &name).map_err(storage("read an app"))?;
    transaction.commit().map_err(storage("make an app"))?;
    made.ok_or(CatalogError::AppNotFound(name))
}

fn with_key(transaction: &Transaction<'_>, organization: i32, new: &NewApp) -> Result<Option<AppRecord>> {
    let Some(key) = &new.idempotency_key else { return Ok(None) };
    let earlier = transaction
        .prepare_cached(
            "SELECT k.wanted_name, a.name FROM app_keys k JOIN apps a ON a.number = k.app
             WHERE k.organization = ?1 AND k.key = ?2",
        )
        .and_then(|mut statement| {
            statement
                .query_row(params![organization, key], |row| {
                    Ok((row.get::<_, Option<String>>(0)?, row.get::<_, String>(1)?))
                })
                .optional()
        })
        .map_err(storage("read an idempotency key"))?;
    let Some((_, name)) = earlier else { return Ok(None) };
    if new.name.as_ref().is_some_and(|wanted| *wanted != name) {
        return Err(CatalogError::IdempotencyMismatch);
    }
    find(transaction, &name).map_err(storage("read an app"))
}

fn insert(transaction: &Transaction<'_>, organization: i32, name: &str, new: &NewApp) -> rusqlite::Result<()> {
    let network = network(transaction, organization, new.network.as_deref().unwrap_or(DEFAULT_NETWORK))?;
    let id: String = {
        const ALPHABET: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        let mut random = rand::rng();
        (0..16).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
    };
    transaction.execute(
        "INSERT INTO apps (id, name, organization, network, created_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![id, name, organization, network, now_ms()],
    )?;
    if let Some(key) = &new.idempotency_key {
        transaction.execute(
            "INSERT INTO app_keys (organization, key, wanted_name, app) VALUES (?1, ?2, ?3, ?4)",
            params![organization, key, new.name, transaction.last_insert_rowid()],
        )?;
    }
    Ok(())
}

/// The number of a network; makes it, with a /48 that no other has, when it is not there.
fn network(transaction: &Transaction<'_>, organization: i32, name: &str) -> rusqlite::Result<i64> {
    let find = "SELECT number FROM networks WHERE organization = ?1 AND name = ?2";
    if let Some(number) = transaction.query_row(find, params![organization, name], |row| row.get(0)).optional()? {
        return Ok(number);
    }
    loop {
        // fdaa:0::/32 is left to addresses that are the same in every VM.
        let (high, low) = (rand::rng().random_range(1..=u16::MAX), rand::rng().random::<u16>());
        let made = transaction.execute(
            "INSERT INTO networks (organization, name, prefix, created_ms) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (prefix) DO NOTHING",
            params![organization, name, prefix(high, low), now_ms()],
        )?;
        if made == 1 {
            return Ok(transaction.last_insert_rowid());
        }
    }
}

fn prefix(high: u16, low: u16) -> String {
    format!("{}/48", std::net::Ipv6Addr::new(0xfdaa, high, low, 0, 0, 0, 0, 0))
}

pub(super) fn begin_deletion(connection: &mut Connection, name: &str) -> Result<AppRecord> {
    connection
        .execute(
            "UPDATE apps SET deleting_ms = ?2 WHERE name = ?1 AND deleted_ms IS NULL AND deleting_ms IS NULL",
            params![name, now_ms()],
        )
        .map_err(storage("mark an app for deletion"))?;
    find(connection, name).map_err(storage("read an app"))?.ok_or_else(|| CatalogError::AppNotFound(name.to_owned()))
}

pub(super) fn finish_deletion(connection: &mut Connection, name: &str) -> rusqlite::Result<bool> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute(
        "DELETE FROM app_keys WHERE app IN (SELECT number FROM apps WHERE name = ?1 AND deleting_ms IS NOT NULL
            AND deleted_ms IS NULL)
         AND NOT EXISTS (SELECT 1 FROM placements p WHERE p.app = app_keys.app AND p.released_ms IS NULL)",
        [name],
    )?;
    transaction.execute(
        "UPDATE apps SET deleted_ms = ?2 WHERE name = ?1 AND deleting_ms IS NOT NULL AND deleted_ms IS NULL
         AND NOT EXISTS (SELECT 1 FROM placements p WHERE p.app = apps.number AND p.released_ms IS NULL)",
        params![name, now_ms()],
    )?;
    let gone = find(&transaction, name)?.is_none();
    transaction.commit()?;
    Ok(gone)
}
