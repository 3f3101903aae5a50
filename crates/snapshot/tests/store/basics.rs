//! Snapshots in a directory: taken, read, shared, removed.

use caddis_snapshot::{Location, NewSnapshot, Options, SnapshotError, SnapshotStore, StoreConfig};
use jiff::Timestamp;
use zeroize::Zeroizing;

use crate::support::*;

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

#[tokio::test]
async fn snapshots_are_listed_by_volume_and_time() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let at = |organization, volume, id, second| NewSnapshot {
        created_at: Timestamp::from_second(second).unwrap(),
        ..new(&name(organization, volume, id), None)
    };
    for new in [at("acme", "b", "z", 5), at("acme", "a", "y", 7), at("acme", "a", "x", 9)] {
        take(&store, new, &mut Volume::random(1, CHUNK)).await.unwrap();
    }
    take(&store, at("other", "a", "w", 1), &mut Volume::random(1, CHUNK)).await.unwrap();
    let listed = store.list("acme").await.unwrap();
    let ids: Vec<_> = listed.iter().map(|it| it.name.id.to_string()).collect();
    assert_eq!(ids, ["vs_y", "vs_x", "vs_z"]);
    assert_eq!(listed[1], store.get(&name("acme", "a", "x")).await.unwrap());
}

#[tokio::test]
async fn a_snapshot_of_the_same_name_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let name = name("acme", "a", "1");
    for seed in [1, 2] {
        let mut volume = Volume::random(seed, 5 * CHUNK);
        take(&store, new(&name, None), &mut volume).await.unwrap();
        assert!(contents(&store, &name).await.unwrap() == volume.contents);
    }
    assert_eq!(store.list("acme").await.unwrap().len(), 1);
    assert_eq!(store.sweep().await.unwrap().chunks, 5 + 1);
}

#[tokio::test]
async fn zeroes_are_told_in_runs() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let name = name("acme", "a", "1");
    let chunk = CHUNK as u64;
    // Zeroes, 2 chunks of data, zeroes up to a last chunk beyond the second list of chunks.
    let mut volume = Volume::new(vec![0; 2100 * CHUNK + 9]);
    volume.write(5 * CHUNK, &random(1, 2 * CHUNK));
    volume.write(2100 * CHUNK, b"the end!!");
    take(&store, new(&name, None), &mut volume).await.unwrap();
    let reader = store.reader(&name).await.unwrap();
    let size = volume.contents.len() as u64;
    for (offset, length, expected) in [
        (0, size, (true, 5 * chunk)),
        (100, 200, (true, 200)),
        (5 * chunk - 1, 2, (true, 1)),
        (5 * chunk, 1, (false, 1)),
        (5 * chunk + 7, size - 5 * chunk - 7, (false, 2 * chunk - 7)),
        (7 * chunk, size - 7 * chunk, (true, 2093 * chunk)),
        (2100 * chunk, 9, (false, 9)),
        (size, 0, (false, 0)),
    ] {
        assert_eq!(reader.zeroes(offset, length).await.unwrap(), expected, "{offset} {length}");
    }
    for (offset, length) in [(0, size + 1), (size, 1), (u64::MAX, 1), (1, u64::MAX)] {
        let error = reader.zeroes(offset, length).await.unwrap_err();
        assert!(error.to_string().contains("can't read the volume"), "{error}");
    }
    let error = reader.read(size - 1, &mut [0; 2]).await.unwrap_err();
    assert!(matches!(error, SnapshotError::Source(_)));
    reader.read(size, &mut []).await.unwrap();
}

#[tokio::test]
async fn those_who_want_the_same_chunk_fetch_it_once() {
    let gets = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&gets);
    let objects = Hooked::new(move |request| {
        if request.kind == "get" && request.path.contains("/chunks/") {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        Fate::Done
    });
    let name = name("acme", "a", "1");
    let mut volume = Volume::random(1, 4 * CHUNK);
    take(&objects.store(), new(&name, None), &mut volume).await.unwrap();
    let reader = objects.store().reader(&name).await.unwrap();
    let reads = (0..40_u64).map(|index| {
        let reader = reader.clone();
        async move {
            let mut buffer = vec![0; 50];
            reader.read(index * 300, &mut buffer).await.unwrap();
            buffer
        }
    });
    for (index, read) in futures::future::join_all(reads).await.iter().enumerate() {
        assert!(*read == volume.contents[index * 300..index * 300 + 50]);
    }
    assert_eq!(gets.load(std::sync::atomic::Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_store_that_works_passes_its_check_and_keeps_nothing_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    store.check().await.unwrap();
    assert_eq!(objects(directory.path(), "checks"), Vec::<std::path::PathBuf>::new());
    std::fs::remove_dir_all(directory.path()).unwrap();
    std::fs::write(directory.path(), "not a directory").unwrap();
    let error = store.check().await.unwrap_err();
    assert!(matches!(error, SnapshotError::Store(_)));
    assert!(error.to_string().contains("can't write checks/"), "{error}");
}

#[test]
fn a_directory_is_made_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data/snapshots");
    store(&path);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    std::fs::write(path.join("file"), "").unwrap();
    let error = SnapshotStore::open(config(&path.join("file"))).unwrap_err();
    assert!(matches!(&error, SnapshotError::InvalidStore(_)), "{error}");
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let open = |bucket: &str, prefix: &str, endpoint: Option<&str>| {
        let location = Location::S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            endpoint: endpoint.map(str::to_owned),
            region: None,
            credentials: ("AKID".to_owned(), Zeroizing::new("SECRET".to_owned())),
        };
        SnapshotStore::open(StoreConfig { location, key: key() }).map(drop)
    };
    for (bucket, prefix, endpoint, reason) in [
        ("", "", None, "'' can't be the name of a bucket"),
        ("a/b", "", None, "'a/b' can't be the name of a bucket"),
        ("b", "a//b", None, "'a//b' can't be the prefix of keys"),
        ("b", "..", None, "'..' can't be the prefix of keys"),
        ("b", "", Some("http://example.com"), "http:// is only for loopback addresses"),
        ("b", "", Some("http://localhost.example.com"), "only for loopback addresses"),
        ("b", "", Some("https://me:SECRET@example.com"), "credentials are given separately"),
        ("b", "", Some("example.com"), "must be an https:// URL"),
        ("b", "", Some("https:///x"), "names no host"),
    ] {
        let error = open(bucket, prefix, endpoint).unwrap_err().to_string();
        assert!(error.starts_with("invalid snapshot store: ") && error.contains(reason), "{error}");
        assert!(!error.contains("SECRET"), "{error}");
    }
    for endpoint in ["http://127.0.0.1:9000", "http://[::1]:9000", "http://localhost:9000/s3"] {
        open("b", "", Some(endpoint)).unwrap();
    }
    open("b", "a/b", Some("https://s3.example.com")).unwrap();
    for chunk_size in [0, 1, 4095, 5000, 1 << 25] {
        let directory = tempfile::tempdir().unwrap();
        let options = Options { chunk_size, ..options() };
        SnapshotStore::open_with(config(directory.path()), options).unwrap_err();
    }
}

#[tokio::test]
async fn an_organization_that_is_no_slug_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory.path().join("store"));
    for organization in ["", "..", "a/b", "a.b", "a%2fb"] {
        let name = name(organization, "a", "1");
        let taken = take(&store, new(&name, None), &mut Volume::random(1, 1)).await;
        for error in [taken.unwrap_err(), store.delete(&name).await.unwrap_err()] {
            assert!(matches!(error, SnapshotError::InvalidStore(_)), "{organization}");
        }
    }
}

#[test]
fn neither_keys_nor_credentials_are_shown() {
    let location = Location::S3 {
        bucket: "bucket".to_owned(),
        prefix: "some/where".to_owned(),
        endpoint: None,
        region: None,
        credentials: ("AKID".to_owned(), Zeroizing::new("SECRET".to_owned())),
    };
    let config = StoreConfig { location, key: key() };
    let shown = format!("{config:?} {:?}", SnapshotStore::open(config.clone()).unwrap());
    assert!(shown.contains("s3://bucket/some/where") && shown.contains("key-one"), "{shown}");
    assert!(!shown.contains("AKID") && !shown.contains("SECRET") && !shown.contains("7, 7"));
}
