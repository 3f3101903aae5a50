//! The worker's database: one thread owns the connection and does one transaction after the other.
//!
//! What a client was promised, and every outcome, is written through to the disk ([`Durability::Synced`]). Steps in
//! between only have to survive this process, not the host, since a host reboot ends every VM
//! ([`Durability::Process`]).

use std::{
    ops::Sub,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

use caddis_api::{MachineId, VersionId, event::MachineEvent};
use caddis_bus::message::VersionRecord;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use tokio::sync::oneshot;

use crate::row::{FORMAT, MachineRow};

/// Events kept per machine.
pub const EVENTS_PER_MACHINE: usize = 1000;

/// Replaced versions kept per machine.
pub const VERSIONS_PER_MACHINE: usize = 50;

/// A change of the versions that are kept.
#[derive(Debug, Clone, PartialEq)]
pub enum VersionChange {
    /// It was replaced.
    Keep(VersionRecord),
    /// It is the current one again.
    Forget(VersionId),
}

/// Each entry takes the schema one version further. Only ever added to.
const MIGRATIONS: &[&str] = &[
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
     CREATE TABLE machines (
         id TEXT PRIMARY KEY, app TEXT NOT NULL, state TEXT NOT NULL, destroyed_at INTEGER, record TEXT NOT NULL
     ) STRICT;
     CREATE TABLE events (
         machine TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE, id TEXT NOT NULL, event TEXT NOT NULL,
         PRIMARY KEY (machine, id)
     ) STRICT, WITHOUT ROWID;",
    // Versions that were replaced; the current one is in the machine's record.
    "CREATE TABLE versions (
         machine TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE, id TEXT NOT NULL, record TEXT NOT NULL,
         PRIMARY KEY (machine, id)
     ) STRICT, WITHOUT ROWID;",
];

/// What becomes of a machine in one transaction.
#[derive(Debug, Clone)]
pub struct Change {
    /// The machine from now on.
    pub row: MachineRow,
    /// New events, oldest first.
    pub events: Vec<MachineEvent>,
    /// What it makes of the versions that are kept.
    pub versions: Vec<VersionChange>,
}

/// What can go wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused.
    #[error("database {}: {attempted}: {source}", path.display())]
    Database {
        /// Which file.
        path: PathBuf,
        /// What was attempted.
        attempted: &'static str,
        /// Its answer.
        source: rusqlite::Error,
    },
    /// Written by a newer program.
    #[error(
        "database {} has schema version {found}, this program knows up to {known}: start the newer program again",
        path.display()
    )]
    TooNew {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// Damaged.
    #[error("database {} is damaged ({detail}): restore it with `caddis restore`", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The thread is gone.
    #[error("the database is closed")]
    Closed,
}

/// What a commit must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The death of the host.
    Synced,
    /// The death of this process.
    Process,
}

/// What was recorded of machines since the worker was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatabaseUse {
    /// Transactions that were written through to the disk.
    pub synced: u64,
    /// Transactions that were not.
    pub unsynced: u64,
    /// Bytes of the records of machines, events and versions in all of them.
    pub bytes: u64,
}

impl Sub for DatabaseUse {
    type Output = Self;

    /// What was recorded since then.
    fn sub(self, earlier: Self) -> Self {
        Self {
            synced: self.synced - earlier.synced,
            unsynced: self.unsynced - earlier.unsynced,
            bytes: self.bytes - earlier.bytes,
        }
    }
}

#[derive(Default)]
struct Counters {
    synced: AtomicU64,
    unsynced: AtomicU64,
    bytes: AtomicU64,
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The database. Clones share it.
#[derive(Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
    path: PathBuf,
    counters: Arc<Counters>,
}

impl Store {
    /// Opens the database, makes it when it does not exist, and brings its schema up to date.
    ///
    /// # Errors
    /// When it can't be opened, is damaged, or is newer than this program. It is never re-created silently.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = open(path)?;
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name("worker-database".to_owned())
            .spawn(move || {
                let mut connection = connection;
                for job in queue {
                    job(&mut connection);
                }
            })
            .map_err(|e| StoreError::Damaged {
                path: path.to_owned(),
                detail: format!("can't start its thread: {e}"),
            })?;
        Ok(Self { jobs, path: path.to_owned(), counters: Arc::default() })
    }

    async fn run<T: Send + 'static>(
        &self,
        attempted: &'static str,
        durability: Durability,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // Nobody waits any more when the receiver is gone; the work was asked for and is done all the same.
            let _ = sender.send(transact(connection, durability, work));
        });
        self.jobs.send(job).map_err(|_| StoreError::Closed)?;
        receiver.await.map_err(|_| StoreError::Closed)?.map_err(|source| StoreError::Database {
            path: self.path.clone(),
            attempted,
            source,
        })
    }

    /// Records changes of machines in one transaction.
    ///
    /// # Errors
    /// When they could not be recorded; then none was.
    pub async fn commit(&self, changes: Vec<Change>, durability: Durability) -> Result<(), StoreError> {
        let counters = self.counters.clone();
        self.run("record a machine", durability, move |transaction| {
            let mut bytes = 0;
            for change in &changes {
                bytes += record(transaction, change)?;
            }
            let transactions = match durability {
                Durability::Synced => &counters.synced,
                Durability::Process => &counters.unsynced,
            };
            transactions.fetch_add(1, Ordering::Relaxed);
            counters.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            Ok(())
        })
        .await
    }

    /// What [`Self::commit`] has recorded so far.
    pub fn database_use(&self) -> DatabaseUse {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { synced, unsynced, bytes } = &*self.counters;
        DatabaseUse { synced: of(synced), unsynced: of(unsynced), bytes: of(bytes) }
    }

    /// All machines, with their latest `recent` events each, newest first.
    ///
    /// # Errors
    /// When a record can't be read.
    pub async fn load(&self, recent: usize) -> Result<Vec<(MachineRow, Vec<MachineEvent>)>, StoreError> {
        let path = self.path.clone();
        let damaged = move |detail| StoreError::Damaged { path: path.clone(), detail };
        let found = self.run("load machines", Durability::Process, move |transaction| {
            let mut statement = transaction.prepare("SELECT id, record FROM machines ORDER BY id")?;
            let mut rows = statement.query([])?;
            let mut machines = Vec::new();
            while let Some(row) = rows.next()? {
                let (id, record): (String, String) = (row.get(0)?, row.get(1)?);
                machines.push(match serde_json::from_str::<MachineRow>(&record) {
                    Ok(row) if row.format > FORMAT => {
                        Err(damaged(format!("record of machine {id} has the newer format {}", row.format)))
                    }
                    Ok(row) => {
                        let events = events(transaction, &row.id, recent)?;
                        Ok((row, events))
                    }
                    Err(e) => Err(damaged(format!("record of machine {id}: {e}"))),
                });
            }
            Ok(machines)
        });
        found.await?.into_iter().collect()
    }

    /// A machine's latest events, newest first.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn events(&self, machine: &MachineId, limit: usize) -> Result<Vec<MachineEvent>, StoreError> {
        let machine = machine.clone();
        self.run("read events", Durability::Process, move |transaction| events(transaction, &machine, limit)).await
    }

    /// A machine's replaced versions, newest first.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn versions(&self, machine: &MachineId) -> Result<Vec<VersionRecord>, StoreError> {
        let machine = machine.clone();
        self.run("read versions", Durability::Process, move |transaction| {
            let mut statement =
                transaction.prepare_cached("SELECT record FROM versions WHERE machine = ?1 ORDER BY id DESC")?;
            let texts = statement.query_map([machine.as_str()], |row| row.get::<_, String>(0))?;
            texts.map(|text| serde_json::from_str(&text?).map_err(from_json)).collect()
        })
        .await
    }

    /// Machines that were destroyed before `time`, milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn destroyed_before(&self, time: u64) -> Result<Vec<MachineId>, StoreError> {
        let time = i64::try_from(time).unwrap_or(i64::MAX);
        self.run("look for destroyed machines", Durability::Process, move |transaction| {
            let mut statement = transaction.prepare_cached("SELECT id FROM machines WHERE destroyed_at < ?1")?;
            let ids = statement.query_map([time], |row| Ok(MachineId::from_trusted(row.get::<_, String>(0)?)))?;
            ids.collect()
        })
        .await
    }

    /// Forgets a destroyed machine and its events.
    ///
    /// # Errors
    /// When it can't be recorded.
    pub async fn forget(&self, machine: &MachineId) -> Result<(), StoreError> {
        let machine = machine.clone();
        self.run("forget a machine", Durability::Process, move |transaction| {
            transaction.execute("DELETE FROM machines WHERE id = ?1", [machine.as_str()])?;
            Ok(())
        })
        .await
    }

    /// A fact about the worker itself.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn meta(&self, key: &'static str) -> Result<Option<String>, StoreError> {
        self.run("read meta data", Durability::Process, move |transaction| {
            transaction.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()
        })
        .await
    }

    /// Records a fact about the worker itself.
    ///
    /// # Errors
    /// When it can't be recorded: this also is the proof that the database can be written.
    pub async fn set_meta(&self, key: &'static str, value: String) -> Result<(), StoreError> {
        self.run("write meta data", Durability::Synced, move |transaction| {
            transaction.execute(
                "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
                params![key, value],
            )?;
            Ok(())
        })
        .await
    }
}

fn open(path: &Path) -> Result<Connection, StoreError> {
    let database =
        |attempted: &'static str| move |source| StoreError::Database { path: path.to_owned(), attempted, source };
    let mut connection = Connection::open(path).map_err(database("open"))?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(database("use a write-ahead log"))?;
    connection.pragma_update(None, "foreign_keys", "ON").map_err(database("check foreign keys"))?;
    let verdict: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(database("check"))?;
    if verdict != "ok" {
        return Err(StoreError::Damaged { path: path.to_owned(), detail: verdict });
    }
    let found: i64 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(database("read its version"))?;
    let known = MIGRATIONS.len() as i64;
    if found > known {
        return Err(StoreError::TooNew { path: path.to_owned(), found, known });
    }
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(usize::try_from(found).unwrap_or(0)) {
        transact(&mut connection, Durability::Synced, |transaction| {
            transaction.execute_batch(migration)?;
            transaction.pragma_update(None, "user_version", index as i64 + 1)
        })
        .map_err(database("bring the schema up to date"))?;
    }
    Ok(connection)
}

fn transact<T>(
    connection: &mut Connection,
    durability: Durability,
    work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let synchronous = match durability {
        Durability::Synced => "FULL",
        Durability::Process => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    let transaction = connection.transaction()?;
    let result = work(&transaction)?;
    transaction.commit()?;
    Ok(result)
}

fn events(transaction: &Transaction<'_>, machine: &MachineId, limit: usize) -> rusqlite::Result<Vec<MachineEvent>> {
    let mut statement =
        transaction.prepare_cached("SELECT event FROM events WHERE machine = ?1 ORDER BY id DESC LIMIT ?2")?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let texts = statement.query_map(params![machine.as_str(), limit], |row| row.get::<_, String>(0))?;
    texts.map(|text| serde_json::from_str(&text?).map_err(from_json)).collect()
}

/// Records a change, and returns the bytes of its records.
fn record(transaction: &Transaction<'_>, Change { row, events, versions }: &Change) -> rusqlite::Result<usize> {
    let text = to_json(row)?;
    let mut bytes = text.len();
    transaction
        .prepare_cached(
            "INSERT INTO machines (id, app, state, destroyed_at, record) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (id) DO UPDATE SET state = ?3, destroyed_at = ?4, record = ?5",
        )?
        .execute(params![
            row.id.as_str(),
            row.app,
            row.state.as_str(),
            row.destroyed_at.and_then(|at| i64::try_from(at).ok()),
            text,
        ])?;
    for event in events {
        let text = to_json(event)?;
        bytes += text.len();
        transaction.prepare_cached("INSERT INTO events (machine, id, event) VALUES (?1, ?2, ?3)")?.execute(params![
            row.id.as_str(),
            event.id.as_str(),
            text
        ])?;
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
                .prepare_cached("INSERT OR REPLACE INTO versions (machine, id, record) VALUES (?1, ?2, ?3)")?
                .execute(params![machine.as_str(), record.version.as_str(), text])?;
            transaction
                .prepare_cached(
                    "DELETE FROM versions WHERE machine = ?1 AND id <=
                     (SELECT id FROM versions WHERE machine = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
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

fn to_json<T: serde::Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}

fn from_json(error: serde_json::Error) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
}
