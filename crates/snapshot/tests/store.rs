//! Snapshots in a directory: taken, read, shared, removed.

mod support;

use caddis_snapshot::{SnapshotError, SnapshotStore};
use support::*;

#[tokio::test]
async fn what_was_taken_is_what_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let mut sparse = vec![0; 300 * CHUNK];
    sparse[17 * CHUNK + 5..17 * CHUNK + 9].copy_from_slice(b"here");
    sparse[299 * CHUNK] = 1;
    let cases = [
        ("empty", Vec::new()),
        ("zeroes", vec![0; 5 * CHUNK]),
        ("byte", vec![9]),
        ("odd", random(1, 7 * CHUNK + 513)),
        ("full", random(2, 64 * CHUNK)),
        ("text", b"the same again and again, ".repeat(5000)),
        ("sparse", sparse),
        // Several segments, of which the last is short.
        ("large", [random(3, 2 * CHUNK), vec![0; 2100 * CHUNK], random(4, 3 * CHUNK)].concat()),
    ];
    for (case, expected) in cases {
        let name = name("acme", case, case);
        let mut volume = Volume::new(expected.clone());
        let taken = take(&store, new(&name, None), &mut volume).await.unwrap();
        assert_eq!(taken.volume_size, expected.len() as u64, "{case}");
        assert_eq!(taken.read_size, volume.bytes_read(), "{case}");
        assert_eq!(taken.stored_size, taken.added_size, "{case}");
        assert!(contents(&store, &name).await.unwrap() == expected, "{case}");
        assert_eq!(store.get(&name).await.unwrap(), taken, "{case}");
    }
}

#[tokio::test]
async fn a_snapshot_that_is_not_there_is_not_found() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let name = name("acme", "a", "1");
    let is_missing = |error| matches!(error, SnapshotError::NotFound(it) if it == name);
    assert!(is_missing(store.get(&name).await.unwrap_err()));
    assert!(is_missing(store.reader(&name).await.unwrap_err()));
    store.delete(&name).await.unwrap();
    assert_eq!(store.list("acme").await.unwrap(), []);
    assert_eq!(store.sweep().await.unwrap(), Default::default());

    take(&store, new(&name, None), &mut Volume::random(1, CHUNK)).await.unwrap();
    store.delete(&name).await.unwrap();
    assert!(is_missing(store.get(&name).await.unwrap_err()));
    // Another server on the same directory sees the same.
    let other = SnapshotStore::open(config(directory.path())).unwrap();
    assert!(is_missing(other.get(&name).await.unwrap_err()));
}
