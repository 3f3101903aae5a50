//! Copies on a file system that can share blocks (XFS), and on one that can't.
//!
//! The former needs root, `mkfs.xfs` and loop devices: each test has a file system in a file, in a
//! mount namespace of its own. Where there are no loop devices, that is said and skipped.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod support;

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    process::Command,
};

use caddis_volume::{CloneError, Filesystem, Progress, VolumeError};
use tokio::sync::watch;

use crate::support::{copy_to, expect_success, gib, id, on_a_file_system, run};

/// In a file beside the directory.
fn xfs(path: &Path) -> bool {
    let file = path.with_extension("xfs");
    File::create(&file).unwrap().set_len(1 << 30).unwrap();
    let made = Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&file).output();
    expect_success(&made.expect("needs mkfs.xfs: apt-get install xfsprogs"));
    let mounted = Command::new("mount").args(["-o", "loop"]).args([&file, path]).output().unwrap();
    // The loop device has it.
    fs::remove_file(&file).unwrap();
    let stderr = String::from_utf8_lossy(&mounted.stderr).into_owned();
    if !mounted.status.success() {
        let loops = Path::new("/dev/loop-control").exists();
        assert!(!loops, "XFS can't be mounted: {stderr}");
        eprintln!("skipped: this host has no loop devices: {stderr}");
    }
    mounted.status.success()
}

#[test]
fn a_copy_where_blocks_can_be_shared_takes_no_space_and_is_independent() {
    on_a_file_system(xfs, |host| async move {
        assert!(host.store.can_clone().unwrap());
        let (progress, _) = watch::channel(Progress::default());
        for encrypted in [false, true] {
            let (from, to) = if encrypted { ("vol_c", "vol_d") } else { ("vol_a", "vol_b") };
            let source = host.create(from, 1, Filesystem::Ext4, encrypted).await.unwrap();
            let node = host.node(&source.id).await;
            node.write(7, "700M", "200M");
            let free = || free_space(&host.config.directory);
            let before = free();
            let copied =
                host.store.copy(&source.id, copy_to(to, Some(2)), &progress).await.unwrap();
            assert!(copied.is_clone);
            let (copy, now) = (copied.volume, free());
            assert!(before - now < 16 << 20, "{}", before - now);
            assert_eq!((copy.size, copy.encrypted, copy.generation), (gib(2), encrypted, 1));
            assert_eq!(copy.copied_from.as_ref(), Some(&source.id));
            let Progress { done, total } = *progress.borrow();
            assert!(done == total && total > 200 << 20);
            assert_eq!(host.store.usage(&copy.id).unwrap().virtual_bytes, 2 << 30);

            let other = host.node(&copy.id).await;
            assert!(other.has(7, "700M", "200M") && other.has(0, "1G", "1G"));
            other.write(8, "700M", "1M");
            node.write(9, "701M", "1M");
            assert!(node.has(7, "700M", "1M") && other.has(7, "701M", "1M"));
            assert!(host.store.check(&copy.id).await.unwrap().is_sound());
            assert!(host.store.check(&source.id).await.unwrap().is_sound());
        }
        assert_eq!(host.reopen().store.problems(), []);
    });
}

fn free_space(path: &Path) -> u64 {
    let found = nix::sys::statvfs::statvfs(path).unwrap();
    found.blocks_free() * found.fragment_size()
}

/// What the VM of a volume does.
fn ficlone(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(to, from)?)
}

#[test]
fn a_volume_in_use_is_cloned_by_whoever_has_it_open() {
    on_a_file_system(xfs, |host| async move {
        for encrypted in [false, true] {
            let (from, to) = if encrypted { ("vol_c", "vol_d") } else { ("vol_a", "vol_b") };
            let source = host.create(from, 1, Filesystem::Raw, encrypted).await.unwrap().id;
            let node = host.node(&source).await;
            node.write(7, "0", "10M");
            let vm = host.store.open_writer(&source, "a machine").await.unwrap();
            let (store, open) = (host.store.clone(), vm.as_fd().try_clone_to_owned().unwrap());
            let cloning = tokio::spawn(async move {
                let clone = async |to: OwnedFd| {
                    tokio::task::yield_now().await;
                    ficlone(&open, &to)
                };
                store.clone_open(&id(from), copy_to(to, Some(3)), clone).await
            });
            let made = cloning.await.unwrap().unwrap();
            assert_eq!((made.size, made.encrypted), (gib(3), encrypted));
            assert_eq!(host.store.usage(&made.id).unwrap().virtual_bytes, 3 << 30);
            node.write(8, "0", "1M");
            let other = host.node(&made.id).await;
            assert!(other.has(7, "0", "10M") && other.has(0, "10M", "1G"));
            assert!(host.store.check(&made.id).await.unwrap().is_sound());
            let used = host.store.open_writer(&source, "a test").await;
            assert!(matches!(used, Err(VolumeError::InUse { .. })), "it keeps its lock");
            vm.release();
        }
    });
}

#[test]
fn a_clone_that_fails_or_is_dropped_leaves_nothing() {
    on_a_file_system(xfs, |host| async move {
        let source = host.raw("vol_a", 2).await;
        let clone = async |name: &str, size: Option<u32>, what: &'static str| {
            let file = File::open(host.disk("vol_a")).unwrap().into();
            let clone = async move |to: OwnedFd| match what {
                "clone" => ficlone(&file, &to),
                "fail" => Err(io::Error::other("the VM is gone")),
                "wait" => std::future::pending().await,
                // Something else is there than a disk.
                _ => Ok(()),
            };
            host.store.clone_open(&source, copy_to(name, size), clone).await
        };
        let failed = clone("vol_b", None, "fail").await.unwrap_err();
        assert_eq!(failed.to_string(), "the VM is gone");
        assert!(matches!(failed, CloneError::Clone(_)));
        assert!(matches!(clone("vol_b", None, "nothing").await, Err(CloneError::Volume(_))));
        let smaller = clone("vol_b", Some(1), "clone").await;
        assert!(matches!(smaller, Err(CloneError::Volume(VolumeError::CannotShrink { .. }))));
        let exists = clone("vol_a", None, "clone").await;
        assert!(matches!(exists, Err(CloneError::Volume(VolumeError::Exists(_)))));
        {
            let mut waits = Box::pin(clone("vol_b", None, "wait"));
            assert!(futures::poll!(waits.as_mut()).is_pending());
            assert_eq!(host.store.space().declared, 4);
        }
        assert_eq!(host.contents(), ["volumes/vol_a"]);
        assert_eq!(host.store.space().declared, 2);
        clone("vol_b", None, "clone").await.unwrap();
    });
}

#[test]
fn where_blocks_cannot_be_shared_copies_are_made_as_before() {
    let ext4 = |path: &Path| {
        let file = path.with_extension("ext4");
        File::create(&file).unwrap().set_len(64 << 20).unwrap();
        run("mke2fs", &["-q".as_ref(), "-t".as_ref(), "ext4".as_ref(), file.as_ref()]);
        let mounted =
            Command::new("mount").args(["-o", "loop"]).args([&file, path]).output().unwrap();
        fs::remove_file(&file).unwrap();
        if !mounted.status.success() {
            assert!(!Path::new("/dev/loop-control").exists(), "ext4 can't be mounted");
            eprintln!("skipped: this host has no loop devices");
        }
        mounted.status.success()
    };
    on_a_file_system(ext4, |host| async move {
        assert!(!host.store.can_clone().unwrap());
        let source = host.raw("vol_a", 1).await;
        host.node(&source).await.write(7, "0", "4M");
        let (progress, _) = watch::channel(Progress::default());
        let copied = host.store.copy(&source, copy_to("vol_b", None), &progress).await.unwrap();
        assert!(!copied.is_clone);
        assert!(host.node(&copied.volume.id).await.has(7, "0", "4M"));
    });
}
