//! Snapshots after a previous one: what is read, what is shared, what is not trusted.

use caddis_snapshot::{Options, Snapshot, SnapshotError, SnapshotStore};

use crate::support::*;

/// Takes the snapshot `1` of a volume without help of a previous one.
async fn first(store: &SnapshotStore, volume: &Volume) -> Snapshot {
    take(store, new(&name("acme", "a", "1"), None), &mut volume.clone()).await.unwrap()
}

/// Takes the snapshot `2` after `1`, and proves that it reads as the volume.
async fn second(store: &SnapshotStore, volume: &mut Volume) -> Snapshot {
    let (one, two) = (name("acme", "a", "1"), name("acme", "a", "2"));
    let taken = take(store, new(&two, Some(&one)), volume).await.unwrap();
    assert!(contents(store, &two).await.unwrap() == volume.contents);
    taken
}

#[tokio::test]
async fn only_chunks_with_changes_are_read_and_stored() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let mut volume = Volume::random(1, 100 * CHUNK + 100);
    let before = first(&store, &volume).await;
    assert_eq!(before.read_size, 100 * CHUNK as u64 + 100);

    volume.changed = Some(Vec::new());
    volume.write(3 * CHUNK + 10, b"one");
    volume.write(50 * CHUNK - 2, b"over a border");
    volume.write(100 * CHUNK + 99, b"!");
    let after = second(&store, &mut volume).await;
    let mut chunks: Vec<u64> = volume.reads.iter().map(|read| read.0 / CHUNK as u64).collect();
    chunks.dedup();
    assert_eq!(chunks, [3, 49, 50, 100]);
    assert_eq!(after.read_size, 3 * CHUNK as u64 + 100);
    assert!(after.added_size > 3 * CHUNK as u64 && after.added_size < 4 * CHUNK as u64);
    assert_eq!(after.stored_size, before.stored_size);
    assert_ne!(after.digest, before.digest);
    // The other one is as it was.
    let one = contents(&store, &name("acme", "a", "1")).await.unwrap();
    assert!(one == random(1, 100 * CHUNK + 100));
}

#[tokio::test]
async fn a_volume_without_changes_is_not_read_and_adds_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let volume = Volume::random(1, 3000 * CHUNK);
    let before = first(&store, &volume).await;
    let files = [objects(directory.path(), "chunks"), objects(directory.path(), "segments")];
    let mut same = volume.unchanged();
    let after = second(&store, &mut same).await;
    assert_eq!(same.reads, []);
    assert_eq!((after.read_size, after.added_size), (0, 0));
    assert_eq!((after.stored_size, after.digest), (before.stored_size, before.digest));
    let now = [objects(directory.path(), "chunks"), objects(directory.path(), "segments")];
    assert_eq!(files, now);
}

#[tokio::test]
async fn what_became_zeroes_is_zeroes_and_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let mut volume = Volume::random(1, 20 * CHUNK);
    first(&store, &volume).await;
    volume.changed = Some(Vec::new());
    volume.write(5 * CHUNK, &vec![0; 2 * CHUNK]);
    volume.write(9 * CHUNK, &vec![0; CHUNK / 2]);
    let after = second(&store, &mut volume).await;
    // Of the chunk that is zeroes in half the other half.
    assert_eq!(after.read_size, CHUNK as u64 / 2);
}

#[tokio::test]
async fn without_knowledge_of_changes_all_is_read_and_only_changes_are_stored() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let mut volume = Volume::random(1, 100 * CHUNK);
    first(&store, &volume).await;
    volume.write(3 * CHUNK, b"changed");
    let after = second(&store, &mut volume).await;
    assert_eq!(after.read_size, 100 * CHUNK as u64);
    assert!(after.added_size < 2 * CHUNK as u64);
}

#[tokio::test]
async fn a_volume_may_have_grown_or_shrunk_since() {
    for length in [10 * CHUNK + 1, 10 * CHUNK + 600, 11 * CHUNK, 40 * CHUNK, 5 * CHUNK + 3] {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let volume = Volume::random(1, 10 * CHUNK + 512);
        first(&store, &volume).await;
        // Beyond its end before nothing can be known to be as it was, but a source may say so.
        let mut contents = volume.contents.clone();
        contents.resize(length, 7);
        let mut volume = Volume::new(contents).unchanged();
        second(&store, &mut volume).await;
    }
}

#[tokio::test]
async fn chunks_that_the_store_lost_are_read_again() {
    for cut_short in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let volume = Volume::random(1, 50 * CHUNK);
        first(&store, &volume).await;
        for file in objects(directory.path(), "chunks").iter().take(3) {
            if cut_short {
                let file = std::fs::File::options().write(true).open(file).unwrap();
                file.set_len(1000).unwrap();
            } else {
                std::fs::remove_file(file).unwrap();
            }
        }
        let after = second(&store, &mut volume.unchanged()).await;
        assert_eq!(after.read_size, 3 * CHUNK as u64);
        // By which the first one is whole, too.
        let one = name("acme", "a", "1");
        assert!(contents(&store, &one).await.unwrap() == volume.contents);
    }
}

#[tokio::test]
async fn a_previous_snapshot_that_cannot_be_used_means_reading_all() {
    for (kind, remove) in
        [("snapshots", true), ("segments", true), ("snapshots", false), ("segments", false)]
    {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let volume = Volume::random(1, 50 * CHUNK);
        first(&store, &volume).await;
        for file in objects(directory.path(), kind) {
            if remove {
                std::fs::remove_file(file).unwrap();
            } else {
                let mut bytes = std::fs::read(&file).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                std::fs::write(&file, bytes).unwrap();
            }
        }
        let after = second(&store, &mut volume.unchanged()).await;
        assert_eq!(after.read_size, 50 * CHUNK as u64, "{kind} {remove}");
    }
}

#[tokio::test]
async fn a_previous_snapshot_with_other_chunks_means_reading_all() {
    let directory = tempfile::tempdir().unwrap();
    let volume = Volume::random(1, 50 * CHUNK);
    first(&store(directory.path()), &volume).await;
    let larger = Options { chunk_size: 2 * CHUNK as u32, ..options() };
    let store = SnapshotStore::open_with(config(directory.path()), larger).unwrap();
    let after = second(&store, &mut volume.unchanged()).await;
    assert_eq!(after.read_size, 50 * CHUNK as u64);
    // The one with smaller chunks is still read.
    assert!(contents(&store, &name("acme", "a", "1")).await.unwrap() == volume.contents);
}

#[tokio::test]
async fn equal_chunks_are_stored_once_per_organization() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let volume = Volume::random(1, 20 * CHUNK);
    let chunks = || objects(directory.path(), "chunks").len();
    let one = take(&store, new(&name("acme", "a", "1"), None), &mut volume.clone()).await.unwrap();
    assert_eq!(chunks(), 20);
    // Another volume, in which each occurs twice.
    let mut twice = Volume::new([volume.contents.clone(), volume.contents.clone()].concat());
    let two = take(&store, new(&name("acme", "b", "1"), None), &mut twice).await.unwrap();
    assert_eq!(chunks(), 20);
    assert_eq!((two.added_size, two.stored_size), (0, one.stored_size));

    // Another organisation shares nothing, nor can it be seen that it has the same.
    let foreign =
        take(&store, new(&name("other", "a", "1"), None), &mut volume.clone()).await.unwrap();
    assert_eq!(foreign.added_size, one.added_size);
    assert_ne!(foreign.digest, one.digest);
    let files = objects(directory.path(), "chunks");
    let mut ids: Vec<_> = files.iter().map(|file| file.file_name().unwrap()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 40);
    let mut objects: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    objects.sort();
    objects.dedup();
    assert_eq!(objects.len(), 40);
}

#[tokio::test]
async fn the_previous_snapshot_is_of_the_same_organization() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let volume = Volume::random(1, 20 * CHUNK);
    first(&store, &volume).await;
    let new = new(&name("other", "a", "2"), Some(&name("acme", "a", "1")));
    let error = take(&store, new, &mut volume.unchanged()).await.unwrap_err();
    assert!(matches!(error, SnapshotError::Source(_)), "{error}");
}

#[tokio::test]
async fn a_source_that_fails_leaves_no_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let name = name("acme", "a", "1");
    let mut volume = Volume::random(1, 50 * CHUNK);
    volume.fails_after = Some(25 * CHUNK as u64);
    let error = take(&store, new(&name, None), &mut volume).await.unwrap_err();
    assert!(error.to_string().contains("the VM is gone"), "{error}");
    assert!(matches!(store.get(&name).await, Err(SnapshotError::NotFound(_))));

    // Another attempt stores only what is missing.
    volume.fails_after = None;
    let taken = take(&store, new(&name, None), &mut volume).await.unwrap();
    assert!(taken.added_size < taken.stored_size);
    assert!(contents(&store, &name).await.unwrap() == volume.contents);
}
