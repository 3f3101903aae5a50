//! What only SQLite has: a file that is full, and one that another process had.

use std::sync::Arc;

use caddis_api::{ApiError, AppName, ErrorCode};
use caddis_disk::Reserve;

use super::SqliteStore;
use crate::{Catalog, CatalogError, IdempotencyState, KeyedRequest, NewApp, PERSONAL, StoreError};

/// Larger than a page.
const LARGE: usize = 100_000;

fn request(key: &str, id: &str) -> KeyedRequest {
    KeyedRequest {
        caller: "c".to_owned(),
        key: key.to_owned(),
        id: id.to_owned(),
        fingerprint: [0; 32],
    }
}

#[tokio::test]
async fn on_a_full_disk_only_what_frees_room_has_the_reserve() {
    let directory = tempfile::tempdir().unwrap();
    let reserve = Arc::new(Reserve::open(&directory.path().join("reserve"), 3 << 20));
    let store = Arc::new(
        SqliteStore::open_with(&directory.path().join("catalog.db"), reserve.clone()).unwrap(),
    );
    let catalog = Catalog::new(store.clone());
    let full = "PRAGMA max_page_count = 1";
    store.owner.run("fill", |connection| connection.query_row(full, [], |_| Ok(()))).await.unwrap();
    let large = "x".repeat(LARGE);

    let app = NewApp {
        name: Some(AppName::from_trusted(large.clone())),
        organization: PERSONAL.to_owned(),
        ..NewApp::default()
    };
    let refused = catalog.create_app(app).await.unwrap_err();
    match &refused {
        CatalogError::Store(StoreError::Failed { attempt, disk_full, reason }) => {
            assert_eq!(
                (*attempt, *disk_full, reason.as_str()),
                ("make an app", true, "database or disk is full")
            );
        }
        other => panic!("{other}"),
    }
    assert_eq!(ApiError::from(refused).code, ErrorCode::DiskFull);
    assert_eq!(reserve.held(), 3 << 20);

    let refused = catalog.begin_request(request(&large, "1")).await.unwrap_err();
    assert_eq!(ApiError::from(refused).code, ErrorCode::DiskFull);
    assert_eq!(reserve.held(), 0, "all of it was tried");
}

#[tokio::test]
async fn requests_of_a_process_that_was_killed_are_cut_short_at_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.db");
    let open = || Catalog::new(Arc::new(SqliteStore::open(&path).unwrap()));
    assert_eq!(open().begin_request(request("k", "1")).await.unwrap(), IdempotencyState::New);
    let known = open().begin_request(request("k", "2")).await.unwrap();
    assert_eq!(known, IdempotencyState::Interrupted { id: "1".to_owned() });
}
