//! Volumes that are restored from a backing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod support;

use std::{fs, sync::atomic::Ordering};

use caddis_volume::{Progress, VolumeError, VolumeId};
use tokio::sync::watch;

use crate::support::{Backing, Host, at, copy_to, gib, id};

const MIB: u64 = 1 << 20;

fn backing() -> Backing {
    Backing::new(vec![(0, MIB, 1), (100 * MIB, 30 * MIB, 2), (1023 * MIB, MIB, 3)], 1 << 30)
}

async fn has_all(host: &Host, volume: &VolumeId) -> bool {
    let node = host.node(volume).await;
    node.has(1, "0", "1M")
        && node.has(0, "1M", "99M")
        && node.has(2, "100M", "30M")
        && node.has(0, "130M", "893M")
        && node.has(3, "1023M", "1M")
}

#[tokio::test]
async fn a_restored_volume_has_what_its_backing_has_and_needs_it_no_more() {
    let host = Host::new();
    for encrypted in [false, true] {
        let name = if encrypted { "vol_b" } else { "vol_a" };
        let volume = host.restoring(name, 2, encrypted).await;
        let made = host.store.get(&volume).unwrap();
        assert_eq!((made.restoring, made.encrypted, made.generation), (true, encrypted, 1));
        let backing = backing();
        let (progress, _) = watch::channel(Progress::default());
        host.store.hydrate(&volume, &backing.socket(), &progress).await.unwrap();
        assert_eq!(*progress.borrow(), Progress { done: 2 << 30, total: 2 << 30 });
        drop(backing);
        assert!(host.store.get(&volume).unwrap().restoring, "until that is noted");
        host.store.mark_whole(&volume).unwrap();
        assert!(!host.store.get(&volume).unwrap().restoring);
        assert!(has_all(&host, &volume).await);
        assert!(host.node(&volume).await.has(0, "1G", "1G"), "what is beyond its backing");
        assert!(host.store.check(&volume).await.unwrap().is_sound());
        let allocated = host.store.usage(&volume).unwrap().allocated_bytes;
        assert!(allocated < 40 * MIB, "what is zero takes no room: {allocated}");
    }
    assert_eq!(host.contents(), ["volumes/vol_a", "volumes/vol_b"]);
}

#[tokio::test]
async fn a_volume_that_is_not_whole_is_told_and_not_taken_for_one() {
    let host = Host::new();
    let volume = host.restoring("vol_a", 1, false).await;
    let host = host.reopen();
    assert!(host.store.get(&volume).unwrap().restoring);
    let record = fs::read_to_string(host.place("vol_a").join("volume.json")).unwrap();
    assert!(record.contains("\"version\": 2"), "older servers refuse it: {record}");
    let (progress, _) = watch::channel(Progress::default());
    let expected = "volume vol_a is still being restored: wait until that is done";
    let said = |error: VolumeError| assert_eq!(error.to_string(), expected);
    said(host.store.export(&volume).await.unwrap_err());
    said(host.store.copy(&volume, copy_to("vol_b", None), &progress).await.unwrap_err());
    let clone = host.store.clone_open(&volume, copy_to("vol_b", None), async |_| Ok::<_, ()>(()));
    assert!(matches!(clone.await, Err(caddis_volume::CloneError::Volume(error))
        if error.to_string() == expected));

    host.store.open_writer(&volume, "a test").await.unwrap().release();
    let _ = host.store.grow(&volume, gib(2)).await.unwrap();
    assert!(host.store.get(&volume).unwrap().restoring, "also when it was opened and has grown");
    host.store.mark_whole(&volume).unwrap();
    host.store.mark_whole(&volume).unwrap();
    let record = fs::read_to_string(host.place("vol_a").join("volume.json")).unwrap();
    assert!(record.contains("\"version\": 1") && !record.contains("restoring"), "{record}");
    drop(host.store.export(&volume).await.unwrap());
    let nowhere = host.directory.path().join("nbd");
    host.store.hydrate(&volume, &nowhere, &progress).await.unwrap();
    let unknown = host.store.mark_whole(&id("vol_z"));
    assert!(matches!(unknown, Err(VolumeError::NotFound(_))));
}

#[tokio::test]
async fn what_was_written_meanwhile_stays() {
    let host = Host::new();
    let volume = host.restoring("vol_a", 1, false).await;
    let node = host.node(&volume).await;
    node.write(9, "110M", "64k");
    node.write(0, "115M", "4k");
    let (backing, (progress, _)) = (backing(), watch::channel(Progress::default()));
    host.store.hydrate(&volume, &backing.socket(), &progress).await.unwrap();
    for (byte, offset, length) in
        [(2, "100M", "10M"), (9, "110M", "64k"), (2, "112M", "3M"), (0, "115M", "4k")]
    {
        assert!(node.has(byte, offset, length), "{offset}");
    }
}

#[tokio::test]
async fn a_restore_that_is_dropped_frees_the_volume_and_keeps_what_was_copied() {
    let host = Host::new();
    let volume = host.restoring("vol_a", 1, true).await;
    let backing = backing();
    let (socket, (progress, _)) = (backing.socket(), watch::channel(Progress::default()));
    backing.served.away_from.store(120 * MIB, Ordering::SeqCst);
    let mut hydration = Box::pin(host.store.hydrate(&volume, &socket, &progress));
    tokio::select! {
        hydrated = &mut hydration => panic!("{hydrated:?}"),
        () = backing.served.wanted.notified() => {}
    }
    let other = host.store.open_writer(&volume, "a test").await.unwrap_err();
    let expected = "volume vol_a is in use by its restore: stop that first";
    assert_eq!(other.to_string(), expected);
    drop(hydration);
    // It waits for the daemon, which has QEMU's lock until it is gone.
    let node = host.node(&volume).await;
    assert!(node.has(2, "100M", "10M"), "it has what came first");
    assert!(host.store.check(&volume).await.unwrap().is_sound());
    backing.served.away_from.store(u64::MAX, Ordering::SeqCst);
    let before = backing.served.read.load(Ordering::SeqCst);
    host.store.hydrate(&volume, &backing.socket(), &progress).await.unwrap();
    let read = backing.served.read.load(Ordering::SeqCst) - before;
    assert!(read < 24 * MIB, "what was copied is not read again: {read}");
    host.store.mark_whole(&volume).unwrap();
    assert!(has_all(&host, &volume).await);
}

#[tokio::test]
async fn a_backing_that_is_damaged_or_not_there_is_told_and_it_goes_on_later() {
    let host = Host::new();
    let volume = host.restoring("vol_a", 1, false).await;
    let (progress, _) = watch::channel(Progress::default());
    let nowhere = host.directory.path().join("nbd");
    let error = host.store.hydrate(&volume, &nowhere, &progress).await.unwrap_err();
    assert!(matches!(&error, VolumeError::Backing { .. }), "{error}");
    assert!(error.to_string().contains("No such file"), "{error}");
    // Something that is no NBD server.
    let odd = tokio::net::UnixListener::bind(&nowhere).unwrap();
    let hang_up = async { drop(odd.accept().await.unwrap()) };
    let (hydrated, ()) = tokio::join!(host.store.hydrate(&volume, &nowhere, &progress), hang_up);
    let error = hydrated.unwrap_err();
    assert!(matches!(&error, VolumeError::Backing { .. }), "{error}");

    let backing = backing();
    backing.served.damaged_from.store(110 * MIB, Ordering::SeqCst);
    let error = host.store.hydrate(&volume, &backing.socket(), &progress).await.unwrap_err();
    assert!(matches!(&error, VolumeError::Backing { .. }), "{error}");
    let expected = "could not fetch the contents of volume vol_a: Input/output error";
    assert_eq!(error.to_string(), expected);
    assert!(host.store.get(&volume).unwrap().restoring);
    assert!(host.node(&volume).await.has(2, "100M", "9M"));

    backing.served.damaged_from.store(u64::MAX, Ordering::SeqCst);
    host.store.hydrate(&volume, &backing.socket(), &progress).await.unwrap();
    assert!(has_all(&host, &volume).await);
}

/// The process that has a file of the host open.
fn daemon(host: &Host) -> u32 {
    let marker = host.config.directory.join("programs");
    let is_daemon = |pid: &u32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        // Cut to 15 characters.
        let open = fs::read_link(format!("/proc/{pid}/fd/500"));
        comm.trim() == "qemu-storage-da" && open.is_ok_and(|path| path == marker)
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(is_daemon).expect("no daemon has it open")
}

#[tokio::test]
async fn a_daemon_that_is_killed_is_told_and_nothing_is_lost() {
    let host = Host::new();
    let volume = host.restoring("vol_a", 1, false).await;
    let backing = backing();
    let (socket, (progress, _)) = (backing.socket(), watch::channel(Progress::default()));
    backing.served.away_from.store(120 * MIB, Ordering::SeqCst);
    let killed = async {
        backing.served.wanted.notified().await;
        let pid = i32::try_from(daemon(&host)).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    };
    let (hydrated, ()) = tokio::join!(host.store.hydrate(&volume, &socket, &progress), killed);
    let error = hydrated.unwrap_err();
    let expected = "qemu-storage-daemon failed to restore volume vol_a: it was killed";
    assert_eq!(error.to_string(), expected);
    assert!(host.store.check(&volume).await.unwrap().is_sound());
    backing.served.away_from.store(u64::MAX, Ordering::SeqCst);
    host.store.hydrate(&volume, &backing.socket(), &progress).await.unwrap();
    assert!(has_all(&host, &volume).await);
    assert!(host.store.check(&volume).await.unwrap().is_sound());
}

#[tokio::test]
async fn a_restore_of_what_cannot_be_is_refused() {
    let host = Host::new();
    let volume = host.restoring("vol_a", 1, false).await;
    let (backing, (progress, _)) = (backing(), watch::channel(Progress::default()));
    let writer = host.store.open_writer(&volume, "a machine").await.unwrap();
    let used = host.store.hydrate(&volume, &backing.socket(), &progress).await.unwrap_err();
    assert!(used.to_string().contains("in use by a machine"), "{used}");
    writer.release();
    host.store.delete(&volume, at(0)).unwrap();
    let deleted = host.store.hydrate(&volume, &backing.socket(), &progress).await;
    assert!(matches!(deleted, Err(VolumeError::Deleted(_))));
    assert!(host.store.undelete(&volume).unwrap().restoring);

    let host = host.reopen_with(|config| config.storage_daemon = "no-such-program".into());
    let missing = host.store.hydrate(&volume, &backing.socket(), &progress).await.unwrap_err();
    let expected = "no-such-program failed to restore volume vol_a: it is not installed: apt-get \
                    install qemu-system-common";
    assert_eq!(missing.to_string(), expected);
}
