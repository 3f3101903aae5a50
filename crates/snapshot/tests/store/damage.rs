//! What is in the store is changed, removed or exchanged: reading says so, and gives nothing else.

use std::path::{Path, PathBuf};

use caddis_snapshot::{Reader, SnapshotError, SnapshotStore, StoreConfig, StoreKey};
use zeroize::Zeroizing;

use crate::support::*;

const CHUNKS: usize = 8;

/// A store with a snapshot of which each chunk is stored as it is.
async fn stored(directory: &Path) -> (SnapshotStore, Volume) {
    let store = store(directory);
    let volume = Volume::random(1, CHUNKS * CHUNK);
    let new = new(&name("acme", "a", "1"), None);
    take(&store, new, &mut volume.clone()).await.unwrap();
    (store, volume)
}

/// Which chunks can be read, each of them as it was, and what the first other one fails with.
async fn readable(reader: &Reader, volume: &Volume) -> (Vec<usize>, Option<SnapshotError>) {
    let (mut good, mut failed) = (Vec::new(), None);
    for (index, expected) in volume.contents.chunks(CHUNK).enumerate() {
        let mut buffer = vec![0; expected.len()];
        match reader.read((index * CHUNK) as u64, &mut buffer).await {
            Ok(()) => {
                assert!(buffer == expected, "chunk {index}");
                good.push(index);
            }
            Err(error) => {
                failed.get_or_insert(error);
            }
        }
    }
    (good, failed)
}

/// Asserts that one chunk is damaged, for this reason, and all others are read.
async fn assert_one_damaged(store: &SnapshotStore, volume: &Volume, reason: &str) {
    let reader = store.reader(&name("acme", "a", "1")).await.unwrap();
    let (good, error) = readable(&reader, volume).await;
    assert_eq!(good.len(), CHUNKS - 1, "{reason}");
    let bad = (0..CHUNKS).find(|index| !good.contains(index)).unwrap();
    let place = format!("the chunk of bytes {} to {}", bad * CHUNK, (bad + 1) * CHUNK);
    let message = error.unwrap().to_string();
    assert!(message.starts_with("snapshot vs_1 is damaged: "), "{message}");
    assert!(message.contains(&place) && message.contains(reason), "{message}");
}

fn flip(file: &Path, bit: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[bit / 8] ^= 1 << (bit % 8);
    std::fs::write(file, bytes).unwrap();
}

fn only(files: Vec<PathBuf>) -> PathBuf {
    let [file] = <[PathBuf; 1]>::try_from(files).unwrap();
    file
}

#[tokio::test]
async fn no_bit_of_a_chunk_can_be_flipped() {
    let directory = tempfile::tempdir().unwrap();
    let (store, volume) = stored(directory.path()).await;
    let file = objects(directory.path(), "chunks").swap_remove(0);
    let bits = std::fs::metadata(&file).unwrap().len() as usize * 8;
    // All of its head, then some of each part.
    for bit in (0..200).chain((200..bits).step_by(509)).chain(bits - 130..bits) {
        flip(&file, bit);
        assert_one_damaged(&store, &volume, "").await;
        flip(&file, bit);
    }
    assert!(contents(&store, &name("acme", "a", "1")).await.unwrap() == volume.contents);
}

#[tokio::test]
async fn no_bit_of_a_list_of_chunks_or_a_manifest_can_be_flipped() {
    let directory = tempfile::tempdir().unwrap();
    let (store, volume) = stored(directory.path()).await;
    let one = name("acme", "a", "1");
    for (kind, part) in [("segments", "list of chunks of bytes 0 to"), ("snapshots", "manifest")] {
        let file = only(objects(directory.path(), kind));
        for bit in (0..std::fs::metadata(&file).unwrap().len() as usize * 8).step_by(3) {
            flip(&file, bit);
            let message = match contents(&store, &one).await {
                Err(error @ SnapshotError::Damaged { .. }) => error.to_string(),
                // The id of the key, after its length, is in the clear.
                Err(error @ SnapshotError::OtherKey { .. }) if kind == "snapshots" => {
                    assert!((8 * 8..16 * 8).contains(&bit), "{bit}");
                    format!("{error} manifest")
                }
                other => panic!("{kind}, bit {bit}: {other:?}"),
            };
            assert!(message.contains(part), "{message}");
            flip(&file, bit);
        }
    }
    assert!(contents(&store, &one).await.unwrap() == volume.contents);
}

#[tokio::test]
async fn a_chunk_may_be_missing_cut_short_or_too_long() {
    let directory = tempfile::tempdir().unwrap();
    let (store, volume) = stored(directory.path()).await;
    let file = objects(directory.path(), "chunks").swap_remove(3);
    let whole = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_one_damaged(&store, &volume, "is missing").await;
    for length in [0, 1, 20, 36, 100, whole.len() - 1] {
        std::fs::write(&file, &whole[..length]).unwrap();
        assert_one_damaged(&store, &volume, "").await;
    }
    std::fs::write(&file, [&whole[..], b"!"].concat()).unwrap();
    assert_one_damaged(&store, &volume, "is larger than it can be").await;
    std::fs::write(&file, &whole).unwrap();
    assert!(contents(&store, &name("acme", "a", "1")).await.unwrap() == volume.contents);
}

#[tokio::test]
async fn a_list_of_chunks_may_be_missing() {
    let directory = tempfile::tempdir().unwrap();
    let (store, volume) = stored(directory.path()).await;
    std::fs::remove_file(only(objects(directory.path(), "segments"))).unwrap();
    let reader = store.reader(&name("acme", "a", "1")).await.unwrap();
    let (good, error) = readable(&reader, &volume).await;
    assert_eq!(good, Vec::<usize>::new());
    let message = error.unwrap().to_string();
    assert!(message.contains("the list of chunks of bytes 0 to 32768 is missing"), "{message}");
}

#[tokio::test]
async fn chunks_are_not_taken_for_one_another() {
    let directory = tempfile::tempdir().unwrap();
    let (store, volume) = stored(directory.path()).await;
    let files = objects(directory.path(), "chunks");
    let whole = std::fs::read(&files[0]).unwrap();
    // Of the same snapshot.
    std::fs::copy(&files[1], &files[0]).unwrap();
    assert_one_damaged(&store, &volume, "was changed").await;
    // Of another volume of the organisation.
    let mut other = Volume::random(2, CHUNK);
    take(&store, new(&name("acme", "b", "1"), None), &mut other).await.unwrap();
    let foreign = objects(directory.path(), "chunks").into_iter().find(|it| !files.contains(it));
    std::fs::copy(foreign.unwrap(), &files[0]).unwrap();
    assert_one_damaged(&store, &volume, "was changed").await;
    // Of another organisation, even with the same contents.
    take(&store, new(&name("other", "a", "1"), None), &mut volume.clone()).await.unwrap();
    for foreign in objects(&directory.path().join("organizations/other"), "chunks") {
        std::fs::copy(foreign, &files[0]).unwrap();
        assert_one_damaged(&store, &volume, "was changed").await;
    }
    // A list of chunks in the place of a chunk.
    let list = objects(directory.path(), "segments").swap_remove(0);
    std::fs::copy(list, &files[0]).unwrap();
    assert_one_damaged(&store, &volume, "is of another format").await;
    std::fs::write(&files[0], whole).unwrap();
    assert!(contents(&store, &name("acme", "a", "1")).await.unwrap() == volume.contents);
}

#[tokio::test]
async fn manifests_are_not_taken_for_one_another() {
    let directory = tempfile::tempdir().unwrap();
    let (store, volume) = stored(directory.path()).await;
    let path = directory.path().join("organizations");
    let manifest = path.join("acme/snapshots/vol_a.vs_1");
    // Under the name of another snapshot, of another volume, of another organisation.
    std::fs::create_dir_all(path.join("other/snapshots")).unwrap();
    for (to, name) in [
        ("acme/snapshots/vol_a.vs_2", name("acme", "a", "2")),
        ("acme/snapshots/vol_b.vs_1", name("acme", "b", "1")),
        ("other/snapshots/vol_a.vs_1", name("other", "a", "1")),
    ] {
        std::fs::copy(&manifest, path.join(to)).unwrap();
        let error = store.get(&name).await.unwrap_err();
        assert!(matches!(&error, SnapshotError::Damaged { name: it, .. } if *it == name));
        assert!(error.to_string().contains("its manifest was changed"), "{error}");
        std::fs::remove_file(path.join(to)).unwrap();
    }
    // A list of chunks of another snapshot.
    take(&store, new(&name("acme", "b", "1"), None), &mut Volume::random(2, 8 * CHUNK))
        .await
        .unwrap();
    let lists = objects(directory.path(), "segments");
    let whole = [std::fs::read(&lists[0]).unwrap(), std::fs::read(&lists[1]).unwrap()];
    std::fs::write(&lists[0], &whole[1]).unwrap();
    std::fs::write(&lists[1], &whole[0]).unwrap();
    let error = contents(&store, &name("acme", "a", "1")).await.unwrap_err();
    assert!(matches!(error, SnapshotError::Damaged { .. }), "{error}");
    std::fs::write(&lists[0], &whole[0]).unwrap();
    std::fs::write(&lists[1], &whole[1]).unwrap();
    assert!(contents(&store, &name("acme", "a", "1")).await.unwrap() == volume.contents);
}

#[tokio::test]
async fn another_key_is_told_by_its_id_and_a_wrong_one_by_the_damage() {
    let directory = tempfile::tempdir().unwrap();
    let (_, _) = stored(directory.path()).await;
    let one = name("acme", "a", "1");
    let with = |byte, id: &str| {
        let key = StoreKey { bytes: Zeroizing::new([byte; 32]), id: id.to_owned() };
        let config = StoreConfig { key, ..config(directory.path()) };
        SnapshotStore::open_with(config, options()).unwrap()
    };
    let error = with(8, "key-two").reader(&one).await.unwrap_err();
    let expected = "snapshot vs_1 was taken with installation key key-one, this server has key-two";
    assert_eq!(error.to_string(), expected);
    let error = with(8, "key-one").reader(&one).await.unwrap_err();
    assert!(error.to_string().contains("was changed, or is of another key"), "{error}");
    with(7, "key-one").reader(&one).await.unwrap();
}
