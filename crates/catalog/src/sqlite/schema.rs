//! Opening the file and bringing its schema up to date. Steps are only ever appended;
//! `user_version` counts them.

use std::{fs::File, path::Path};

use caddis_api::UnixMillis;
use caddis_disk::Reserve;
use rusqlite::{Connection, ErrorCode, OpenFlags, params};

use super::SqliteError;
use crate::PERSONAL;

type Result<T> = std::result::Result<T, SqliteError>;

/// `CADC`: marks a database as a catalog.
const APPLICATION_ID: i32 = 0x4341_4443;

const STEPS: &[&str] = &[
    "
    CREATE TABLE organizations (
        number INTEGER PRIMARY KEY AUTOINCREMENT, slug TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
        created_ms INTEGER NOT NULL) STRICT;
    CREATE TABLE networks (
        number INTEGER PRIMARY KEY AUTOINCREMENT, organization INTEGER NOT NULL REFERENCES \
                          organizations(number),
        name TEXT NOT NULL, prefix TEXT NOT NULL UNIQUE, created_ms INTEGER NOT NULL, UNIQUE \
                          (organization, name)) STRICT;
    CREATE TABLE apps (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
        organization INTEGER NOT NULL REFERENCES organizations(number),
        network INTEGER NOT NULL REFERENCES networks(number), created_ms INTEGER NOT NULL,
        deleting_ms INTEGER, deleted_ms INTEGER) STRICT;
    CREATE UNIQUE INDEX apps_by_name ON apps (name) WHERE deleted_ms IS NULL;
    CREATE TABLE app_keys (
        organization INTEGER NOT NULL REFERENCES organizations(number), key TEXT NOT NULL, \
                          wanted_name TEXT,
        app INTEGER NOT NULL REFERENCES apps(number), PRIMARY KEY (organization, key)) STRICT;
    CREATE TABLE placements (
        machine TEXT PRIMARY KEY, name TEXT NOT NULL, app INTEGER NOT NULL REFERENCES apps(number),
        worker TEXT NOT NULL, region TEXT NOT NULL, epoch INTEGER NOT NULL, ipv6 TEXT NOT NULL \
                          UNIQUE,
        created_ms INTEGER NOT NULL, released_ms INTEGER) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX placements_by_name ON placements (app, name) WHERE released_ms IS NULL;
    CREATE INDEX placements_by_worker ON placements (worker) WHERE released_ms IS NULL;
    CREATE TABLE tokens (
        number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, hash BLOB NOT NULL \
                          UNIQUE,
        organization INTEGER NOT NULL REFERENCES organizations(number), created_ms INTEGER NOT \
                          NULL) STRICT;
    CREATE TABLE health (only INTEGER PRIMARY KEY CHECK (only = 0), checked_ms INTEGER NOT NULL) \
                          STRICT;
",
    "
    CREATE TABLE requests (
        caller TEXT NOT NULL, key TEXT NOT NULL, id TEXT NOT NULL UNIQUE, fingerprint BLOB NOT NULL,
        created_ms INTEGER NOT NULL, machine TEXT, status INTEGER, content_type TEXT, body BLOB,
        PRIMARY KEY (caller, key)) STRICT;
    CREATE INDEX requests_by_time ON requests (created_ms);
",
    "
    ALTER TABLE requests ADD COLUMN lease_holder TEXT;
    ALTER TABLE requests ADD COLUMN lease_until_ms INTEGER;
",
    "
    CREATE TABLE addresses (
        number INTEGER PRIMARY KEY AUTOINCREMENT, app INTEGER NOT NULL REFERENCES apps(number),
        ip TEXT NOT NULL, kind TEXT NOT NULL, network INTEGER REFERENCES networks(number),
        region TEXT NOT NULL, service_name TEXT NOT NULL, created_ms INTEGER NOT NULL,
        UNIQUE (app, ip)) STRICT;
    CREATE UNIQUE INDEX addresses_by_ip ON addresses (ip) WHERE kind <> 'shared_v4';
",
    "
    CREATE TABLE volumes (
        volume TEXT PRIMARY KEY, name TEXT NOT NULL, app INTEGER NOT NULL REFERENCES apps(number),
        worker TEXT NOT NULL, region TEXT NOT NULL, epoch INTEGER NOT NULL,
        created_ms INTEGER NOT NULL, deleted_ms INTEGER) STRICT, WITHOUT ROWID;
    CREATE INDEX volumes_by_app ON volumes (app);
    CREATE INDEX volumes_by_worker ON volumes (worker) WHERE deleted_ms IS NULL;
",
    "
    CREATE TABLE policies (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
        app INTEGER NOT NULL REFERENCES apps(number), name TEXT NOT NULL, document TEXT NOT NULL,
        created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL, UNIQUE (app, name)) STRICT;
",
    "
    CREATE TABLE egress_revision (
        only INTEGER PRIMARY KEY CHECK (only = 0), revision INTEGER NOT NULL) STRICT;
    INSERT INTO egress_revision (only, revision) VALUES (0, 0);
    CREATE TABLE egress_addresses (
        ip TEXT PRIMARY KEY, app INTEGER NOT NULL REFERENCES apps(number), machine TEXT,
        region TEXT NOT NULL, pair INTEGER NOT NULL, created_ms INTEGER NOT NULL,
        released INTEGER) STRICT, WITHOUT ROWID;
    CREATE TABLE egress_blocks (
        ip TEXT NOT NULL REFERENCES egress_addresses(ip), block INTEGER NOT NULL,
        machine TEXT NOT NULL, PRIMARY KEY (ip, block)) STRICT, WITHOUT ROWID;
",
    "
    CREATE TABLE peers (
        network INTEGER NOT NULL REFERENCES networks(number), name TEXT NOT NULL,
        key TEXT NOT NULL UNIQUE, address TEXT NOT NULL UNIQUE, created_ms INTEGER NOT NULL,
        PRIMARY KEY (network, name)) STRICT, WITHOUT ROWID;
",
    "
    CREATE TABLE policy_revisions (
        worker TEXT PRIMARY KEY, revision INTEGER NOT NULL) STRICT, WITHOUT ROWID;
",
    "
    CREATE TABLE push_revisions (
        push TEXT NOT NULL, worker TEXT NOT NULL, revision INTEGER NOT NULL,
        PRIMARY KEY (push, worker)) STRICT, WITHOUT ROWID;
    INSERT INTO push_revisions (push, worker, revision)
        SELECT 'policies', worker, revision FROM policy_revisions;
    DROP TABLE policy_revisions;
",
];

/// Opens the catalog at `path`, making it when there is no file.
pub(super) fn open(path: &Path, reserve: &Reserve) -> Result<Connection> {
    let open_error = |reason: String| SqliteError::Open { path: path.to_owned(), reason };
    if !path.try_exists().map_err(|e| open_error(e.to_string()))? {
        create(path)?;
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || Connection::open_with_flags(path, flags);
    let mut connection = reserve
        .with(path, || {
            let connection = open()?;
            // The first read makes the files beside it.
            connection.pragma_query_value(None, "user_version", |_| Ok(()))?;
            Ok(connection)
        })
        .map_err(|e| explain(path, &e))?;
    verify(path, &connection)?;
    let prepared = reserve.with(path, || {
        prepare(&connection)?;
        migrate(&mut connection)?;
        end_leases(&connection)
    });
    prepared.map_err(|e| explain(path, &e))?;
    Ok(connection)
}

/// Makes the file under another name first: a file of the right name is a whole one, and one that
/// is empty was damaged, not just begun.
fn create(path: &Path) -> Result<()> {
    let open_error = |reason: String| SqliteError::Open { path: path.to_owned(), reason };
    let draft = path.with_extension("new");
    match std::fs::remove_file(&draft) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(open_error(e.to_string()));
        }
        _ => {}
    }
    let mut connection = Connection::open(&draft).map_err(|e| explain(path, &e))?;
    connection
        .pragma_update(None, "application_id", APPLICATION_ID)
        .map_err(|e| explain(path, &e))?;
    migrate(&mut connection).map_err(|e| explain(path, &e))?;
    connection.close().map_err(|(_, e)| explain(path, &e))?;
    let directory =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(&draft)
        .and_then(|file| file.sync_all())
        .and_then(|()| std::fs::rename(&draft, path))
        .and_then(|()| File::open(directory)?.sync_all())
        .map_err(|e| open_error(e.to_string()))
}

fn verify(path: &Path, connection: &Connection) -> Result<()> {
    let corrupt =
        |reason: &str| SqliteError::Corrupt { path: path.to_owned(), reason: reason.to_owned() };
    let number =
        |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let (application, version) = number("application_id")
        .and_then(|id| Ok((id, number("user_version")?)))
        .map_err(|e| explain(path, &e))?;
    if std::fs::metadata(path).is_ok_and(|file| file.len() == 0) {
        return Err(corrupt("it is empty"));
    }
    if application != i64::from(APPLICATION_ID) {
        return Err(SqliteError::Foreign { path: path.to_owned() });
    }
    let known = STEPS.len() as u32;
    let found = u32::try_from(version).map_err(|_| corrupt("impossible schema number"))?;
    if found > known {
        return Err(SqliteError::Newer { path: path.to_owned(), found, known });
    }
    let findings: String = connection
        .pragma_query_value(None, "quick_check", |row| row.get(0))
        .map_err(|e| explain(path, &e))?;
    if findings == "ok" {
        Ok(())
    } else {
        Err(corrupt(findings.lines().next().unwrap_or_default()))
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "busy_timeout", 5_000)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let done: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for (index, step) in STEPS.iter().enumerate().skip(done) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        if index == 0 {
            transaction.execute(
                "INSERT INTO organizations (slug, name, created_ms) VALUES (?1, 'Personal', ?2)",
                params![PERSONAL, now_ms()],
            )?;
        }
        transaction.pragma_update(None, "user_version", (index + 1) as u32)?;
        transaction.commit()?;
    }
    Ok(())
}

/// Whoever was carrying requests out was a process that had this file: it is no more.
fn end_leases(connection: &Connection) -> rusqlite::Result<()> {
    connection
        .execute(
            "UPDATE requests SET lease_holder = NULL, lease_until_ms = NULL WHERE \
                  lease_holder IS NOT NULL",
            [],
        )
        .map(drop)
}

fn explain(path: &Path, error: &rusqlite::Error) -> SqliteError {
    let (path, reason) = (path.to_owned(), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            SqliteError::Corrupt { path, reason }
        }
        _ => SqliteError::Open { path, reason },
    }
}

/// Milliseconds since the Unix epoch, as SQLite stores them.
pub(super) fn now_ms() -> i64 {
    i64::try_from(UnixMillis::now().as_u64()).unwrap_or(i64::MAX)
}
