//! Catalogs that earlier releases made are taken over with all that is in them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use caddis_api::{AppName, MachineId, RegionCode, UnixMillis, WorkerId};
use caddis_catalog::{
    AppQuery, AppState, Catalog, CatalogError, IdempotencyState, KeyedRequest, NewApp,
    NewPlacement, PERSONAL, SqliteStore, StoredResponse,
};

/// What the release with schema 2 left behind; `releases/release-0.sql` tells what is in it.
const RELEASE_0: &str = include_str!("releases/release-0.sql");
/// A moment after it did.
const THEN: UnixMillis = UnixMillis::new(1_795_936_007_000);
/// Its root token; the file has the hash.
const TOKEN: &str = "caddis_2N4mmtefeez5HYTUYKVfsQvwAveGUnjImIMStfMuAdY";
const WORKER: &str = "01JWORKER0000000000000000A";

/// The file that it left in a directory.
fn left_in(directory: &Path) -> PathBuf {
    let path = directory.join("catalog.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch(RELEASE_0).unwrap();
    path
}

fn open(path: &Path) -> Catalog {
    Catalog::with_clock(Arc::new(SqliteStore::open(path).unwrap()), Arc::new(|| THEN))
}

fn app(name: &str) -> NewApp {
    NewApp {
        name: Some(AppName::from_trusted(name)),
        organization: PERSONAL.to_owned(),
        ..NewApp::default()
    }
}

fn machine(app: &str, name: &str) -> NewPlacement {
    NewPlacement {
        app: AppName::from_trusted(app),
        name: Some(name.to_owned()),
        worker: WorkerId::from_trusted(WORKER),
        region: RegionCode::from_trusted("local"),
        request: None,
    }
}

fn request(key: &str) -> KeyedRequest {
    KeyedRequest {
        caller: "root".to_owned(),
        key: key.to_owned(),
        id: format!("again-{key}"),
        fingerprint: [7; 32],
    }
}

#[tokio::test]
async fn apps_and_machines_are_as_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let catalog = open(&left_in(directory.path()));
    let apps = catalog.apps(AppQuery::default()).await.unwrap().apps;
    let told: Vec<_> = apps
        .iter()
        .map(|app| (app.number, app.id.as_str(), app.name.as_str(), app.state))
        .collect();
    assert_eq!(
        told,
        [
            (1, "s88pm5ein3dyvcch", "web", AppState::Active),
            (2, "83nf9mhsdlv3rbfu", "isolated", AppState::Active),
            (3, "d72kcsyq4alp2bu1", "going", AppState::Deleting),
            (5, "dhhq7a0g1y0fp9ec", "nameless-fire-4735", AppState::Active),
        ]
    );
    let isolated = &apps[1];
    assert_eq!(
        (isolated.network.as_str(), isolated.network_prefix.as_str()),
        ("own", "fdaa:262a:9c23::/48")
    );
    assert_eq!(
        (isolated.organization.slug.as_str(), isolated.organization.internal_numeric_id),
        (PERSONAL, 1)
    );
    assert_eq!(isolated.created_ms, UnixMillis::new(1_795_936_006_825));

    let placements = catalog.placements(Some(&WorkerId::from_trusted(WORKER))).await.unwrap();
    let told: Vec<_> = placements
        .iter()
        .map(|placed| (placed.machine.as_str(), placed.app.as_str(), placed.name.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("914771eab0322c", "isolated", "one"),
            ("b6f1416a539540", "web", "two"),
            ("b8aab3ce7a2c6e", "web", "one"),
            ("ff755df4941281", "going", "last"),
        ]
    );
    assert_eq!((placements[0].epoch, placements[0].region.as_str()), (1, "local"));
    assert_eq!(
        placements[0].ipv6,
        "fdaa:262a:9c23:d699:cf2:4fcf:f1b0:2".parse::<std::net::Ipv6Addr>().unwrap()
    );
    let released =
        catalog.placement(&MachineId::from_trusted("86fa89438f98d3")).await.unwrap().unwrap();
    assert!(released.released);
    let bearer = catalog.authenticate(TOKEN).await.unwrap().unwrap();
    assert_eq!((bearer.name.as_str(), bearer.organization.as_str()), ("root", PERSONAL));
}

#[tokio::test]
async fn every_rule_still_holds() {
    let directory = tempfile::tempdir().unwrap();
    let catalog = open(&left_in(directory.path()));
    assert!(matches!(catalog.create_app(app("web")).await, Err(CatalogError::AppNameTaken)));
    for (key, number) in [("web-key", 1), ("made-up-key", 5)] {
        let keyed = NewApp { name: None, idempotency_key: Some(key.to_owned()), ..app("") };
        assert_eq!(catalog.create_app(keyed).await.unwrap().number, number);
    }
    let mismatch = NewApp { idempotency_key: Some("web-key".to_owned()), ..app("other") };
    assert!(matches!(catalog.create_app(mismatch).await, Err(CatalogError::IdempotencyMismatch)));
    let next = catalog.create_app(app("gone")).await.unwrap();
    assert_eq!(
        (next.number, next.network_prefix.as_str()),
        (6, "fdaa:edc1:ecd1::/48"),
        "the name alone was free"
    );

    match catalog.place(machine("web", "one")).await {
        Err(CatalogError::MachineNameTaken { holder, .. }) => {
            assert_eq!(holder.as_str(), "b8aab3ce7a2c6e")
        }
        other => panic!("{other:?}"),
    }
    catalog.place(machine("web", "old")).await.unwrap();
    assert!(matches!(
        catalog.place(machine("going", "new")).await,
        Err(CatalogError::AppInDeletion(_))
    ));
    assert!(!catalog.finish_app_deletion("going").await.unwrap());
    catalog.release(&MachineId::from_trusted("ff755df4941281")).await.unwrap();
    assert!(catalog.finish_app_deletion("going").await.unwrap());
    let one = MachineId::from_trusted("914771eab0322c");
    let (worker, region) = (WorkerId::from_trusted("W2"), RegionCode::from_trusted("two"));
    let moved = catalog.move_machine(&one, 1, &worker, &region).await.unwrap();
    assert_eq!(moved.epoch, 2);
    assert_eq!(catalog.ensure_root_token().await.unwrap(), None);
    catalog.check().await.unwrap();
}

#[tokio::test]
async fn keyed_requests_are_answered_or_cut_short_as_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let catalog = open(&left_in(directory.path()));
    let json = Some("application/json".to_owned());
    let answer =
        StoredResponse { status: 200, content_type: json, body: Some(b"{\"id\":\"m\"}".to_vec()) };
    assert_eq!(
        catalog.begin_request(request("answered")).await.unwrap(),
        IdempotencyState::Answered(answer)
    );
    let too_long = StoredResponse { status: 200, content_type: None, body: None };
    assert_eq!(
        catalog.begin_request(request("too-long")).await.unwrap(),
        IdempotencyState::Answered(too_long)
    );
    let id = "01REQUESTCUTSHORT".to_owned();
    assert_eq!(
        catalog.begin_request(request("cut-short")).await.unwrap(),
        IdempotencyState::Interrupted { id: id.clone() }
    );
    let made = catalog.placement_of_request(&id).await.unwrap().unwrap();
    assert_eq!((made.machine.as_str(), made.name.as_str()), ("b6f1416a539540", "two"));
    assert!(
        matches!(
            catalog.begin_request(request("cut-short")).await,
            Ok(IdempotencyState::Interrupted { .. })
        ),
        "its own"
    );
    let other = KeyedRequest { fingerprint: [8; 32], ..request("answered") };
    assert_eq!(catalog.begin_request(other).await.unwrap(), IdempotencyState::Another);
    assert_eq!(catalog.begin_request(request("new")).await.unwrap(), IdempotencyState::New);
}

#[tokio::test]
async fn the_next_start_finds_what_the_first_one_took_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = left_in(directory.path());
    let before = open(&path).apps(AppQuery::default()).await.unwrap().apps;
    assert_eq!(open(&path).apps(AppQuery::default()).await.unwrap().apps, before);
}

/// Schemas change by adding: whatever a release wrote is still in its place.
#[tokio::test]
async fn every_row_and_column_of_the_release_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = left_in(directory.path());
    let before = dump(&path);
    drop(open(&path));
    let after = dump(&path);
    assert_eq!(before.len(), 8, "the tables of the release");
    for (table, rows) in before {
        assert_eq!(after.iter().find(|(name, _)| *name == table).unwrap().1, rows, "{table}");
    }
}

/// The tables of the release by name, with its columns of all rows.
fn dump(path: &Path) -> Vec<(String, Vec<String>)> {
    let release = rusqlite::Connection::open_in_memory().unwrap();
    release.execute_batch(RELEASE_0).unwrap();
    let connection = rusqlite::Connection::open(path).unwrap();
    let strings = |connection: &rusqlite::Connection, sql: &str| -> Vec<String> {
        let mut statement = connection.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE \
                  'sqlite_%' ORDER BY name";
    strings(&release, tables)
        .into_iter()
        .map(|table| {
            let columns =
                strings(&release, &format!("SELECT name FROM pragma_table_info('{table}')"));
            let quoted: Vec<_> = columns.iter().map(|column| format!("quote({column})")).collect();
            let sql =
                format!("SELECT {} AS line FROM {table} ORDER BY line", quoted.join(" || ',' || "));
            let rows = strings(&connection, &sql);
            assert!(!rows.is_empty(), "the release left rows in {table}");
            (table, rows)
        })
        .collect()
}

#[tokio::test]
async fn numbers_of_organisations_are_not_given_again_when_one_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = left_in(directory.path());
    drop(open(&path));
    let connection = rusqlite::Connection::open(&path).unwrap();
    let insert =
        "INSERT INTO organizations (slug, name, created_ms) VALUES (?1, ?1, 0) RETURNING number";
    let mut last = 1;
    for slug in ["one", "other"] {
        let number: i64 = connection.query_row(insert, [slug], |row| row.get(0)).unwrap();
        assert!(number > last, "{number} comes after {last}");
        last = number;
        connection.execute("DELETE FROM organizations WHERE slug = ?1", [slug]).unwrap();
    }
}
