//! The thread that owns the connection to the database.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
};

use caddis_disk::Reserve;
use rusqlite::{Connection, Transaction};

use super::{Durability, StoreError};

/// Each entry takes the schema one version further. Only ever added to.
const MIGRATIONS: &[&str] = &[
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
     CREATE TABLE machines (
         id TEXT PRIMARY KEY, app TEXT NOT NULL, state TEXT NOT NULL, destroyed_at INTEGER, record \
     TEXT NOT NULL
     ) STRICT;
     CREATE TABLE events (
         machine TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE, id TEXT NOT NULL, event \
     TEXT NOT NULL,
         PRIMARY KEY (machine, id)
     ) STRICT, WITHOUT ROWID;",
    // Versions that were replaced; the current one is in the machine's record.
    "CREATE TABLE versions (
         machine TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE, id TEXT NOT NULL, \
     record TEXT NOT NULL,
         PRIMARY KEY (machine, id)
     ) STRICT, WITHOUT ROWID;",
    // Requests whose changes are recorded, so that one that comes again changes nothing.
    "CREATE TABLE requests (id TEXT PRIMARY KEY, accepted_at INTEGER NOT NULL) STRICT, WITHOUT \
     ROWID;",
    "CREATE TABLE volumes (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT, WITHOUT ROWID;",
    "CREATE TABLE snapshots (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT, WITHOUT ROWID;",
];

/// What is to be done with the database.
pub(super) struct Job {
    pub(super) durability: Durability,
    pub(super) work: Work,
}

/// Does it, where the database may be used, and gives how to tell the outcome.
pub(super) type Work = Box<dyn FnOnce(rusqlite::Result<&mut Connection>) -> Answer + Send>;

/// Tells the outcome to who waits for it, once it is as durable as wanted, or could not be made so.
pub(super) type Answer = Box<dyn FnOnce(Result<(), String>) + Send>;

/// So much is done at most before the disk is waited for: who is first would wait for all.
const MOST_AT_ONCE: usize = 64;

/// Opens the database, and begins the thread that does what it is sent.
///
/// # Errors
/// When the database can't be opened, is damaged, or is newer than this program.
pub(super) fn serve(path: &Path, reserve: &Arc<Reserve>) -> Result<mpsc::Sender<Job>, StoreError> {
    let connection = open(path, reserve)?;
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
    Ok(jobs)
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
            tracing::error!(path = %self.path.display(), %error, "can't sync the database's log to \
                disk");
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
                Err(not_durable("another connection is reading the database".to_owned()))
            }
        };
        self.reserve.with(&self.path, checkpoint).map_err(|error| error.to_string())?;
        self.is_behind = false;
        Ok(())
    }
}

/// As SQLite says it.
pub(super) fn not_durable(reason: String) -> rusqlite::Error {
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
        migrated.map_err(database("migrate the schema"))?;
    }
    // From here on it is written through when all that waits for that has been done.
    connection
        .pragma_update(None, "synchronous", "NORMAL")
        .map_err(database("set the sync mode"))?;
    Ok(connection)
}

pub(super) fn transact<T>(
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
    use crate::store::Store;

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
    fn one_that_fails_leaves_the_others_alone_and_a_log_that_can_t_be_written_is_moved_first() {
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
