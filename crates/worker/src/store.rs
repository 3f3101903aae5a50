//! The worker's database: one thread owns the connection and does one transaction after the other.
//!
//! What a client was promised, and every outcome, is written through to the disk
//! ([`Durability::Synced`]). Steps in between only have to survive this process, not the host,
//! since a host reboot ends every VM ([`Durability::Process`]).
//!
//! ```text
//! queue: ▸ synced ▸ process ▸ synced ▸ …   each is committed to the write-ahead log, and told if nothing more is wanted;
//!        then that log is written through once, and all that wait for it are told
//! ```

use std::{
    collections::HashSet,
    fs::File,
    ops::Sub,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

use caddis_api::{MachineId, RawConfig, VersionId, event::MachineEvent};
use caddis_bus::message::VersionRecord;
use caddis_disk::Reserve;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use tokio::sync::oneshot;

use self::tables::{events, from_json, record, row};
use crate::row::{FORMAT, MachineRow};

mod tables;

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
    // Requests whose changes are recorded, so that one that comes again changes nothing.
    "CREATE TABLE requests (id TEXT PRIMARY KEY, accepted_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;",
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
    /// Id of the request that asked for it, and when, milliseconds since the Unix epoch.
    pub request: Option<(String, u64)>,
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

/// What is to be done with the database.
struct Job {
    durability: Durability,
    work: Work,
}

/// Does it, where the database may be used, and gives how to tell the outcome.
type Work = Box<dyn FnOnce(rusqlite::Result<&mut Connection>) -> Answer + Send>;

/// Tells the outcome to who waits for it, once it is as durable as wanted, or could not be made so.
type Answer = Box<dyn FnOnce(Result<(), String>) + Send>;

/// So much is done at most before the disk is waited for: who is first would wait for all.
const MOST_AT_ONCE: usize = 64;

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
        let connection = open(path, &reserve)?;
        let (jobs, queue) = mpsc::channel::<Job>();
        let log = log_of(path);
        let damaged = |detail: String| StoreError::Damaged { path: path.to_owned(), detail };
        let log = File::open(&log)
            .map_err(|error| damaged(format!("can't open {}: {error}", log.display())))?;
        let (own_path, own_reserve) = (path.to_owned(), reserve.clone());
        let mut database =
            Database { connection, log, is_behind: false, path: own_path, reserve: own_reserve };
        thread::Builder::new()
            .name("worker-database".to_owned())
            .spawn(move || {
                while let Ok(first) = queue.recv() {
                    let rest = queue.try_iter().take(MOST_AT_ONCE - 1);
                    database.do_all(std::iter::once(first).chain(rest));
                }
            })
            .map_err(|e| damaged(format!("can't start its thread: {e}")))?;
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

    /// Machines that were destroyed before `time`, milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn destroyed_before(&self, time: u64) -> Result<Vec<MachineId>, StoreError> {
        let time = i64::try_from(time).unwrap_or(i64::MAX);
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

    /// Ids of the requests that were accepted since `time`, milliseconds since the Unix epoch;
    /// earlier ones are forgotten.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn accepted_since(&self, time: u64) -> Result<HashSet<String>, StoreError> {
        let time = i64::try_from(time).unwrap_or(i64::MAX);
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
    pub async fn check(&self, now_ms: u64) -> Result<(), StoreError> {
        let work = move |transaction: &Transaction<'_>| {
            write_meta(transaction, "checked_at", &now_ms.to_string())
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

/// SQLite's write-ahead log of a database. It is there from the first access to the last
/// connection's end.
fn log_of(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-wal");
    path.into()
}

/// What the database's thread has.
struct Database {
    connection: Connection,
    /// Its write-ahead log, open since the disk is waited for by it.
    log: File,
    /// The log could not be written through: what is in it may be lost, and nothing is added until
    /// it has been moved.
    is_behind: bool,
    path: PathBuf,
    reserve: Arc<Reserve>,
}

impl Database {
    /// Does some work, one after the other, and tells each outcome when it is as durable as wanted.
    fn do_all(&mut self, jobs: impl Iterator<Item = Job>) {
        let mut waiting = Vec::new();
        for Job { durability, work } in jobs {
            let usable = if self.is_behind { self.move_log() } else { Ok(()) };
            let answer = work(usable.map_err(not_durable).map(|()| &mut self.connection));
            match durability {
                Durability::Process => answer(Ok(())),
                Durability::Synced => waiting.push(answer),
            }
        }
        if waiting.is_empty() {
            return;
        }
        // What SQLite itself does for each transaction that it is to write through. What was moved
        // to the database meanwhile it has written through before it lets go of it here.
        let synced = self.log.sync_data().or_else(|error| {
            tracing::error!(path = %self.path.display(), %error, "can't write the database's log through to the disk");
            self.is_behind = true;
            // What was committed is there for all who read, so it has to become durable, not to be
            // taken back.
            self.move_log()
        });
        for answer in waiting {
            answer(synced.clone());
        }
    }

    /// Writes all that is in the log to the database, through to the disk, and empties it.
    fn move_log(&mut self) -> Result<(), String> {
        let checkpoint = || {
            let busy: i64 =
                self.connection
                    .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
            if busy == 0 {
                Ok(())
            } else {
                Err(not_durable("somebody reads the database".to_owned()))
            }
        };
        self.reserve.with(&self.path, checkpoint).map_err(|error| error.to_string())?;
        self.is_behind = false;
        Ok(())
    }
}

/// As SQLite says it.
fn not_durable(reason: String) -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_FSYNC);
    rusqlite::Error::SqliteFailure(code, Some(reason))
}

fn open(path: &Path, reserve: &Reserve) -> Result<Connection, StoreError> {
    let database = |attempted: &'static str| {
        move |source| StoreError::Database { path: path.to_owned(), attempted, source }
    };
    let opened = reserve.with(path, || {
        let connection = Connection::open(path)?;
        // Makes the files beside it.
        connection.pragma_update(None, "journal_mode", "WAL")?;
        Ok(connection)
    });
    let mut connection = opened.map_err(database("open"))?;
    connection.pragma_update(None, "foreign_keys", "ON").map_err(database("check foreign keys"))?;
    let verdict: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(database("check"))?;
    if verdict != "ok" {
        return Err(StoreError::Damaged { path: path.to_owned(), detail: verdict });
    }
    let found: i64 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(database("read its version"))?;
    let known = MIGRATIONS.len() as i64;
    if found > known {
        return Err(StoreError::TooNew { path: path.to_owned(), found, known });
    }
    for (index, migration) in
        MIGRATIONS.iter().enumerate().skip(usize::try_from(found).unwrap_or(0))
    {
        let migrated = reserve.with(path, || {
            transact(&mut connection, |transaction| {
                transaction.execute_batch(migration)?;
                transaction.pragma_update(None, "user_version", index as i64 + 1)
            })
        });
        migrated.map_err(database("bring the schema up to date"))?;
    }
    // From here on it is written through when all that waits for that has been done.
    connection
        .pragma_update(None, "synchronous", "NORMAL")
        .map_err(database("choose what is written through"))?;
    Ok(connection)
}

fn transact<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let transaction = connection.transaction()?;
    let result = work(&transaction)?;
    transaction.commit()?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does these, each of which writes a row or fails, and gives what each was told.
    fn outcomes(database: &mut Database, wanted: &[(Durability, bool)]) -> Vec<Option<bool>> {
        let told = Arc::new(std::sync::Mutex::new(vec![None; wanted.len()]));
        let jobs = wanted.iter().enumerate().map(|(number, (durability, fails))| {
            let (told, fails) = (told.clone(), *fails);
            let work = Box::new(move |connection: rusqlite::Result<&mut Connection>| {
                let row = if fails { None } else { Some(number as i64) };
                let write = |transaction: &Transaction<'_>| {
                    transaction.execute("INSERT INTO rows VALUES (1000 + ?1)", [number as i64])?;
                    transaction.execute("INSERT INTO rows VALUES (?1)", [row])
                };
                let done = connection.and_then(|connection| transact(connection, write));
                let answer: Answer = Box::new(move |durable| {
                    told.lock().unwrap()[number] = Some(done.is_ok() && durable.is_ok());
                });
                answer
            });
            Job { durability: *durability, work }
        });
        database.do_all(jobs);
        Arc::into_inner(told).unwrap().into_inner().unwrap()
    }

    #[test]
    fn one_that_fails_leaves_the_others_alone_and_a_log_that_can_t_be_written_through_is_moved_first()
     {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("database");
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection.execute_batch("CREATE TABLE rows (number INTEGER NOT NULL) STRICT").unwrap();
        let log = File::open(log_of(&path)).unwrap();
        let reserve = Arc::new(Reserve::none());
        let mut database =
            Database { connection, log, is_behind: false, path: path.clone(), reserve };
        let rows = |database: &Database| -> i64 {
            database
                .connection
                .query_row("SELECT count(*) FROM rows", [], |row| row.get(0))
                .unwrap()
        };
        let wanted = [
            (Durability::Synced, false),
            (Durability::Synced, true),
            (Durability::Process, false),
            (Durability::Process, true),
            (Durability::Synced, false),
        ];
        let expected = [Some(true), Some(false), Some(true), Some(false), Some(true)];
        assert_eq!(outcomes(&mut database, &wanted), expected);
        assert_eq!(rows(&database), 6, "nothing of those that failed");

        // Nothing can be written through by it, but all can be moved.
        database.log = File::from(std::os::fd::OwnedFd::from(
            std::os::unix::net::UnixStream::pair().unwrap().0,
        ));
        assert_eq!(outcomes(&mut database, &wanted), expected);
        assert!(!database.is_behind && std::fs::metadata(log_of(&path)).unwrap().len() == 0);

        // Somebody reads, so that not even that can be done: nobody is told that it is durable, and
        // nothing is added.
        let reader = Connection::open(&path).unwrap();
        reader.execute_batch("BEGIN").unwrap();
        let _: i64 = reader.query_row("SELECT count(*) FROM rows", [], |row| row.get(0)).unwrap();
        database.connection.busy_timeout(std::time::Duration::ZERO).unwrap();
        let refused = [Some(false), Some(false), Some(true), Some(false), Some(false)];
        assert_eq!(outcomes(&mut database, &wanted), refused);
        let before = rows(&database);
        assert_eq!(outcomes(&mut database, &wanted), [Some(false); 5]);
        assert_eq!(rows(&database), before);

        reader.execute_batch("COMMIT").unwrap();
        database.log = File::open(log_of(&path)).unwrap();
        assert_eq!(outcomes(&mut database, &wanted), expected);
        assert_eq!(rows(&database), before + 6);
    }

    #[tokio::test]
    async fn what_many_want_at_once_is_done_for_each() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("database");
        let store = Store::open(&path, Arc::new(Reserve::none())).unwrap();
        let write = |number: i64| {
            store.run("write", Durability::Synced, move |transaction| {
                transaction.execute("INSERT INTO meta VALUES ('many' || ?1, ?1)", [number])
            })
        };
        let done = futures::future::join_all((0..200).map(write)).await;
        assert!(done.iter().all(|done| matches!(done, Ok(1))), "{done:?}");
        let twice = write(7).await.unwrap_err();
        assert!(twice.to_string().contains("write"), "{twice}");
    }
}
