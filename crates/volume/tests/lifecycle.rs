//! Growing, deleting, and what is reserved for volumes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod support;

use std::fs;

use caddis_volume::{Filesystem, Growth, InstallationKey, Space, VolumeError, encrypted_volumes};
use jiff::SignedDuration;

use crate::support::{Host, at, gib, id, key};

#[tokio::test]
async fn a_closed_volume_grows_keeps_its_data_and_never_shrinks() {
    let host = Host::new();
    for (name, encrypted) in [("vol_a", false), ("vol_b", true)] {
        let volume = host.create(name, 1, Filesystem::Raw, encrypted).await.unwrap().id;
        let node = host.node(&volume).await;
        node.write(7, "1023M", "1M");
        let generation = host.store.get(&volume).unwrap().generation;
        assert_eq!(host.store.grow(&volume, gib(500)).await.unwrap(), Growth::Done);
        let grown = host.store.get(&volume).unwrap();
        assert_eq!((grown.size, grown.generation), (gib(500), generation + 1));
        assert_eq!(host.store.grow(&volume, gib(500)).await.unwrap(), Growth::Done);
        assert_eq!(host.store.get(&volume).unwrap(), grown, "a repetition changes nothing");
        assert_eq!(host.names("tmp"), [""; 0]);
        assert_eq!(host.store.usage(&volume).unwrap().virtual_bytes, 500 << 30);
        assert!(node.has(7, "1023M", "1M") && node.has(0, "1G", "1M"));
        node.write(8, "510000M", "1M");
        assert!(host.store.check(&volume).await.unwrap().is_sound());
        let shrink = host.store.grow(&volume, gib(499)).await.unwrap_err();
        let expected = format!(
            "volume {name} has 500 GB and cannot shrink to 499 GB: copy the files to a new one"
        );
        assert_eq!(shrink.to_string(), expected);
    }
    let nothing = host.store.grow(&id("vol_z"), gib(2)).await;
    assert!(matches!(nothing, Err(VolumeError::NotFound(_))));
}

#[tokio::test]
async fn a_store_tells_whether_it_ever_had_a_volume_and_which_are_encrypted() {
    let host = Host::new().reopen();
    assert!(!host.store.was_used());
    assert_eq!(encrypted_volumes(host.store.directory()).unwrap(), []);
    let plain = host.raw("vol_a", 1).await;
    for name in ["vol_b", "vol_c"] {
        host.create(name, 1, Filesystem::Raw, true).await.unwrap();
    }
    host.store.delete(&id("vol_b"), at(0)).unwrap();
    let encrypted = || encrypted_volumes(host.store.directory()).unwrap();
    assert_eq!(encrypted(), [id("vol_b"), id("vol_c")]);
    for name in ["vol_a", "vol_c"] {
        host.store.delete(&id(name), at(0)).unwrap();
    }
    for name in ["vol_b", "vol_c"] {
        host.store.purge(&id(name)).unwrap();
    }
    assert_eq!(encrypted(), []);
    host.store.purge(&plain).unwrap();
    assert!(host.reopen().store.was_used());
}

#[tokio::test]
async fn a_deleted_volume_can_be_undeleted_for_a_day_and_no_longer() {
    let host = Host::new();
    let volume = host.raw("vol_a", 1).await;
    host.node(&volume).await.write(7, "0", "1M");
    let before = host.store.get(&volume).unwrap();
    assert!(matches!(host.store.undelete(&volume), Err(VolumeError::NotDeleted(_))));
    let deleted = host.store.delete(&volume, at(0)).unwrap();
    assert_eq!(deleted.deleted_at, Some(at(0)));
    assert_eq!(host.contents(), ["trash/vol_a"]);
    assert!(matches!(host.store.delete(&volume, at(1)), Err(VolumeError::Deleted(_))));
    let open = host.store.open_writer(&volume, "a test").await;
    assert!(matches!(open, Err(VolumeError::Deleted(_))));
    assert!(matches!(host.store.grow(&volume, gib(2)).await, Err(VolumeError::Deleted(_))));
    assert!(host.store.usage(&volume).unwrap().allocated_bytes >= 1 << 20);

    let host = host.reopen();
    assert_eq!(host.store.list(), [deleted]);
    let day = SignedDuration::from_hours(24);
    assert_eq!(host.store.purge_expired(at(0) + day - SignedDuration::from_secs(1)), []);
    // The clock may have been set back.
    assert_eq!(host.store.purge_expired(at(0) - day - day), []);
    assert_eq!(host.store.undelete(&volume).unwrap(), before);
    assert_eq!(host.contents(), ["volumes/vol_a"]);
    assert!(host.node(&volume).await.has(7, "0", "1M"));

    host.store.delete(&volume, at(0)).unwrap();
    assert_eq!(host.store.purge_expired(at(0) + day).as_slice(), std::slice::from_ref(&volume));
    assert!(matches!(host.store.undelete(&volume), Err(VolumeError::NotFound(_))));
    assert_eq!((host.contents().len(), host.store.space().declared), (0, 0));
    assert_eq!(host.raw("vol_a", 1).await, volume, "its ID is free again");
    assert!(host.node(&volume).await.has(0, "0", "1M"));
    assert!(matches!(host.store.purge(&volume), Err(VolumeError::NotDeleted(_))));
}

#[tokio::test]
async fn declared_sizes_are_counted_and_no_volume_is_made_or_grown_beyond_the_limit() {
    let host = Host::with(|config| config.limit = Some(10));
    let first = host.raw("vol_a", 6).await;
    let other = host.raw("vol_b", 3).await;
    let error = host.create("vol_c", 2, Filesystem::Raw, false).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "not enough space for 2 GB: 9 of 10 GB for volumes are reserved; delete volumes with \
         --purge, or raise the server's volume-gb"
    );
    let grow = host.store.grow(&other, gib(5)).await;
    assert!(matches!(grow, Err(VolumeError::LimitReached { needed: 2, .. })));
    assert_eq!(host.store.get(&other).unwrap().size, gib(3));
    assert_eq!(host.store.grow(&other, gib(4)).await.unwrap(), Growth::Done);
    let (progress, _) = tokio::sync::watch::channel(Default::default());
    let copy = host.store.copy(&other, support::copy_to("vol_c", None), &progress).await;
    assert!(matches!(copy, Err(VolumeError::LimitReached { needed: 4, .. })));

    host.store.delete(&first, at(0)).unwrap();
    let full = Space { limit: Some(10), declared: 10, deleted: 6 };
    assert_eq!(host.store.space(), full, "it can be undeleted");
    let host = host.reopen();
    assert_eq!(host.store.space(), full);
    let refused = host.create("vol_c", 1, Filesystem::Raw, false).await;
    assert!(matches!(refused, Err(VolumeError::LimitReached { deleted: 6, .. })));
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("deleted volumes have 6 GB of them for a day"), "{text}");
    host.store.purge(&first).unwrap();
    host.raw("vol_c", 6).await;
    assert_eq!(host.contents(), ["volumes/vol_b", "volumes/vol_c"]);
}

#[tokio::test]
async fn of_creations_at_the_same_time_no_more_succeed_than_there_is_room_for() {
    let host = Host::with(|config| config.limit = Some(5));
    let create = |name| host.create(name, 2, Filesystem::Ext4, false);
    let (a, b, c) = tokio::join!(create("vol_a"), create("vol_b"), create("vol_c"));
    assert_eq!([&a, &b, &c].iter().filter(|made| made.is_ok()).count(), 2);
    let error = [a, b, c].into_iter().find_map(Result::err).unwrap();
    assert!(matches!(error, VolumeError::LimitReached { needed: 2, declared: 4, .. }));
    assert_eq!(host.names("tmp"), [""; 0]);
}

#[tokio::test]
async fn a_directory_has_one_store() {
    let host = Host::new();
    let again = caddis_volume::VolumeStore::open(host.config.clone());
    assert!(matches!(again, Err(VolumeError::StoreInUse(_))));
    let clone = host.store.clone();
    host.raw("vol_a", 1).await;
    assert_eq!(clone.list().len(), 1);
    drop(clone);
    host.reopen();
}

#[tokio::test]
async fn encrypted_volumes_are_there_with_their_installation_key_alone() {
    let host = Host::new();
    let volume = host.create("vol_a", 1, Filesystem::Raw, true).await.unwrap().id;
    let plain = host.raw("vol_b", 1).await;
    host.node(&volume).await.write(7, "0", "1M");
    let before = host.store.get(&volume).unwrap();

    let host = host.reopen_with(|config| config.key = InstallationKey::new([1; 32], "two"));
    let open = host.store.open_writer(&volume, "a test").await.unwrap_err();
    assert_eq!(
        open.to_string(),
        "the key of volume vol_a is encrypted with another installation key (one) than the server \
         has (two): restore that one from a backup"
    );
    let is_other = |error| {
        assert!(matches!(&error, VolumeError::OtherKey { id, .. } if *id == volume), "{error}");
    };
    is_other(open);
    is_other(host.store.grow(&volume, gib(2)).await.unwrap_err());
    is_other(host.store.check(&volume).await.unwrap_err());
    host.store.open_writer(&plain, "a test").await.unwrap().release();
    assert_eq!(host.store.get(&volume).unwrap(), before, "nothing was changed");

    let host = host.reopen_with(|config| config.key = key());
    assert!(host.node(&volume).await.has(7, "0", "1M"));
}

#[tokio::test]
async fn a_check_tells_what_is_corrupt_and_what_is_lost() {
    use std::os::unix::fs::FileExt as _;
    let host = Host::new();
    let volume = host.raw("vol_a", 1).await;
    host.node(&volume).await.write(7, "0", "1M");
    let file = fs::File::options().read(true).write(true).open(host.disk("vol_a")).unwrap();
    // A cluster more than is used is counted as used: the block of counters is the third cluster.
    let leaked = file.metadata().unwrap().len() / (64 << 10);
    file.write_all_at(&1u16.to_be_bytes(), (2 << 16) + 2 * leaked).unwrap();
    file.set_len((leaked + 1) << 16).unwrap();
    let check = host.store.check(&volume).await.unwrap();
    assert!(check.leaks == 1 && check.is_sound(), "{check:?}");
    // And one that is used is not.
    file.write_all_at(&0u16.to_be_bytes(), (2 << 16) + 2 * (leaked - 1)).unwrap();
    let check = host.store.check(&volume).await.unwrap();
    assert!(check.corruptions > 0 && !check.is_sound(), "{check:?}");
}
