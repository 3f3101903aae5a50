//! The store over time: restarts, crashes, removal, and making room.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod support;

use std::{collections::HashSet, fs, path::PathBuf, time::Duration};

use caddis_image::{Digest, ImageError, ImageReference, ResolvedImage};
use support::{
    World,
    image::{Image, Layer},
    names, progress, pull,
    registry::{FakeRegistry, Reply},
};

fn image(name: &str) -> Image {
    Image::new(&[Layer::new().file("base", &[1; 5000]), Layer::new().file(name, &[2; 5000])])
}

fn nobody() -> HashSet<Digest> {
    HashSet::new()
}

#[tokio::test]
async fn what_a_crash_left_is_removed_and_what_was_complete_stays() {
    let registry = FakeRegistry::start().await;
    registry.offer("app", "latest", &image("app"));
    let world = World::trusting(&registry.address);
    let store = world.open();
    pull(&store, &registry.reference("app")).await.unwrap();
    drop(store);
    let digest = image("app").digest();

    fs::create_dir_all(world.store_path("tmp/store-dead/work-1/tree/etc")).unwrap();
    fs::write(world.store_path("tmp/store-dead/work-1/disk.ext4"), "half").unwrap();
    fs::write(world.store_path("tmp/stray"), "half").unwrap();
    fs::write(world.store_path("disks").join(format!("{}.ext4", "0".repeat(64))), "no record")
        .unwrap();
    let record = fs::read(
        names(&world.store_path("images"))
            .first()
            .map(|name| world.store_path("images").join(name))
            .unwrap(),
    );
    let orphan = String::from_utf8(record.unwrap())
        .unwrap()
        .replace(digest.as_str(), &format!("sha256:{}", "1".repeat(64)));
    fs::write(world.store_path("images").join(format!("{}.json", "1".repeat(64))), orphan).unwrap();
    fs::write(world.store_path("images/garbage.json"), "{").unwrap();

    let store = world.open();
    assert_eq!(names(&world.store_path("tmp")).len(), 1, "only this store's own");
    world.assert_no_work_left();
    assert_eq!(names(&world.store_path("disks")).len(), 1);
    assert_eq!(names(&world.store_path("images")).len(), 1);
    let images = store.list().await.unwrap();
    assert_eq!((images.len(), &images[0].digest), (1, &digest));
    assert!(images[0].size > 0 && images[0].names == [format!("{}/app:latest", registry.address)]);
    assert!(store.ready_root_disk(&digest).is_some());
    assert!("sha256:../../canary".parse::<Digest>().is_err(), "no disk is looked for there");
}

#[tokio::test]
async fn opening_a_store_twice_does_not_disturb_the_first() {
    let world = World::new();
    let first = world.open();
    let second = world.open();
    assert_eq!(names(&world.store_path("tmp")).len(), 2);
    drop(second);
    assert_eq!(names(&world.store_path("tmp")).len(), 1);
    drop(first);
    assert_eq!(names(&world.store_path("tmp")).len(), 0);
}

#[tokio::test]
async fn a_pinned_image_that_is_there_needs_no_registry() {
    let registry = FakeRegistry::start().await;
    registry.offer("app", "latest", &image("app"));
    let world = World::trusting(&registry.address);
    let store = world.open();
    let disk = pull(&store, &registry.reference("app")).await.unwrap();
    let pinned = registry.reference(&format!("app@{}", image("app").digest()));
    drop(registry);
    assert_eq!(pull(&store, &pinned).await.unwrap(), disk);
    drop(store);
    assert_eq!(pull(&world.open(), &pinned).await.unwrap(), disk);
}

/// An OCI layout of an image, in the directory that tests may write to.
fn layout(world: &World, image: &Image) -> PathBuf {
    let archive = world.outside.path().join("neighbour").join(&image.digest().hex()[..10]);
    fs::create_dir_all(archive.join("blobs/sha256")).unwrap();
    for (digest, bytes) in
        image.blobs.iter().chain([(&image.digest().to_string(), &image.manifest_bytes())])
    {
        fs::write(archive.join("blobs/sha256").join(digest.trim_start_matches("sha256:")), bytes)
            .unwrap();
    }
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": support::image::MANIFEST, "digest": image.digest(),
            "size": image.manifest_bytes().len(),
        }],
    });
    fs::write(archive.join("index.json"), index.to_string()).unwrap();
    archive
}

/// As the API shows it and clients send it back.
fn shown(image: &ResolvedImage) -> String {
    let ImageReference { registry, repository, tag, digest, .. } = &image.reference;
    let tag = tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
    let digest = digest.as_ref().unwrap();
    format!("{registry}/{repository}{tag}@{digest}")
}

#[tokio::test]
async fn a_digest_on_the_host_is_never_asked_of_a_registry_whatever_registry_is_named() {
    let registry = FakeRegistry::start().await;
    registry.offer("app", "1", &image("app"));
    let world = World::trusting(&registry.address);
    let store = world.open();
    let first = store.resolve(&registry.reference("app:1")).await.unwrap();
    let disk = store.root_disk(&first, &progress()).await.unwrap();
    // The tag moves on, and what a store keeps only to save downloads goes.
    registry.offer("app", "1", &image("moved"));
    let in_use = HashSet::from([image("app").digest()]);
    store.collect_garbage(&in_use, u64::MAX).await.unwrap();
    let asked = registry.log().len();
    let own = shown(&first);
    assert_eq!(own, registry.reference(&format!("app:1@{}", image("app").digest())));
    let elsewhere = format!("mirror.example.com/team/app@{}", image("app").digest());
    for reference in [&own, &elsewhere, &image("app").digest().to_string()] {
        assert!(store.knows(reference), "{reference}");
        let again = store.resolve(reference).await.unwrap();
        assert_eq!((&again.requested, &again.config), (reference, &first.config));
        assert_eq!(again.reference.digest, first.reference.digest);
        assert_eq!(store.root_disk(&again, &progress()).await.unwrap(), disk);
    }
    assert_eq!(shown(&store.resolve(&own).await.unwrap()), own, "it stays what it was");
    assert_eq!(shown(&store.resolve(&elsewhere).await.unwrap()), elsewhere);
    assert_eq!(registry.log().len(), asked, "nobody was asked");
    // A tag is asked for, also of an image that is there.
    assert_eq!(
        store.resolve(&registry.reference("app:1")).await.unwrap().reference.digest,
        Some(image("moved").digest())
    );
    drop(registry);
    assert_eq!(shown(&store.resolve(&own).await.unwrap()), own);
    assert_eq!(store.list().await.unwrap()[0].names.len(), 1, "a digest is no further name");
    store.resolve(&own.replace(":1@", ":1")).await.unwrap_err();
    store.resolve("UPPER case").await.unwrap_err();
}

#[tokio::test]
async fn an_imported_image_is_found_by_what_is_shown_of_it_and_gone_when_it_is_removed() {
    let world = World::new();
    let store = world.open();
    for (name, image) in [(Some("team/web:2"), image("named")), (None, image("nameless"))] {
        let source = format!("oci:{}", layout(&world, &image).display());
        store.import(&source, name, &progress()).await.unwrap();
        let imported = store.resolve(image.digest().as_str()).await.unwrap();
        let own = shown(&imported);
        assert!(own.starts_with("local/"), "{own}");
        // Also with a name that no registry would take.
        for reference in [own.clone(), format!("docker-archive/Any Name@{}", image.digest())] {
            assert!(store.knows(&reference), "{reference}");
            let again = store.resolve(&reference).await.unwrap();
            assert_eq!(again, ResolvedImage { requested: reference.clone(), ..imported.clone() });
            store.root_disk(&again, &progress()).await.unwrap();
        }
        let names = store
            .list()
            .await
            .unwrap()
            .into_iter()
            .find(|listed| listed.digest == image.digest())
            .unwrap()
            .names;
        assert_eq!(names.len(), usize::from(name.is_some()), "{names:?}");
        let in_use = HashSet::from([image.digest()]);
        assert!(matches!(store.remove(&own, &in_use).await.unwrap_err(), ImageError::InUse { .. }));
        store.remove(&own, &nobody()).await.unwrap();
        assert!(!store.knows(&own));
        let error = store.resolve(&own).await.unwrap_err();
        assert!(
            matches!(error, ImageError::NotFound { .. }) && error.to_string().contains("import"),
            "{error}"
        );
        let error = store.remove(&own, &nobody()).await.unwrap_err();
        assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
        store.import(&source, name, &progress()).await.unwrap();
        store.resolve(&own).await.unwrap();
    }
}

#[tokio::test]
async fn an_imported_image_is_shown_by_the_name_that_it_is_listed_and_asked_for_by() {
    let (world, web) = (World::new(), image("web"));
    let store = world.open();
    let source = format!("oci:{}", layout(&world, &web).display());
    let listed = store.import(&source, Some("team/web:2"), &progress()).await.unwrap();
    assert_eq!(listed.names, ["docker.io/team/web:2"]);
    let resolved = store.resolve("team/web:2").await.unwrap();
    let own = shown(&resolved);
    assert_eq!(own, format!("docker.io/team/web:2@{}", web.digest()));
    store.root_disk(&resolved, &progress()).await.unwrap();
    assert_eq!(store.list().await.unwrap()[0].names, listed.names, "its use adds no name");
    let again = store.resolve(&own).await.unwrap();
    assert_eq!(
        (again.reference, again.config),
        (resolved.reference.clone(), resolved.config.clone())
    );
    store.remove(&own, &nobody()).await.unwrap();
    let error = store.root_disk(&resolved, &progress()).await.unwrap_err();
    assert!(error.to_string().contains("import the archive again"), "{error}");
}

#[tokio::test]
async fn removing_by_a_name_with_a_digest_removes_the_image_whatever_names_it_has() {
    let registry = FakeRegistry::start().await;
    registry.offer("app", "a", &image("app"));
    registry.offer("app", "b", &image("app"));
    let world = World::trusting(&registry.address);
    let store = world.open();
    for reference in ["app:a", "app:b"] {
        pull(&store, &registry.reference(reference)).await.unwrap();
    }
    store
        .remove(&registry.reference(&format!("app@{}", image("app").digest())), &nobody())
        .await
        .unwrap();
    assert_eq!(store.list().await.unwrap(), []);
}

#[tokio::test]
async fn removing_takes_names_first_and_never_what_is_in_use() {
    let registry = FakeRegistry::start().await;
    registry.offer("app", "a", &image("app"));
    registry.offer("app", "b", &image("app"));
    registry.offer("other", "latest", &image("other"));
    let world = World::trusting(&registry.address);
    let store = world.open();
    for reference in ["app:a", "app:b", "other"] {
        pull(&store, &registry.reference(reference)).await.unwrap();
    }
    let digest = image("app").digest();
    let in_use = HashSet::from([digest.clone()]);
    store.remove(&registry.reference("app:a"), &in_use).await.unwrap();
    let error = store.remove(&registry.reference("app:b"), &in_use).await.unwrap_err();
    assert!(matches!(error, ImageError::InUse { .. }), "{error}");
    let error = store.remove(digest.as_str(), &in_use).await.unwrap_err();
    assert!(matches!(error, ImageError::InUse { .. }), "{error}");
    assert!(store.ready_root_disk(&digest).is_some());
    store.remove(&registry.reference("app:b"), &nobody()).await.unwrap();
    assert_eq!(store.ready_root_disk(&digest), None);
    let error = store.remove(digest.as_str(), &nobody()).await.unwrap_err();
    assert!(
        matches!(error, ImageError::NotFound { .. } | ImageError::InvalidReference { .. }),
        "{error}"
    );
    // The layer that the other image shares is still there, the one only this had is not.
    let blob =
        |digest: String| world.store_path("blobs").join(digest.trim_start_matches("sha256:"));
    assert!(blob(image("app").layer_digest(0)).exists());
    assert!(!blob(image("app").layer_digest(1)).exists());
    store.remove(image("other").digest().as_str(), &nobody()).await.unwrap();
    assert_eq!(names(&world.store_path("blobs")), [""; 0]);
    assert_eq!(store.list().await.unwrap(), []);
}

#[tokio::test]
async fn garbage_is_collected_only_when_space_is_short_and_nobody_needs_it() {
    let registry = FakeRegistry::start().await;
    let world = World::trusting(&registry.address);
    let store = world.open();
    for name in ["old", "used", "new"] {
        registry.offer(name, "latest", &image(name));
        pull(&store, &registry.reference(name)).await.unwrap();
    }
    let imported = image("imported");
    let archive = layout(&world, &imported);
    store
        .import(&format!("oci:{}", archive.display()), Some("imported"), &progress())
        .await
        .unwrap();

    let report = store.collect_garbage(&nobody(), 0).await.unwrap();
    assert_eq!((report.removed, report.freed_bytes), (Vec::new(), 0));
    assert_eq!(store.list().await.unwrap().len(), 4);

    let in_use = HashSet::from([image("used").digest()]);
    let report = store.collect_garbage(&in_use, u64::MAX).await.unwrap();
    assert_eq!(
        report.removed,
        [image("old").digest(), image("new").digest()],
        "least recently used first"
    );
    assert!(report.freed_bytes > 0);
    assert_eq!(names(&world.store_path("blobs")), [""; 0]);
    let mut left: Vec<Digest> =
        store.list().await.unwrap().into_iter().map(|image| image.digest).collect();
    left.sort();
    let mut expected = [image("used").digest(), imported.digest()];
    expected.sort();
    assert_eq!(left, expected, "in use, and what no registry could bring back");

    // What was collected comes back when asked for.
    pull(&store, &registry.reference("old")).await.unwrap();
}

#[tokio::test]
async fn closing_the_store_ends_builds_and_leaves_nothing() {
    let registry = FakeRegistry::start().await;
    registry.offer("app", "latest", &image("app"));
    let (asked, mut layer_asked) = tokio::sync::mpsc::unbounded_channel();
    let layer = image("app").layer_digest(1);
    registry.misbehave(move |request| {
        if request.path.ends_with(&layer) {
            // Nobody may be listening any more.
            let _ = asked.send(());
            // Never enough of it.
            return Some(Reply::new(500, ""));
        }
        None
    });
    let mut world = World::trusting(&registry.address);
    world.config.transfer.attempts = u32::MAX;
    let store = world.open();
    let resolved = store.resolve(&registry.reference("app")).await.unwrap();
    let (caller_store, caller_image) = (store.clone(), resolved.clone());
    let caller =
        tokio::spawn(async move { caller_store.root_disk(&caller_image, &progress()).await });
    layer_asked.recv().await.unwrap();
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    let session = world.store_path("tmp").join(&names(&world.store_path("tmp"))[0]);
    let session_lock = fs::File::open(session).unwrap();
    drop(store);
    // The session's lock goes with the last who works in it.
    let ended = tokio::task::spawn_blocking(move || {
        nix::fcntl::Flock::lock(session_lock, nix::fcntl::FlockArg::LockExclusive)
            .map(drop)
            .map_err(|(_, error)| error)
    });
    tokio::time::timeout(Duration::from_secs(60), ended)
        .await
        .expect("the build ends")
        .unwrap()
        .unwrap();
    assert_eq!(names(&world.store_path("tmp")), [""; 0]);
    assert_eq!(names(&world.store_path("disks")), [""; 0]);
}
