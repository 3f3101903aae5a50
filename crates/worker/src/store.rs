//! The worker's database: one thread owns the connection and does one transaction after the other.
//!
//! What a client was promised, and every outcome, is written through to the disk
//! ([`Durability::Synced`]). Steps in between only have to survive this process, not the host,
//! since a host reboot ends every VM ([`Durability::Process`]).
//!
//! ```text
//! queue: ▸ synced ▸ process ▸ synced ▸ …   each is committed to the write-ahead log, and told if
//!        nothing more is wanted; then that log is written through once, and all that wait for it
//!        are told
//! ```

use std::{
    collections::HashSet,
    ops::Sub,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use caddis_api::{MachineId, RawConfig, UnixMillis, VersionId, event::MachineEvent};
use caddis_bus::message::VersionRecord;
use caddis_disk::Reserve;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use tokio::sync::oneshot;

use self::{
    database::{Answer, Job, not_durable, transact},
    tables::{column, events, from_json, record, row},
};
use crate::row::{FORMAT, MachineRow};

mod database;
mod snapshots;
mod tables;
mod volumes;

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

/// What becomes of a machine in one transaction.
#[derive(Debug, Clone)]
pub struct Change {
    /// The machine from now on.
    pub row: MachineRow,
    /// New events, oldest first.
    pub events: Vec<MachineEvent>,
    /// What it makes of the versions that are kept.
    pub versions: Vec<VersionChange>,
    /// Id of the request that asked for it, and when.
    pub request: Option<(String, UnixMillis)>,
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
        "database {} has schema version {found}, this version supports up to {known}: run the \
         newer version again",
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

impl StoreError {
    /// Whether there was no room for it.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Database { path, source, .. } if caddis_disk::is_full(source, path))
    }
}

/// What a commit must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The death of the host.
    Synced,
    /// The death of this process.
    Process,
}

/// What a commit may take on a disk that is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Nothing: it fails then.
    Free,
    /// The reserve: it frees room, or tells what has happened.
    Reserve,
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

/// The database. Clones share it.
#[derive(Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
    path: PathBuf,
    reserve: Arc<Reserve>,
    counters: Arc<Counters>,
}

impl Store {
    /// Opens the database, makes it when it does not exist, and brings its schema up to date.
    ///
    /// # Errors
    /// When it can't be opened, is damaged, or is newer than this program. It is never re-created
    /// silently.
    pub fn open(path: &Path, reserve: Arc<Reserve>) -> Result<Self, StoreError> {
        let jobs = database::serve(path, &reserve)?;
        Ok(Self { jobs, path: path.to_owned(), reserve, counters: Arc::default() })
    }

    async fn run<T: Send + 'static>(
        &self,
        attempted: &'static str,
        durability: Durability,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.queue(attempted, durability, move |connection| transact(connection, work)).await
    }

    /// The same for what must be recorded also when the disk is full.
    async fn run_anyway<T: Send + 'static>(
        &self,
        attempted: &'static str,
        durability: Durability,
        work: impl Fn(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (path, reserve) = (self.path.clone(), self.reserve.clone());
        let tried = move |connection: &mut Connection| {
            reserve.with(&path, || transact(connection, |transaction| work(transaction)))
        };
        self.queue(attempted, durability, tried).await
    }

    async fn queue<T: Send + 'static>(
        &self,
        attempted: &'static str,
        durability: Durability,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, receiver) = oneshot::channel();
        let work = Box::new(move |connection: rusqlite::Result<&mut Connection>| {
            let outcome = connection.and_then(work);
            let answer: Answer = Box::new(move |durable| {
                let outcome =
                    outcome.and_then(|value| durable.map(|()| value).map_err(not_durable));
                // Nobody waits any more when the receiver is gone; the work was asked for and is
                // done all the same.
                let _ = sender.send(outcome);
            });
            answer
        });
        self.jobs.send(Job { durability, work }).map_err(|_| StoreError::Closed)?;
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
    pub async fn commit(
        &self,
        changes: Vec<Change>,
        durability: Durability,
        room: Room,
    ) -> Result<(), StoreError> {
        let counters = self.counters.clone();
        let work = move |transaction: &Transaction<'_>| {
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
        };
        match room {
            Room::Free => self.run("record a machine", durability, work).await,
            Room::Reserve => self.run_anyway("record a machine", durability, work).await,
        }
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
    pub async fn load(
        &self,
        recent: usize,
    ) -> Result<Vec<(MachineRow, Vec<MachineEvent>)>, StoreError> {
        let path = self.path.clone();
        let damaged = move |detail| StoreError::Damaged { path: path.clone(), detail };
        let found = self.run("load machines", Durability::Process, move |transaction| {
            let mut statement =
                transaction.prepare("SELECT id, record FROM machines ORDER BY id")?;
            let mut rows = statement.query([])?;
            let mut machines = Vec::new();
            while let Some(row) = rows.next()? {
                let (id, record): (String, String) = (row.get(0)?, row.get(1)?);
                machines.push(match serde_json::from_str::<MachineRow>(&record) {
                    Ok(row) if row.format > FORMAT => Err(damaged(format!(
                        "record of machine {id} has the newer format {}",
                        row.format
                    ))),
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

    /// A machine, with its latest `recent` events, newest first.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn machine(
        &self,
        machine: &MachineId,
        recent: usize,
    ) -> Result<Option<(MachineRow, Vec<MachineEvent>)>, StoreError> {
        let machine = machine.clone();
        self.run("read a machine", Durability::Process, move |transaction| {
            let Some(row) = row(transaction, &machine)? else { return Ok(None) };
            Ok(Some((row, events(transaction, &machine, recent)?)))
        })
        .await
    }

    /// A machine's latest events, newest first.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn events(
        &self,
        machine: &MachineId,
        limit: usize,
    ) -> Result<Vec<MachineEvent>, StoreError> {
        let machine = machine.clone();
        self.run("read events", Durability::Process, move |transaction| {
            events(transaction, &machine, limit)
        })
        .await
    }

    /// A machine's configuration as recorded, also of a destroyed one.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn config(&self, machine: &MachineId) -> Result<Option<RawConfig>, StoreError> {
        let machine = machine.clone();
        self.run("read a configuration", Durability::Process, move |transaction| {
            Ok(row(transaction, &machine)?.map(|row| row.config))
        })
        .await
    }

    /// A machine's replaced versions, newest first.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn versions(&self, machine: &MachineId) -> Result<Vec<VersionRecord>, StoreError> {
        let machine = machine.clone();
        self.run("read versions", Durability::Process, move |transaction| {
            let mut statement = transaction.prepare_cached(
                "SELECT record FROM versions WHERE machine = ?1 ORDER BY id DESC",
            )?;
            let texts = statement.query_map([machine.as_str()], |row| row.get::<_, String>(0))?;
            texts.map(|text| serde_json::from_str(&text?).map_err(from_json)).collect()
        })
        .await
    }

    /// Machines that were destroyed before `time`.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn destroyed_before(&self, time: UnixMillis) -> Result<Vec<MachineId>, StoreError> {
        let time = column(time);
        self.run("look for destroyed machines", Durability::Process, move |transaction| {
            let mut statement =
                transaction.prepare_cached("SELECT id FROM machines WHERE destroyed_at < ?1")?;
            let ids = statement
                .query_map([time], |row| Ok(MachineId::from_trusted(row.get::<_, String>(0)?)))?;
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
        self.run_anyway("forget a machine", Durability::Process, move |transaction| {
            transaction.execute("DELETE FROM machines WHERE id = ?1", [machine.as_str()])?;
            Ok(())
        })
        .await
    }

    /// Ids of the requests that were accepted since `time`; earlier ones are forgotten.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn accepted_since(&self, time: UnixMillis) -> Result<HashSet<String>, StoreError> {
        let time = column(time);
        self.run_anyway("look for accepted requests", Durability::Process, move |transaction| {
            transaction.execute("DELETE FROM requests WHERE accepted_at < ?1", [time])?;
            let mut statement = transaction.prepare_cached("SELECT id FROM requests")?;
            statement.query_map([], |row| row.get(0))?.collect()
        })
        .await
    }

    /// A fact about the worker itself.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn meta(&self, key: &'static str) -> Result<Option<String>, StoreError> {
        self.run("read meta data", Durability::Process, move |transaction| {
            transaction
                .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
                .optional()
        })
        .await
    }

    /// Records a fact about the worker itself.
    ///
    /// # Errors
    /// When it can't be recorded.
    pub async fn set_meta(&self, key: &'static str, value: String) -> Result<(), StoreError> {
        let work = move |transaction: &Transaction<'_>| write_meta(transaction, key, &value);
        self.run_anyway("write meta data", Durability::Synced, work).await
    }

    /// Proves that the database can be written, by its own strength.
    ///
    /// # Errors
    /// When it can't.
    pub async fn check(&self, now: UnixMillis) -> Result<(), StoreError> {
        let work = move |transaction: &Transaction<'_>| {
            write_meta(transaction, "checked_at", &now.as_u64().to_string())
        };
        self.run("write meta data", Durability::Synced, work).await
    }
}

fn write_meta(transaction: &Transaction<'_>, key: &str, value: &str) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
        params![key, value],
    )?;
    Ok(())
}
