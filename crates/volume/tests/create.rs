//! What a new volume is like, looked at with the real tools.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod support;

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use caddis_volume::{Check, Filesystem, VolumeError};

use crate::support::{Host, gib, id, run};

/// What e2fsck and others have to say of an ext4 in a file.
fn expect_sound_ext4(raw: &Path) -> String {
    run("/usr/sbin/e2fsck", &["-fn".as_ref(), raw.as_ref()]);
    run("/usr/sbin/dumpe2fs", &[raw.as_ref()])
}

#[tokio::test]
async fn a_new_volume_has_a_sound_small_ext4_that_needs_no_zeroing_and_has_room_to_grow() {
    let host = Host::new();
    for (name, size) in [("vol_1", 1), ("vol_10", 10), ("vol_500", 500)] {
        let made = host.create(name, size, Filesystem::Ext4, false).await.unwrap();
        assert_eq!((made.size, made.generation, made.encrypted), (gib(size), 1, false));
        let usage = host.store.usage(&made.id).unwrap();
        assert_eq!(usage.virtual_bytes, u64::from(size) << 30);
        assert!(usage.allocated_bytes < 32 << 20, "{usage:?}");
        let check = host.store.check(&made.id).await.unwrap();
        assert_eq!(check, Check { corruptions: 0, leaks: 0, check_errors: 0 });

        let raw = host.directory.path().join("raw");
        host.node(&made.id).await.to_raw(&raw);
        assert_eq!(fs::metadata(&raw).unwrap().len(), u64::from(size) << 30);
        let said = expect_sound_ext4(&raw);
        let value = |field: &str| {
            let line = said.lines().find(|line| line.starts_with(field));
            line.unwrap_or_else(|| panic!("{field}")).split_once(':').unwrap().1.trim().to_owned()
        };
        assert_eq!(value("Filesystem volume name"), "volume");
        assert_eq!(value("Reserved block count"), "0");
        assert_eq!(value("Block count"), ((u64::from(size) << 30) / 4096).to_string());
        // Descriptors of 64 bytes for groups of 128 MiB: those of 1 TiB are 128 blocks.
        let needed = 128 - (size * 8).div_ceil(64);
        assert!(value("Reserved GDT blocks").parse::<u32>().unwrap() >= needed);
        for feature in ["has_journal", "metadata_csum", "resize_inode", "64bit", "extent"] {
            let features = value("Filesystem features");
            assert!(features.split(' ').any(|found| found == feature), "{features}");
        }
        let groups = said.lines().filter(|line| line.starts_with("Group ")).count();
        // The last one is the rest, with the tables of its own.
        let zeroed = said.matches("ITABLE_ZEROED").count();
        assert!(zeroed + 1 >= groups, "{zeroed} of {groups}");
        let root = run("/usr/sbin/debugfs", &["-R".as_ref(), "stat /".as_ref(), raw.as_ref()]);
        assert!(root.contains("User:     0   Group:     0"), "{root}");
        fs::remove_file(&raw).unwrap();
    }
}

#[tokio::test]
async fn a_raw_volume_is_zeroes() {
    let host = Host::new();
    let volume = host.raw("vol_a", 1).await;
    assert!(host.node(&volume).await.has(0, "0", "1G"));
    assert!(host.store.usage(&volume).unwrap().allocated_bytes < 1 << 20);
}

#[tokio::test]
async fn nothing_is_beside_a_volume_but_its_record_and_nobody_else_may_read_them() {
    let host = Host::new();
    host.create("vol_a", 1, Filesystem::Ext4, false).await.unwrap();
    assert_eq!(host.contents(), ["volumes/vol_a"]);
    assert_eq!(
        host.names("volumes/vol_a"),
        ["volumes/vol_a/disk.qcow2", "volumes/vol_a/volume.json"]
    );
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&host.config.directory), 0o700);
    assert_eq!(mode(&host.place("vol_a")), 0o700);
    assert_eq!(mode(&host.disk("vol_a")), 0o600);
    assert_eq!(mode(&host.place("vol_a").join("volume.json")), 0o600);
}

/// The iterations of a LUKS header within a qcow2: of the key slot, and of the digest.
fn iterations(disk: &Path) -> (u32, u32) {
    let file = File::open(disk).unwrap();
    let read = |offset: u64, bytes: &mut [u8]| file.read_exact_at(bytes, offset).unwrap();
    let number = |offset| {
        let mut bytes = [0; 4];
        read(offset, &mut bytes);
        u32::from_be_bytes(bytes)
    };
    // Header extensions follow the header, whose length is at 100; this one says where LUKS is.
    let mut extension = u64::from(number(100));
    while number(extension) != 0x0537_be77 {
        assert_ne!(number(extension), 0, "there is no such extension");
        extension += 8 + u64::from(number(extension + 4)).next_multiple_of(8);
    }
    let mut luks = [0; 8];
    read(extension + 8, &mut luks);
    let luks = u64::from_be_bytes(luks);
    let mut magic = [0; 8];
    read(luks, &mut magic);
    assert_eq!(&magic, b"LUKS\xba\xbe\0\x01");
    assert_eq!(number(luks + 208), 0x00ac_71f3, "the first slot is in use");
    (number(luks + 212), number(luks + 164))
}

/// A `qemu-img` that notes what it is called with.
fn noting(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("qemu-img");
    let notes = directory.join("notes");
    let script = format!(
        "#!/bin/sh\n{{ printf '%s ' \"$0\" \"$@\"; env; }} >>{}\nexec qemu-img \"$@\"\n",
        notes.display()
    );
    // Written by another process: who forks while we have it open for writing would keep it busy.
    fs::write(directory.join("script"), script).unwrap();
    run("install", &["-m755".as_ref(), directory.join("script").as_ref(), path.as_ref()]);
    path
}

#[tokio::test]
async fn an_encrypted_volume_is_luks_that_opens_at_once_and_shows_its_key_to_nobody() {
    let tools = tempfile::tempdir().unwrap();
    let host = Host::with(|config| config.qemu_img = noting(tools.path()));
    let made = host.create("vol_a", 1, Filesystem::Ext4, true).await.unwrap();
    assert!(made.encrypted);
    let usage = host.store.usage(&made.id).unwrap();
    assert!(usage.allocated_bytes < 8 << 20, "{usage:?}");

    // A millisecond's worth, where the default is two seconds'; 1 000 is QEMU's least.
    let (slot, digest) = iterations(&host.disk("vol_a"));
    assert!((1000..20_000).contains(&slot), "{slot}");
    assert!((1000..20_000).contains(&digest), "{digest}");

    let node = host.node(&made.id).await;
    let raw = host.directory.path().join("raw");
    node.to_raw(&raw);
    expect_sound_ext4(&raw);
    node.write(0x5a, "512M", "64k");
    let file = fs::read(host.disk("vol_a")).unwrap();
    assert!(!file.windows(64).any(|bytes| bytes == [0x5a; 64]), "it is in the file");
    assert!(!file.windows(10).any(|bytes| bytes == b"lost+found"), "names are in the file");
    assert!(fs::read(&raw).unwrap().windows(10).any(|bytes| bytes == b"lost+found"));

    let writer = host.store.open_writer(&made.id, "a test").await.unwrap();
    let passphrase = writer.key().unwrap().passphrase();
    writer.release();
    host.store.check(&made.id).await.unwrap();
    let notes = fs::read_to_string(tools.path().join("notes")).unwrap();
    assert!(notes.contains("convert") && notes.contains("check"), "{notes}");
    assert!(!notes.contains(passphrase.as_str()));
    let record = fs::read_to_string(host.place("vol_a").join("volume.json")).unwrap();
    assert!(!record.contains(passphrase.as_str()));

    let other = host.create("vol_b", 1, Filesystem::Raw, true).await.unwrap();
    let other = host.node(&other.id).await;
    let wrong = support::Node { secret: other.secret, json: node.json };
    let output = wrong.io(&["read 0 512"]);
    let said = format!("{output:?}");
    assert!(said.contains("Invalid password"), "{said}");
}

#[tokio::test]
async fn an_id_that_is_taken_is_refused() {
    let host = Host::new();
    let volume = host.raw("vol_a", 1).await;
    let inode = fs::metadata(host.disk("vol_a")).unwrap().ino();
    let again = host.create("vol_a", 1, Filesystem::Raw, false).await;
    assert!(matches!(again, Err(VolumeError::Exists(_))));
    host.store.delete(&volume, support::at(1)).unwrap();
    let again = host.create("vol_a", 1, Filesystem::Raw, false).await;
    assert!(matches!(again, Err(VolumeError::Exists(_))), "also that of a deleted one");
    assert_eq!(fs::metadata(host.trash("vol_a").join("disk.qcow2")).unwrap().ino(), inode);
}

#[tokio::test]
async fn of_two_creations_of_one_id_one_succeeds() {
    let host = Host::new();
    let (one, other) = tokio::join!(
        host.create("vol_a", 1, Filesystem::Ext4, false),
        host.create("vol_a", 2, Filesystem::Ext4, false)
    );
    assert!(one.is_ok());
    assert!(matches!(other, Err(VolumeError::Exists(taken)) if taken == id("vol_a")));
    assert_eq!(host.contents(), ["volumes/vol_a"]);
}

#[tokio::test]
async fn a_program_that_is_missing_or_fails_is_named_and_leaves_nothing() {
    let host = Host::with(|config| config.qemu_img = "/nonexistent/qemu-img".into());
    let error = host.create("vol_a", 1, Filesystem::Ext4, false).await.unwrap_err().to_string();
    assert!(error.contains("apt-get install qemu-utils"), "{error}");
    assert_eq!(host.contents(), [""; 0]);
    assert_eq!(host.store.space().declared, 0);

    let host = Host::with(|config| config.mke2fs = "/bin/false".into());
    let error = host.create("vol_a", 1, Filesystem::Ext4, false).await.unwrap_err().to_string();
    let expected = "false failed to make the file system of a volume: \
        it ended with exit code 1 and said nothing";
    assert_eq!(error, expected);
    assert_eq!((host.contents().len(), host.store.space().declared), (0, 0));
}

#[tokio::test]
async fn a_creation_that_is_dropped_leaves_nothing() {
    let tools = tempfile::tempdir().unwrap();
    let started = tools.path().join("started");
    run("mkfifo", &[started.as_ref()]);
    let script = tools.path().join("script");
    fs::write(&script, format!("#!/bin/sh\necho $$ >{}\nexec sleep 1000\n", started.display()))
        .unwrap();
    let program = tools.path().join("mke2fs");
    run("install", &["-m755".as_ref(), script.as_ref(), program.as_ref()]);
    let host = Host::with(|config| config.mke2fs = program);
    // Reading ends once the program has told its number.
    let started = tokio::task::spawn_blocking(move || fs::read_to_string(started));
    let pid = tokio::select! {
        created = host.create("vol_a", 1, Filesystem::Ext4, false) => panic!("{created:?}"),
        pid = started => pid.unwrap().unwrap(),
    };
    assert_eq!((host.contents().len(), host.store.space().declared), (0, 0));
    let process = format!("/proc/{}", pid.trim());
    while fs::read_link(format!("{process}/exe")).is_ok() {
        tokio::task::yield_now().await;
    }
}
