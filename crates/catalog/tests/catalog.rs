//! What the catalog promises, over real files.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{collections::HashSet, net::Ipv6Addr, path::Path, sync::Arc};

use caddis_api::{AppName, NetworkName, RegionCode, WorkerId};
use caddis_catalog::{
    AppQuery, AppState, Catalog, CatalogError, IdempotencyState, KeyedRequest, NewApp,
    NewPlacement, PERSONAL, Push, SqliteError, SqliteStore,
};

struct Fixture {
    directory: tempfile::TempDir,
    catalog: Catalog,
    store: Arc<SqliteStore>,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(&directory.path().join("catalog.db")).unwrap());
        Self { directory, catalog: Catalog::new(store.clone()), store }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("catalog.db")
    }
}

fn app(name: &str) -> NewApp {
    NewApp {
        name: Some(AppName::from_trusted(name)),
        organization: PERSONAL.to_owned(),
        ..NewApp::default()
    }
}

fn machine(app: &str, name: Option<&str>) -> NewPlacement {
    NewPlacement {
        app: AppName::from_trusted(app),
        name: name.map(str::to_owned),
        worker: WorkerId::from_trusted("W"),
        region: RegionCode::from_trusted("local"),
        request: None,
    }
}

fn open(path: &Path) -> Catalog {
    Catalog::new(Arc::new(SqliteStore::open(path).unwrap()))
}

fn open_error(path: &Path) -> SqliteError {
    SqliteStore::open(path).err().expect("it must be refused")
}

#[tokio::test]
async fn facts_survive_reopening() {
    let fixture = Fixture::new();
    let made = fixture.catalog.create_app(app("a")).await.unwrap();
    let placed = fixture.catalog.place(machine("a", Some("m"))).await.unwrap();
    let reopened = open(&fixture.path());
    assert_eq!(reopened.app("a").await.unwrap(), Some(made));
    assert_eq!(reopened.placements(None).await.unwrap(), [placed]);
    assert_eq!(reopened.organization(PERSONAL).await.unwrap().unwrap().slug, PERSONAL);
}

#[tokio::test]
async fn app_names_are_unique_until_the_app_is_gone() {
    let catalog = Fixture::new().catalog;
    let first = catalog.create_app(app("a")).await.unwrap();
    assert!(matches!(catalog.create_app(app("a")).await, Err(CatalogError::AppNameTaken)));
    assert!(!catalog.finish_app_deletion("a").await.unwrap(), "it was not marked");
    catalog.begin_app_deletion("a").await.unwrap();
    assert!(matches!(catalog.create_app(app("a")).await, Err(CatalogError::AppNameTaken)));
    assert!(catalog.finish_app_deletion("a").await.unwrap());
    let second = catalog.create_app(app("a")).await.unwrap();
    assert_ne!((first.id, first.number), (second.id, second.number));
}

#[tokio::test]
async fn the_same_idempotency_key_gives_the_same_app() {
    let catalog = Fixture::new().catalog;
    let keyed = |name: Option<&str>| NewApp {
        name: name.map(AppName::from_trusted),
        organization: PERSONAL.to_owned(),
        idempotency_key: Some("k".to_owned()),
        ..NewApp::default()
    };
    let first = catalog.create_app(keyed(None)).await.unwrap();
    assert_eq!(catalog.create_app(keyed(None)).await.unwrap(), first);
    assert_eq!(catalog.create_app(keyed(Some(&first.name))).await.unwrap(), first);
    let other = catalog.create_app(keyed(Some("other"))).await;
    assert!(matches!(other, Err(CatalogError::IdempotencyMismatch)));
}

#[tokio::test]
async fn networks_have_prefixes_of_their_own_and_are_shared_by_name() {
    let catalog = Fixture::new().catalog;
    let named = |name: &str, network: &str| NewApp {
        network: Some(NetworkName::from_trusted(network)),
        ..app(name)
    };
    let default = catalog.create_app(app("a")).await.unwrap();
    let also_default = catalog.create_app(named("b", "default")).await.unwrap();
    let other = catalog.create_app(named("c", "other")).await.unwrap();
    assert_eq!(default.network_prefix, also_default.network_prefix);
    assert_ne!(default.network_prefix, other.network_prefix);
    let address: Ipv6Addr = other.network_prefix.strip_suffix("/48").unwrap().parse().unwrap();
    assert_eq!(address.segments()[0], 0xfdaa);
    assert_eq!(address.segments()[3..], [0; 5]);
}

#[tokio::test]
async fn a_machine_gets_a_subnet_of_its_network() {
    let catalog = Fixture::new().catalog;
    let app = catalog.create_app(app("a")).await.unwrap();
    let network: Ipv6Addr = app.network_prefix.strip_suffix("/48").unwrap().parse().unwrap();
    let mut subnets = HashSet::new();
    for _ in 0..50 {
        let placed = catalog.place(machine("a", None)).await.unwrap();
        assert_eq!(placed.ipv6.segments()[..3], network.segments()[..3]);
        assert_eq!(placed.ipv6.segments()[7], 2);
        subnets.insert(placed.ipv6.to_bits() >> 16);
    }
    assert_eq!(subnets.len(), 50);
}

#[tokio::test]
async fn of_many_that_want_one_name_one_gets_it() {
    let catalog = Fixture::new().catalog;
    catalog.create_app(app("a")).await.unwrap();
    let attempts = (0..8).map(|_| {
        let catalog = catalog.clone();
        tokio::spawn(async move { catalog.place(machine("a", Some("m"))).await })
    });
    let (mut placed, mut refused) = (Vec::new(), 0);
    for attempt in attempts.collect::<Vec<_>>() {
        match attempt.await.unwrap() {
            Ok(placement) => placed.push(placement.machine),
            Err(CatalogError::MachineNameTaken { name, .. }) if name == "m" => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!((placed.len(), refused), (1, 7));
    catalog.release(&placed[0]).await.unwrap();
    catalog.release(&placed[0]).await.unwrap();
    let next = catalog.place(machine("a", Some("m"))).await.unwrap();
    assert_ne!(next.machine, placed[0]);
}

#[tokio::test]
async fn an_app_in_deletion_takes_no_machines_and_ends_with_its_last_one() {
    let catalog = Fixture::new().catalog;
    catalog.create_app(app("a")).await.unwrap();
    let placed = catalog.place(machine("a", None)).await.unwrap();
    assert_eq!(catalog.begin_app_deletion("a").await.unwrap().state, AppState::Deleting);
    assert!(matches!(catalog.place(machine("a", None)).await, Err(CatalogError::AppInDeletion(_))));
    assert!(!catalog.finish_app_deletion("a").await.unwrap());
    assert_eq!(catalog.apps_in_deletion().await.unwrap().len(), 1);
    catalog.release(&placed.machine).await.unwrap();
    assert!(catalog.finish_app_deletion("a").await.unwrap());
    assert_eq!(catalog.app("a").await.unwrap(), None);
    assert!(matches!(catalog.begin_app_deletion("a").await, Err(CatalogError::AppNotFound(_))));
}

#[tokio::test]
async fn apps_come_in_pages() {
    let catalog = Fixture::new().catalog;
    for name in ["a", "b", "c"] {
        catalog.create_app(app(name)).await.unwrap();
    }
    let query =
        AppQuery { organization: Some(PERSONAL.to_owned()), limit: Some(2), ..AppQuery::default() };
    let first = catalog.apps(query.clone()).await.unwrap();
    assert_eq!((first.apps.len(), first.total, first.more), (2, 3, true));
    let second = catalog.apps(AppQuery { after: first.apps[1].number, ..query }).await.unwrap();
    assert_eq!((second.apps.len(), second.total, second.more), (1, 3, false));
    let none = AppQuery { organization: Some("other".to_owned()), ..AppQuery::default() };
    assert_eq!(catalog.apps(none).await.unwrap().total, 0);
}

#[tokio::test]
async fn the_root_token_is_given_once_and_stored_as_a_hash() {
    let fixture = Fixture::new();
    let token = fixture.catalog.ensure_root_token().await.unwrap().unwrap();
    assert_eq!(fixture.catalog.ensure_root_token().await.unwrap(), None);
    let record = fixture.catalog.authenticate(&token).await.unwrap().unwrap();
    assert_eq!((record.name.as_str(), record.organization.as_str()), ("root", PERSONAL));
    assert_eq!(fixture.catalog.authenticate("wrong").await.unwrap(), None);
    for file in std::fs::read_dir(fixture.directory.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(token.len()).any(|window| window == token.as_bytes()));
    }
    let next = open(&fixture.path()).replace_root_token().await.unwrap();
    let reopened = open(&fixture.path());
    assert_eq!(reopened.authenticate(&token).await.unwrap(), None);
    assert!(reopened.authenticate(&next).await.unwrap().is_some());
}

#[tokio::test]
async fn damaged_foreign_and_newer_files_are_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.db");
    for content in [&b""[..], b"this is no database, it only looks like a file"] {
        std::fs::write(&path, content).unwrap();
        assert!(matches!(open_error(&path), SqliteError::Corrupt { .. }));
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
    std::fs::remove_file(&path).unwrap();
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    assert!(matches!(open_error(&path), SqliteError::Foreign { .. }));
    std::fs::remove_file(&path).unwrap();
    drop(open(&path));
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(open_error(&path), SqliteError::Newer { found: 99, .. }));
    let missing = directory.path().join("missing/catalog.db");
    assert!(matches!(open_error(&missing), SqliteError::Open { .. }));
}

#[tokio::test]
async fn a_page_of_rubbish_in_the_middle_is_noticed() {
    let fixture = Fixture::new();
    for number in 0..200 {
        fixture.catalog.create_app(app(&format!("app-{number}"))).await.unwrap();
    }
    let copy = fixture.directory.path().join("copy.db");
    fixture.store.backup(&copy).await.unwrap();
    let mut bytes = std::fs::read(&copy).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xa5);
    std::fs::write(&copy, &bytes).unwrap();
    assert!(matches!(open_error(&copy), SqliteError::Corrupt { .. }));
}

#[tokio::test]
async fn a_backup_is_a_catalog_and_overwrites_nothing() {
    let fixture = Fixture::new();
    let made = fixture.catalog.create_app(app("a")).await.unwrap();
    let copy = fixture.directory.path().join("backup.db");
    fixture.store.backup(&copy).await.unwrap();
    fixture.catalog.create_app(app("b")).await.unwrap();
    let restored = open(&copy);
    assert_eq!(restored.apps(AppQuery::default()).await.unwrap().apps, [made]);
    assert!(matches!(fixture.store.backup(&copy).await, Err(SqliteError::Backup { .. })));
}

#[tokio::test]
async fn the_check_fails_when_nothing_can_be_written() {
    let fixture = Fixture::new();
    fixture.catalog.check().await.unwrap();
    let other = rusqlite::Connection::open(fixture.path()).unwrap();
    other.execute_batch("DROP TABLE health").unwrap();
    let error = fixture.catalog.check().await.unwrap_err();
    assert!(error.to_string().starts_with("can't write in the catalog"), "{error}");
}

#[tokio::test]
async fn the_catalog_of_an_older_server_is_taken_up_with_all_that_is_in_it() {
    let fixture = Fixture::new();
    let made = fixture.catalog.create_app(app("a")).await.unwrap();
    let path = fixture.path();
    let Fixture { directory: _kept, catalog, store } = fixture;
    drop((catalog, store));
    let first_release = "DROP TABLE requests; DROP TABLE addresses; DROP TABLE volumes; \
                         DROP TABLE egress_blocks; DROP TABLE egress_addresses; \
                         DROP TABLE egress_revision; DROP TABLE policies; \
                         DROP TABLE push_revisions; DROP TABLE peers; \
                         PRAGMA user_version = 1;";
    rusqlite::Connection::open(&path).unwrap().execute_batch(first_release).unwrap();
    let catalog = open(&path);
    assert_eq!(catalog.app("a").await.unwrap(), Some(made));
    let request = KeyedRequest {
        caller: "c".to_owned(),
        key: "k".to_owned(),
        id: "1".to_owned(),
        fingerprint: [0; 32],
    };
    assert_eq!(catalog.begin_request(request).await.unwrap(), IdempotencyState::New);
}

#[tokio::test]
async fn numbers_of_policies_that_an_older_server_gave_are_kept() {
    let fixture = Fixture::new();
    let path = fixture.path();
    let Fixture { directory: _kept, catalog, store } = fixture;
    drop((catalog, store));
    let before = "DROP TABLE push_revisions;
                  CREATE TABLE policy_revisions (
                      worker TEXT PRIMARY KEY, revision INTEGER NOT NULL) STRICT, WITHOUT ROWID;
                  INSERT INTO policy_revisions (worker, revision) VALUES ('W1', 41);
                  PRAGMA user_version = 9;";
    rusqlite::Connection::open(&path).unwrap().execute_batch(before).unwrap();
    let (catalog, worker) = (open(&path), WorkerId::from_trusted("W1"));
    assert_eq!(catalog.raise_push_revision(Push::Policies, &worker, 0).await.unwrap(), 42);
    assert_eq!(catalog.push_revision(Push::Egress, &worker).await.unwrap(), 0);
}
