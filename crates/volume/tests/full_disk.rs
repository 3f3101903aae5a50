//! A disk that is full. Needs root: each test has a small file system of its own, in a mount
//! namespace of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod support;

use std::{fs, path::Path};

use caddis_volume::{Filesystem, Growth, VolumeError};

use crate::support::{Backing, Host, copy_to, gib};

/// Runs `body` in a directory that has room for so many bytes.
fn on_a_disk<F: Future<Output = ()>>(size: u64, body: impl FnOnce(Host) -> F + Send) {
    support::on_a_file_system(support::tmpfs(size), body);
}

fn fill(directory: &Path, left: u64) {
    let path = directory.join("filler");
    let _ = fs::remove_file(&path);
    let found = nix::sys::statvfs::statvfs(directory).unwrap();
    let free = found.blocks_available() * found.fragment_size();
    let file = fs::File::create(path).unwrap();
    let length = i64::try_from(free.saturating_sub(left)).unwrap();
    if length > 0 {
        nix::fcntl::posix_fallocate(&file, 0, length).unwrap();
    }
}

#[test]
fn however_little_room_there_is_a_creation_or_copy_makes_a_whole_volume_or_leaves_nothing() {
    on_a_disk(8 << 20, |host| async move {
        let source = host.raw("vol_a", 1).await;
        host.node(&source).await.write(7, "0", "256k");
        let (progress, _) = tokio::sync::watch::channel(Default::default());
        let (mut made, mut refused) = (0, 0);
        for left in (0..3 << 20).step_by(160 << 10) {
            fill(&host.config.directory, left);
            for copy in [false, true] {
                let outcome = match copy {
                    false => host.create("vol_new", 1, Filesystem::Ext4, false).await,
                    true => {
                        let copied = host.store.copy(&source, copy_to("vol_new", None), &progress);
                        copied.await.map(|copied| copied.volume)
                    }
                };
                match outcome {
                    Ok(volume) => {
                        made += 1;
                        fs::remove_file(host.config.directory.join("filler")).unwrap();
                        assert!(host.store.check(&volume.id).await.unwrap().is_sound());
                        host.store.delete(&volume.id, support::at(0)).unwrap();
                        host.store.purge(&volume.id).unwrap();
                        fill(&host.config.directory, left);
                    }
                    Err(VolumeError::NoSpace { .. }) => refused += 1,
                    Err(error) => panic!("{left} left: {error}"),
                }
                assert_eq!(host.contents(), ["volumes/vol_a"], "{left} left");
                assert_eq!(host.store.space().declared, 1);
            }
        }
        assert!(made > 5 && refused > 5, "{made} made, {refused} refused");
    });
}

#[test]
fn an_encrypted_volume_for_whose_header_there_is_no_room_leaves_nothing() {
    on_a_disk(2 << 20, |host| async move {
        let error = host.create("vol_a", 1, Filesystem::Raw, true).await.unwrap_err();
        assert!(matches!(error, VolumeError::NoSpace { .. }), "{error}");
        assert_eq!((host.contents().len(), host.store.space().declared), (0, 0));
    });
}

#[test]
fn a_snapshot_for_which_there_is_no_room_is_refused() {
    on_a_disk(32 << 20, |host| async move {
        let volume = host.raw("vol_a", 1).await;
        host.node(&volume).await.write(7, "0", "4M");
        drop(host.store.fleecing_image(&volume).await.unwrap());
        fill(&host.config.directory, 19 << 20);
        let error = host.store.fleecing_image(&volume).await.unwrap_err();
        assert!(matches!(&error, VolumeError::NoSpace { .. }), "{error}");
        assert!(error.to_string().contains("are free"), "{error}");
        assert_eq!(host.store.space().declared, 1);
    });
}

#[test]
fn a_restore_for_which_there_is_no_room_fails_and_goes_on_when_there_is() {
    on_a_disk(8 << 20, |host| async move {
        let volume = host.restoring("vol_a", 1, false).await;
        let backing = Backing::new(vec![(1 << 20, 4 << 20, 5)], 1 << 30);
        let (progress, _) = tokio::sync::watch::channel(Default::default());
        fill(&host.config.directory, 3 << 20);
        let error = host.store.hydrate(&volume, &backing.socket(), &progress).await.unwrap_err();
        assert!(matches!(&error, VolumeError::NoSpace { .. }), "{error}");
        fs::remove_file(host.config.directory.join("filler")).unwrap();
        host.store.hydrate(&volume, &backing.socket(), &progress).await.unwrap();
        host.store.mark_whole(&volume).unwrap();
        assert!(host.store.check(&volume).await.unwrap().is_sound());
        assert!(host.node(&volume).await.has(5, "1M", "4M"));
    });
}

#[test]
fn a_growth_without_room_fails_and_can_be_repeated() {
    on_a_disk(2 << 20, |host| async move {
        let mut refused = 0;
        for left in (0..48 << 10).step_by(4 << 10) {
            let volume = host.raw("vol_a", 1).await;
            host.node(&volume).await.write(7, "0", "64k");
            fill(&host.config.directory, left);
            match host.store.grow(&volume, gib(500)).await {
                Ok(growth) => assert_eq!(growth, Growth::Done),
                Err(VolumeError::NoSpace { .. }) => {
                    refused += 1;
                    assert_eq!(host.store.get(&volume).unwrap().size, gib(1), "{left} left");
                    assert_eq!(host.store.usage(&volume).unwrap().virtual_bytes, 1 << 30);
                }
                Err(error) => panic!("{left} left: {error}"),
            }
            fs::remove_file(host.config.directory.join("filler")).unwrap();
            assert_eq!(host.store.grow(&volume, gib(500)).await.unwrap(), Growth::Done);
            assert_eq!(host.store.usage(&volume).unwrap().virtual_bytes, 500 << 30);
            assert!(host.node(&volume).await.has(7, "0", "64k"));
            assert!(host.store.check(&volume).await.unwrap().is_sound());
            host.store.delete(&volume, support::at(0)).unwrap();
            host.store.purge(&volume).unwrap();
        }
        assert!((2..12).contains(&refused), "{refused} refused");
    });
}
