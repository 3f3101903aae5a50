//! The catalog in one SQLite file: WAL, fsync before every answer, one thread that owns the connection. Tokens are
//! also held in memory, so that authenticating a request costs no visit to the thread.

mod apps;
mod placements;
mod requests;
mod schema;
mod thread;
mod tokens;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use caddis_api::{MachineId, WorkerId, app::Organization};
use caddis_disk::Reserve;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, backup::StepResult, params};

use crate::{
    Answer, AppPage, AppQuery, AppRecord, Catalog, CatalogError, Keyed, KeyedRequest, NewApp, NewPlacement, Placement,
    Result, TokenRecord,
};

type Tokens = HashMap<[u8; 32], TokenRecord>;

/// The catalog of an installation of one host.
pub struct SqliteCatalog {
    path: PathBuf,
    owner: thread::Owner,
    tokens: Arc<RwLock<Tokens>>,
}

impl SqliteCatalog {
    /// Opens the catalog at `path`; makes it, with the organisation `personal`, when there is no such file. Blocks.
    ///
    /// # Errors
    /// [`CatalogError::Corrupt`], [`CatalogError::Foreign`] or [`CatalogError::Newer`] for a file that is not to be
    /// touched, [`CatalogError::Open`] for one that can't be opened.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, Arc::new(Reserve::none()))
    }

    /// The same, with a reserve of room for what must be recorded also when the disk is full. Blocks.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(path: &Path, reserve: Arc<Reserve>) -> Result<Self> {
        let connection = schema::open(path, &reserve)?;
        let tokens = tokens::all(&connection).map_err(storage("read tokens"))?;
        let owner = thread::Owner::new(connection, path.to_owned(), reserve)
            .map_err(|e| CatalogError::Open { path: path.to_owned(), reason: e.to_string() })?;
        Ok(Self { path: path.to_owned(), owner, tokens: Arc::new(RwLock::new(tokens)) })
    }

    /// Takes this text for a token, until this catalog is closed or its root token replaced. Stores nothing.
    #[cfg(feature = "test-tokens")]
    pub fn accept_token(&self, text: &str, token: TokenRecord) {
        self.tokens.write().unwrap_or_else(PoisonError::into_inner).insert(tokens::hash(text), token);
    }

    async fn set_root_token(&self, replace: bool) -> Result<Option<String>> {
        let tokens = self.tokens.clone();
        self.owner
            .run(move |connection| {
                let made = tokens::set_root(connection, replace).map_err(storage("make the root token"))?;
                let known = tokens::all(connection).map_err(storage("read tokens"))?;
                *tokens.write().unwrap_or_else(PoisonError::into_inner) = known;
                Ok(made)
            })
            .await
    }
}

/// Says what was attempted when SQLite failed.
fn storage(attempt: &'static str) -> impl FnOnce(rusqlite::Error) -> CatalogError {
    move |source| CatalogError::Storage { attempt, source }
}

fn find_organization(connection: &Connection, slug: &str) -> rusqlite::Result<Option<Organization>> {
    connection
        .prepare_cached("SELECT name, slug, number FROM organizations WHERE slug = ?1")?
        .query_row([slug], |row| {
            Ok(Organization { name: row.get(0)?, slug: row.get(1)?, internal_numeric_id: row.get(2)? })
        })
        .optional()
}

#[async_trait]
impl Catalog for SqliteCatalog {
    async fn organization(&self, slug: &str) -> Result<Option<Organization>> {
        let slug = slug.to_owned();
        self.owner.run(move |c| find_organization(c, &slug).map_err(storage("read an organisation"))).await
    }

    async fn create_app(&self, app: NewApp) -> Result<AppRecord> {
        self.owner.run(move |c| apps::create(c, &app)).await
    }

    async fn app(&self, name: &str) -> Result<Option<AppRecord>> {
        let name = name.to_owned();
        self.owner.run(move |c| apps::find(c, &name).map_err(storage("read an app"))).await
    }

    async fn apps(&self, query: AppQuery) -> Result<AppPage> {
        self.owner.run(move |c| apps::list(c, &query).map_err(storage("list apps"))).await
    }

    async fn begin_app_deletion(&self, name: &str) -> Result<AppRecord> {
        let name = name.to_owned();
        self.owner.run_anyway(move |c| apps::begin_deletion(c, &name)).await
    }

    async fn finish_app_deletion(&self, name: &str) -> Result<bool> {
        let name = name.to_owned();
        self.owner.run_anyway(move |c| apps::finish_deletion(c, &name).map_err(storage("delete an app"))).await
    }

    async fn apps_in_deletion(&self) -> Result<Vec<AppRecord>> {
        self.owner.run(move |c| apps::in_deletion(c).map_err(storage("list apps"))).await
    }

    async fn place(&self, placement: NewPlacement) -> Result<Placement> {
        self.owner.run(move |c| placements::place(c, placement)).await
    }

    async fn release(&self, machine: &MachineId) -> Result<()> {
        let machine = machine.clone();
        self.owner.run_anyway(move |c| placements::release(c, &machine).map_err(storage("release a machine"))).await
    }

    async fn placements(&self, worker: Option<&WorkerId>) -> Result<Vec<Placement>> {
        let worker = worker.cloned();
        self.owner.run(move |c| placements::list(c, worker.as_ref()).map_err(storage("list machines"))).await
    }

    async fn begin_request(&self, request: KeyedRequest) -> Result<Keyed> {
        // What the request asks for may be what frees room.
        self.owner.run_anyway(move |c| requests::begin(c, &request)).await
    }

    async fn end_request(&self, id: &str, answer: Answer) -> Result<()> {
        let id = id.to_owned();
        self.owner.run_anyway(move |c| requests::answered(c, &id, &answer).map_err(storage("keep an answer"))).await
    }

    async fn forget_request(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        self.owner.run_anyway(move |c| requests::forget(c, &id).map_err(storage("forget a request"))).await
    }

    async fn placement_of_request(&self, id: &str) -> Result<Option<Placement>> {
        let id = id.to_owned();
        self.owner.run(move |c| requests::placement(c, &id).map_err(storage("look for a request's machine"))).await
    }

    async fn authenticate(&self, token: &str) -> Result<Option<TokenRecord>> {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        Ok(tokens.get(&tokens::hash(token)).cloned())
    }

    async fn ensure_root_token(&self) -> Result<Option<String>> {
        self.set_root_token(false).await
    }

    async fn replace_root_token(&self) -> Result<String> {
        self.set_root_token(true).await?.ok_or(CatalogError::Closed)
    }

    async fn check(&self) -> Result<()> {
        self.owner
            .run(|connection| {
                // Whether it can be written is the question, not whether this row survives a power cut.
                let write = |connection: &Connection| {
                    connection.pragma_update(None, "synchronous", "NORMAL")?;
                    connection.execute(
                        "INSERT INTO health (only, checked_ms) VALUES (0, ?1)
                         ON CONFLICT (only) DO UPDATE SET checked_ms = excluded.checked_ms",
                        params![schema::now_ms()],
                    )
                };
                let written = write(connection);
                connection.pragma_update(None, "synchronous", "FULL").map_err(storage("go back to full fsync"))?;
                written.map(drop).map_err(storage("write"))
            })
            .await
    }

    async fn backup(&self, to: &Path) -> Result<()> {
        let (from, to) = (self.path.clone(), to.to_owned());
        // A connection of its own reads one snapshot; changes go on meanwhile.
        tokio::task::spawn_blocking(move || copy(&from, &to)).await.map_err(|_| CatalogError::Closed)?
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let failed = |reason: String| CatalogError::Backup { path: to.to_owned(), reason };
    if to.try_exists().map_err(|e| failed(e.to_string()))? {
        return Err(failed("the file exists, name a new one".to_owned()));
    }
    let draft = to.with_extension("partial");
    let run = || -> rusqlite::Result<()> {
        let source = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let mut target = Connection::open(&draft)?;
        let backup = rusqlite::backup::Backup::new(&source, &mut target)?;
        // All pages in one step: one snapshot, however much is written meanwhile.
        match backup.step(-1)? {
            StepResult::Done => Ok(()),
            _ => Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY), None)),
        }
    };
    let written = run().map_err(|e| failed(e.to_string())).and_then(|()| {
        std::fs::File::open(&draft)
            .and_then(|file| file.sync_all())
            .and_then(|()| std::fs::rename(&draft, to))
            .map_err(|e| failed(e.to_string()))
    });
    if written.is_err() {
        // Nothing was promised yet, so a half-made copy is all that could be left.
        let _ = std::fs::remove_file(&draft);
    }
    written
}
