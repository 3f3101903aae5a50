//! Volumes that are read over NBD, and images for snapshots.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod support;

use std::{
    ffi::OsStr,
    fs,
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
    path::PathBuf,
};

use caddis_snapshot::{Source as _, nbd::Client};
use caddis_volume::{Filesystem, FleecingImage, VolumeError};

use crate::support::{Host, Node, at, gib, run};

#[tokio::test]
async fn an_export_has_what_the_volume_has_and_says_what_is_zero() {
    let host = Host::new();
    for encrypted in [false, true] {
        let name = if encrypted { "vol_b" } else { "vol_a" };
        let volume = host.create(name, 1, Filesystem::Ext4, encrypted).await.unwrap().id;
        let node = host.node(&volume).await;
        node.write(7, "700M", "3M");
        let raw = host.directory.path().join(name);
        node.to_raw(&raw);

        let export = host.store.export(&volume).await.unwrap();
        let directory = export.socket.parent().unwrap().metadata().unwrap();
        assert_eq!(directory.permissions().mode() & 0o777, 0o700);
        let mut client = Client::connect(&export.socket, &export.name, None).await.unwrap();
        assert_eq!(client.size(), 1 << 30);
        let (expected, mut data, mut at) = (fs::read(&raw).unwrap(), 0, 0);
        while at < client.size() {
            for extent in client.extents(at, client.size() - at).await.unwrap() {
                assert_eq!(extent.offset, at);
                assert!(!extent.is_unchanged);
                let mut found = vec![0; usize::try_from(extent.length).unwrap()];
                if !extent.is_zero {
                    client.read(at, &mut found).await.unwrap();
                    data += extent.length;
                }
                let start = usize::try_from(at).unwrap();
                assert!(found == expected[start..][..found.len()], "{name} at {at}");
                at += extent.length;
            }
        }
        assert!((3 << 20..32 << 20).contains(&data), "{data}");
        assert_eq!(
            host.store.get(&volume).unwrap().generation,
            2,
            "the writer's: it is not opened"
        );
    }
}

#[tokio::test]
async fn an_export_that_is_dropped_keeps_nobody_from_opening_the_volume() {
    let host = Host::new();
    let volume = host.raw("vol_a", 1).await;
    for _ in 0..20 {
        let export = host.store.export(&volume).await.unwrap();
        let expected = "volume vol_a is in use by a snapshot of it: stop that first";
        let used = host.store.open_writer(&volume, "a test").await.unwrap_err();
        assert_eq!(used.to_string(), expected);
        let again = host.store.export(&volume).await.unwrap_err();
        assert_eq!(again.to_string(), expected);
        drop(export);
        // QEMU's lock is free too.
        host.node(&volume).await.write(1, "0", "64k");
    }
    assert_eq!(host.contents(), ["volumes/vol_a"]);

    let writer = host.store.open_writer(&volume, "a machine").await.unwrap();
    let used = host.store.export(&volume).await.unwrap_err();
    assert!(used.to_string().contains("in use by a machine"), "{used}");
    writer.release();
    host.store.delete(&volume, at(0)).unwrap();
    assert!(matches!(host.store.export(&volume).await, Err(VolumeError::Deleted(_))));
}

#[tokio::test]
async fn an_export_that_is_dropped_before_it_is_there_leaves_nothing() {
    let host = Host::new();
    let volume = host.raw("vol_a", 1).await;
    for polls in 0..6 {
        let mut export = Box::pin(host.store.export(&volume));
        for _ in 0..polls {
            if futures::poll!(export.as_mut()).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(export);
        host.store.open_writer(&volume, "a test").await.unwrap().release();
        assert_eq!(host.contents(), ["volumes/vol_a"]);
    }
}

#[tokio::test]
async fn a_daemon_that_is_missing_or_fails_is_told() {
    let host = Host::new();
    let volume = host.raw("vol_a", 1).await;
    let host = host.reopen_with(|config| config.storage_daemon = "false".into());
    let failed = host.store.export(&volume).await.unwrap_err();
    let expected = "false failed to read volume vol_a: it ended with exit code 1 and said nothing";
    assert_eq!(failed.to_string(), expected);
    host.store.open_writer(&volume, "a test").await.unwrap().release();
}

/// An image for QEMU's tools.
fn node(host: &Host, image: &FleecingImage) -> Node {
    let path = format!("/proc/{}/fd/{}", std::process::id(), image.file.as_raw_fd());
    Node::new(&PathBuf::from(path), image.key.as_ref(), host.directory.path())
}

#[tokio::test]
async fn an_image_for_a_snapshot_is_as_large_as_the_volume_empty_and_encrypted_if_it_is() {
    let host = Host::new();
    for encrypted in [false, true] {
        let name = if encrypted { "vol_b" } else { "vol_a" };
        let volume = host.create(name, 1, Filesystem::Raw, encrypted).await.unwrap().id;
        host.node(&volume).await.write(7, "0", "1M");
        for size in [1, 3, 500] {
            let _ = host.store.grow(&volume, gib(size)).await.unwrap();
            // Also while it is in use.
            let writer = host.store.open_writer(&volume, "a machine").await.unwrap();
            let image = host.store.fleecing_image(&volume).await.unwrap();
            writer.release();
            assert_eq!(image.key.is_some(), encrypted);
            let node = node(&host, &image);
            let last = format!("{}M", size * 1024 - 2);
            assert!(node.has(0, "0", "1G") && node.has(0, &last, "2M"));
            assert!(!node.has(0, &format!("{size}G"), "64k"), "it is no larger");
            node.write(0x5a, &last, "2M");
            node.write(0x5a, "0", "64k");
            assert!(node.has(0x5a, &last, "2M") && node.has(0, "1M", "100M"));
            let mut check: Vec<&OsStr> = vec!["check".as_ref()];
            if let Some(secret) = &node.secret {
                check.push("--object".as_ref());
                check.push(secret.as_ref());
            }
            check.push(node.json.as_ref());
            let said = run("qemu-img", &check);
            assert!(said.contains("No errors were found"), "{said}");
            let path = format!("/proc/{}/fd/{}", std::process::id(), image.file.as_raw_fd());
            let bytes = fs::read(path).unwrap();
            let is_clear = bytes.windows(4096).step_by(4096).any(|block| block == [0x5a; 4096]);
            assert_eq!(is_clear, !encrypted);
        }
        assert!(host.node(&volume).await.has(7, "0", "1M"));
    }
    assert_eq!(host.names("tmp"), [""; 0], "images have no name");
    assert!(host.names("volumes/vol_b").contains(&"volumes/vol_b/fleecing.qcow2".to_owned()));
    let deleted = host.store.delete(&"vol_b".parse().unwrap(), at(0)).unwrap();
    host.store.purge(&deleted.id).unwrap();
    assert_eq!(host.contents(), ["volumes/vol_a"]);
}

#[tokio::test]
async fn the_second_image_for_a_volume_takes_no_program() {
    let host = Host::new();
    let volume = host.raw("vol_a", 1).await;
    drop(host.store.fleecing_image(&volume).await.unwrap());
    let host = host.reopen_with(|config| config.qemu_img = "no-such-program".into());
    let images = [
        host.store.fleecing_image(&volume).await.unwrap(),
        host.store.fleecing_image(&volume).await.unwrap(),
    ];
    let nodes = images.each_ref().map(|image| node(&host, image));
    nodes[0].write(7, "0", "1M");
    assert!(nodes[1].has(0, "0", "1M"), "they are independent");
}

#[tokio::test]
async fn space_for_an_image_is_counted_while_it_is_there() {
    let host = Host::with(|config| config.limit = Some(2));
    let volume = host.raw("vol_a", 1).await;
    host.node(&volume).await.write(7, "0", "4M");
    let image = host.store.fleecing_image(&volume).await.unwrap();
    assert_eq!(host.store.space().declared, 2);
    let refused = host.store.fleecing_image(&volume).await;
    assert!(matches!(refused, Err(VolumeError::LimitReached { .. })));
    // 4 MiB, and 16 for tables.
    assert!((20 << 20..24 << 20).contains(&image.space.reserved()), "{:?}", image.space);
    assert!(!image.space.is_exceeded());
    let FleecingImage { file, key, space } = image;
    let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
    Node::new(&path, key.as_ref(), host.directory.path()).write(7, "0", "32M");
    assert!(space.is_exceeded());
    drop(file);
    assert_eq!(host.store.space().declared, 2);
    drop(space);
    assert_eq!(host.store.space().declared, 1);
}
