//! Copies.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod support;

use std::fs;

use caddis_volume::{Filesystem, Progress, VolumeError};
use tokio::sync::watch;

use crate::support::{Host, Node, at, copy_to, gib, id, run};

#[tokio::test]
async fn a_copy_has_what_the_source_has_and_is_independent_of_it() {
    let host = Host::new();
    let source = host.create("vol_a", 1, Filesystem::Ext4, false).await.unwrap();
    let node = host.node(&source.id).await;
    node.write(7, "700M", "3M");
    let (progress, _) = watch::channel(Progress::default());
    let made = host.store.copy(&source.id, copy_to("vol_b", Some(2)), &progress).await.unwrap();
    let made = made.volume;
    assert_eq!((made.size, made.generation, made.filesystem), (gib(2), 1, Filesystem::Ext4));
    assert_eq!(made.copied_from.as_ref(), Some(&source.id));
    assert_eq!(host.store.get(&made.id).unwrap(), made);
    let Progress { done, total } = *progress.borrow();
    assert!(done == total && (3 << 20..32 << 20).contains(&total), "{done} of {total}");

    let copy = host.node(&made.id).await;
    assert!(copy.has(7, "700M", "3M"));
    assert!(copy.has(0, "1G", "1G"), "what is beyond the source is empty");
    let allocated = host.store.usage(&made.id).unwrap().allocated_bytes;
    assert!(allocated < 16 << 20, "what is zero takes no room: {allocated}");
    let raws = ["a", "b"].map(|name| host.directory.path().join(name));
    node.to_raw(&raws[0]);
    copy.to_raw(&raws[1]);
    let first = "--bytes=1073741824".as_ref();
    run("cmp", &[first, raws[0].as_ref(), raws[1].as_ref()]);

    copy.write(8, "700M", "1M");
    assert!(node.has(7, "700M", "3M"));
    assert!(host.store.check(&made.id).await.unwrap().is_sound());
}

#[tokio::test]
async fn a_copy_of_an_encrypted_volume_has_a_key_of_its_own_and_is_nowhere_in_the_clear() {
    let host = Host::new();
    let source = host.create("vol_a", 1, Filesystem::Raw, true).await.unwrap();
    let node = host.node(&source.id).await;
    node.write(0x5a, "16M", "8M");
    let (progress, mut seen) = watch::channel(Progress::default());
    let config = host.config.clone();
    let in_the_clear = tokio::spawn(async move {
        // At each step of the copy all that is in the directory.
        let mut looks = 0;
        while seen.changed().await.is_ok() {
            let output = std::process::Command::new("grep")
                .args(["-rlaE", "ZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZ"])
                .arg(&config.directory)
                .output()
                .unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), "", "it is in the clear");
            looks += 1;
        }
        looks
    });
    let made = host.store.copy(&source.id, copy_to("vol_b", None), &progress).await.unwrap().volume;
    drop(progress);
    assert!(in_the_clear.await.unwrap() > 1);
    assert!(made.encrypted);
    let copy = host.node(&made.id).await;
    assert!(copy.has(0x5a, "16M", "8M"));
    let swapped = Node { secret: node.secret, json: copy.json };
    assert!(!swapped.io(&["read 0 512"]).status.success(), "it opens with the source's key");
}

#[tokio::test]
async fn a_copy_that_is_dropped_ends_at_once_and_leaves_nothing() {
    let host = Host::new();
    let source = host.raw("vol_a", 4).await;
    let node = host.node(&source).await;
    node.write(7, "0", "1G");
    let (progress, mut seen) = watch::channel(Progress::default());
    tokio::select! {
        copied = host.store.copy(&source, copy_to("vol_b", None), &progress) => {
            panic!("{copied:?}")
        }
        begun = seen.wait_for(|progress| progress.done > 0) => {
            let Progress { done, total } = *begun.unwrap();
            assert!(done < total);
        }
    }
    assert_eq!(host.contents(), ["volumes/vol_a"]);
    assert_eq!(host.store.space().declared, 4);
    // The source is free, but for what QEMU's own lock in the killed program takes to go.
    host.store.open_writer(&source, "a test").await.unwrap().release();
    let is_ours = |entry: &fs::DirEntry| {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let place = host.config.directory.to_str().unwrap().replace('"', "\\\"");
        String::from_utf8_lossy(&command).contains(&place)
    };
    while fs::read_dir("/proc").unwrap().flatten().any(|entry| is_ours(&entry)) {
        tokio::task::yield_now().await;
    }
    assert!(host.store.check(&source).await.unwrap().is_sound());
}

#[tokio::test]
async fn copies_that_cannot_be_are_refused_and_leave_nothing() {
    let host = Host::new();
    let source = host.raw("vol_a", 2).await;
    let (other, unknown) = (host.raw("vol_b", 1).await, id("vol_z"));
    let (progress, _) = watch::channel(Progress::default());
    let copy = |from, to| host.store.copy(from, to, &progress);
    let smaller = copy(&source, copy_to("vol_c", Some(1))).await;
    assert!(matches!(smaller, Err(VolumeError::CannotShrink { .. })));
    let taken = copy(&source, copy_to("vol_b", None)).await;
    assert!(matches!(taken, Err(VolumeError::Exists(taken)) if taken == other));
    let itself = copy(&source, copy_to("vol_a", None)).await;
    assert!(matches!(itself, Err(VolumeError::Exists(_))));
    let nothing = copy(&unknown, copy_to("vol_c", None)).await;
    assert!(matches!(nothing, Err(VolumeError::NotFound(_))));
    host.store.delete(&other, at(0)).unwrap();
    let deleted = copy(&other, copy_to("vol_c", None)).await;
    assert!(matches!(deleted, Err(VolumeError::Deleted(_))));
    assert_eq!(host.contents(), ["volumes/vol_a", "trash/vol_b"]);
    assert_eq!(host.store.space().declared, 3);
}

#[tokio::test]
async fn while_a_volume_is_copied_all_else_is_refused_with_that_reason() {
    let host = Host::new();
    let source = host.raw("vol_a", 1).await;
    host.node(&source).await.write(7, "0", "512M");
    let (progress, mut seen) = watch::channel(Progress::default());
    let copy = host.store.copy(&source, copy_to("vol_b", None), &progress);
    let others = async {
        seen.wait_for(|progress| progress.total > 0).await.unwrap();
        let expected = "volume vol_a is in use by its copy to vol_b: stop that first";
        let said = |error: VolumeError| assert_eq!(error.to_string(), expected);
        said(host.store.open_writer(&source, "a test").await.unwrap_err());
        said(host.store.grow(&source, gib(2)).await.unwrap_err());
        said(host.store.delete(&source, at(0)).unwrap_err());
        said(host.store.check(&source).await.unwrap_err());
    };
    let (copied, ()) = tokio::join!(copy, others);
    assert_eq!(copied.unwrap().volume.size, gib(1));
    assert_eq!(host.store.get(&source).unwrap().size, gib(1));
    host.store.delete(&source, at(0)).unwrap();
}
