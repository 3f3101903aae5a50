//! What a sweep removes, what it leaves, and who goes first.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use caddis_snapshot::{Options, Progress, SnapshotError, SnapshotStore, Swept};
use futures::{FutureExt as _, TryStreamExt as _};
use object_store::{ObjectStore as _, ObjectStoreExt as _, PutPayload};
use tokio::sync::watch;

use crate::support::*;

/// All files of a store but those of `checks`.
fn all(directory: &Path) -> Vec<std::path::PathBuf> {
    objects(directory, "organizations")
}

#[tokio::test]
async fn only_what_no_snapshot_has_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let (one, two) = (name("acme", "a", "1"), name("acme", "a", "2"));
    let mut volume = Volume::random(1, 20 * CHUNK);
    take(&store, new(&one, None), &mut volume).await.unwrap();
    volume.changed = Some(Vec::new());
    volume.write(7 * CHUNK, &random(2, 3 * CHUNK));
    let added = take(&store, new(&two, Some(&one)), &mut volume).await.unwrap().added_size;
    take(&store, new(&name("other", "a", "1"), None), &mut volume).await.unwrap();
    assert_eq!(store.sweep().await.unwrap(), Swept::default());

    store.delete(&one).await.unwrap();
    let swept = store.sweep().await.unwrap();
    // Three chunks, and the list in which they were.
    assert_eq!((swept.chunks, swept.busy), (4, 0));
    assert!(swept.bytes > added && swept.bytes < added + CHUNK as u64);
    assert!(contents(&store, &two).await.unwrap() == volume.contents);
    store.delete(&two).await.unwrap();
    assert_eq!(store.sweep().await.unwrap().chunks, 21);
    assert_eq!(all(&directory.path().join("organizations/acme")).len(), 0);
    assert!(contents(&store, &name("other", "a", "1")).await.unwrap() == volume.contents);
}

#[tokio::test]
async fn a_thousand_snapshots_that_come_and_go_need_constant_space() {
    let objects = Hooked::new(|_| Fate::Done);
    let store = objects.store();
    let mut volume = Volume::random(1, 40 * CHUNK);
    let id = |index: u64| name("acme", "a", &index.to_string());
    let mut most = 0;
    for index in 0..1000 {
        volume.write((index as usize * 7 % 40) * CHUNK, &random(index + 10, CHUNK));
        let previous = index.checked_sub(1).map(id);
        take(&store, new(&id(index), previous.as_ref()), &mut volume).await.unwrap();
        volume.changed = Some(Vec::new());
        if let Some(expired) = index.checked_sub(5) {
            store.delete(&id(expired)).await.unwrap();
        }
        if index % 10 == 9 {
            store.sweep().await.unwrap();
            // The last five snapshots have 40 chunks and 4 more, 5 lists and 5 manifests.
            let count = objects.keys("organizations").await.len();
            assert!(index < 10 || count == 44 + 5 + 5, "{count} after {index}");
            most = most.max(count);
        }
    }
    assert_eq!(most, 54);
    for index in 995..1000 {
        contents(&store, &id(index)).await.unwrap();
    }
    assert!(contents(&store, &id(999)).await.unwrap() == volume.contents);
}

#[tokio::test]
async fn a_snapshot_that_is_dropped_in_the_middle_leaves_nothing_after_a_sweep() {
    let (reached, mut reaching) = watch::channel(0);
    let objects = Hooked::new(move |request| {
        if request.kind == "put" && request.path.contains("/chunks/") {
            reached.send_modify(|count| *count += 1);
        }
        Fate::Done
    });
    let store = objects.store();
    let mut volume = Volume::random(1, 500 * CHUNK);
    let new = new(&name("acme", "a", "1"), None);
    let (progress, _) = watch::channel(Progress::default());
    tokio::select! {
        biased;
        _ = reaching.wait_for(|count| *count > 100) => {}
        taken = store.take(new, &mut volume, &progress) => panic!("{taken:?}"),
    }
    assert!(objects.keys("chunks").await.len() >= 100);
    assert!(matches!(store.get(&name("acme", "a", "1")).await, Err(SnapshotError::NotFound(_))));
    // What a task was about when it was aborted may come to its end.
    while !objects.keys("").await.is_empty() {
        store.sweep().await.unwrap();
    }
}

#[tokio::test]
async fn young_objects_stay() {
    let directory = tempfile::tempdir().unwrap();
    let careful = Options { grace: Duration::from_secs(3600), ..options() };
    let store = SnapshotStore::open_with(config(directory.path()), careful).unwrap();
    let name = name("acme", "a", "1");
    take(&store, new(&name, None), &mut Volume::random(1, 10 * CHUNK)).await.unwrap();
    let unfinished = directory.path().join("organizations/acme/chunks/00#1");
    fs::write(&unfinished, "half of").unwrap();
    store.delete(&name).await.unwrap();
    assert_eq!(store.sweep().await.unwrap(), Swept::default());
    assert_eq!(all(directory.path()).len(), 10 + 1 + 1);
    age(&all(directory.path()), 3700);
    assert_eq!(store.sweep().await.unwrap().chunks, 11);
    // That of a put which was killed is none of the chunks, but goes, too.
    assert_eq!(all(directory.path()).len(), 0);
}

/// Makes files older by so many seconds.
fn age(files: &[std::path::PathBuf], seconds: u64) {
    for file in files {
        let file = fs::File::options().write(true).open(file).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    }
}

#[tokio::test]
async fn an_organization_with_a_snapshot_that_cannot_be_read_is_left_as_it_is() {
    for kind in ["snapshots", "segments"] {
        for remove in [false, true] {
            if kind == "snapshots" && remove {
                continue;
            }
            let directory = tempfile::tempdir().unwrap();
            let store = store(directory.path());
            for organization in ["acme", "bad", "zoo"] {
                for (id, seed) in [("1", 1), ("2", 2)] {
                    let name = name(organization, "a", id);
                    let mut volume = Volume::random(seed, 10 * CHUNK);
                    take(&store, new(&name, None), &mut volume).await.unwrap();
                }
                store.delete(&name(organization, "a", "1")).await.unwrap();
            }
            let path = directory.path().join("organizations/bad");
            for file in objects(&path, kind) {
                let half = fs::metadata(&file).unwrap().len() as usize / 2;
                match remove {
                    true => fs::remove_file(&file).unwrap(),
                    false => fs::write(&file, &fs::read(&file).unwrap()[..half]).unwrap(),
                }
            }
            let before = objects(&path, "chunks");
            let error = store.sweep().await.unwrap_err();
            let is_it = matches!(&error, SnapshotError::Damaged { name: it, .. }
                if *it == name("bad", "a", "2"));
            assert!(is_it, "{error}");
            assert_eq!(objects(&path, "chunks"), before);
            for swept in ["acme", "zoo"] {
                let path = directory.path().join("organizations").join(swept);
                assert_eq!(objects(&path, "chunks").len(), 10);
            }
            // Without it there is nothing to be careful of.
            store.delete(&name("bad", "a", "2")).await.unwrap();
            store.sweep().await.unwrap();
            assert_eq!(objects(&path, "chunks").len(), 0);
        }
    }
}

#[tokio::test]
async fn a_store_of_another_key_is_not_swept() {
    let directory = tempfile::tempdir().unwrap();
    let first = store(directory.path());
    take(&first, new(&name("acme", "a", "1"), None), &mut Volume::random(1, 10 * CHUNK))
        .await
        .unwrap();
    let mut config = config(directory.path());
    config.key.bytes[0] = 1;
    config.key.id = "key-two".to_owned();
    let other = SnapshotStore::open_with(config, options()).unwrap();
    assert!(matches!(other.sweep().await, Err(SnapshotError::OtherKey { .. })));
    assert_eq!(objects(directory.path(), "chunks").len(), 10);
}

/// The claim of another server.
fn claim(directory: &Path, work: &str) -> std::path::PathBuf {
    let claims = directory.join("organizations/acme/claims");
    fs::create_dir_all(&claims).unwrap();
    let file = claims.join(format!("{work}-{:032x}-{:032x}", 1, 2));
    fs::write(&file, "").unwrap();
    file
}

#[tokio::test]
async fn a_sweep_gives_way_to_other_servers_until_they_are_gone() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let name = name("acme", "a", "1");
    take(&store, new(&name, None), &mut Volume::random(1, 10 * CHUNK)).await.unwrap();
    store.delete(&name).await.unwrap();
    for work in ["take", "sweep"] {
        let claim = claim(directory.path(), work);
        assert_eq!(store.sweep().await.unwrap(), Swept { busy: 1, ..Swept::default() });
        assert_eq!(objects(directory.path(), "chunks").len(), 10);
        assert!(claim.exists());
    }
    // They were not renewed for long.
    age(&objects(directory.path(), "claims"), 700);
    let swept = store.sweep().await.unwrap();
    assert_eq!((swept.chunks, swept.busy), (11, 0));
    assert_eq!(all(directory.path()).len(), 0);
}

#[tokio::test]
async fn a_sweep_that_has_begun_gives_way_to_a_snapshot_of_another_server() {
    let armed = Arc::new(AtomicBool::new(false));
    let objects = Hooked::new(|_| Fate::Done);
    let name = name("acme", "a", "1");
    take(&objects.store(), new(&name, None), &mut Volume::random(1, 10 * CHUNK)).await.unwrap();
    objects.store().delete(&name).await.unwrap();
    let (memory, is_armed) = (Arc::clone(&objects.objects), Arc::clone(&armed));
    let claim = format!("organizations/acme/claims/take-{:032x}-{:032x}", 1, 2);
    let path = object_store::path::Path::from(claim.as_str());
    let key = path.clone();
    let hooked = objects.with(move |request| {
        if request.kind == "list" && request.path.ends_with("/chunks") {
            is_armed.store(true, Ordering::Relaxed);
            memory.put(&key, PutPayload::new()).now_or_never().unwrap().unwrap();
        }
        Fate::Done
    });
    let store = hooked.store();
    assert_eq!(store.sweep().await.unwrap(), Swept { busy: 1, ..Swept::default() });
    assert!(armed.load(Ordering::Relaxed));
    assert_eq!(objects.keys("chunks").await.len(), 10);
    objects.objects.delete(&path).await.unwrap();
    assert_eq!(objects.store().sweep().await.unwrap().chunks, 11);
}

#[tokio::test]
async fn a_snapshot_waits_for_the_sweep_of_another_server() {
    let directory = tempfile::tempdir().unwrap();
    let impatient = Options { retry_for: Duration::ZERO, ..options() };
    let impatient = SnapshotStore::open_with(config(directory.path()), impatient).unwrap();
    let claim = claim(directory.path(), "sweep");
    let name = name("acme", "a", "1");
    let mut volume = Volume::random(1, 10 * CHUNK);
    let error = take(&impatient, new(&name, None), &mut volume).await.unwrap_err();
    assert!(error.to_string().contains("another server is sweeping"), "{error}");
    assert_eq!(volume.reads, []);

    let store = store(directory.path());
    let taking = async { take(&store, new(&name, None), &mut volume.clone()).await.unwrap() };
    let ending = async {
        // It has seen the sweep's claim when it has its own, and can't be past it.
        while objects(directory.path(), "claims").len() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(objects(directory.path(), "chunks").len(), 0);
        fs::remove_file(&claim).unwrap();
    };
    tokio::join!(taking, ending);
    assert!(contents(&store, &name).await.unwrap() == volume.contents);
}

#[tokio::test]
async fn a_snapshot_whose_claim_was_removed_is_not_there() {
    let objects = Hooked::new(|_| Fate::Done);
    let memory = Arc::clone(&objects.objects);
    let hooked = objects.with(move |request| {
        // A server that took it for left behind, at the last moment.
        if request.kind == "put" && request.path.contains("/snapshots/") {
            let claims = "organizations/acme/claims".into();
            let metas = memory.list(Some(&claims)).try_collect::<Vec<_>>().now_or_never();
            let [claim] = &metas.unwrap().unwrap()[..] else { panic!("it has one claim") };
            memory.delete(&claim.location).now_or_never().unwrap().unwrap();
        }
        Fate::Done
    });
    let store = hooked.store();
    let name = name("acme", "a", "1");
    let error = take(&store, new(&name, None), &mut Volume::random(1, CHUNK)).await.unwrap_err();
    assert!(error.to_string().contains("away for too long"), "{error}");
    assert!(matches!(store.get(&name).await, Err(SnapshotError::NotFound(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn snapshots_and_sweeps_of_two_servers_harm_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let stores = [store(directory.path()), store(directory.path())];
    let takers = (0..4_u64).map(|taker| {
        let store = stores[taker as usize % 2].clone();
        tokio::spawn(async move {
            let volume_name = format!("v{taker}");
            for index in 0..25_u64 {
                // The same contents come again when nothing has them any more.
                let mut volume = Volume::random(index % 3, 6 * CHUNK);
                let name = name("acme", &volume_name, &index.to_string());
                take(&store, new(&name, None), &mut volume).await.unwrap();
                assert!(contents(&store, &name).await.unwrap() == volume.contents);
                store.delete(&name).await.unwrap();
            }
        })
    });
    let takers = futures::future::join_all(takers);
    let ended = AtomicBool::new(false);
    let sweeping = async |store: &SnapshotStore| {
        while !ended.load(Ordering::Relaxed) {
            store.sweep().await.unwrap();
        }
    };
    let taking = async {
        for taken in takers.await {
            taken.unwrap();
        }
        ended.store(true, Ordering::Relaxed);
    };
    tokio::join!(taking, sweeping(&stores[0]), sweeping(&stores[1]));
    stores[0].sweep().await.unwrap();
    assert_eq!(all(directory.path()).len(), 0);
}
