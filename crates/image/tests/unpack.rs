//! What images are made of ends up in the root disk as it should: seen with debugfs, never mounted.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod support;

use caddis_image::ImageError;
use support::{
    World,
    ext4::Ext4,
    image::{Image, Layer, header, zstd},
    pull,
    registry::FakeRegistry,
};
use tar::{EntryType, Header};

async fn disk_of(image: &Image) -> (World, Ext4) {
    let registry = FakeRegistry::start().await;
    registry.offer("app", "latest", image);
    let world = World::trusting(&registry.address);
    let disk = pull(&world.open(), &registry.reference("app")).await.unwrap();
    world.assert_untouched();
    world.assert_no_work_left();
    let disk = Ext4::open(&disk.path);
    (world, disk)
}

async fn disk(layers: &[Layer]) -> (World, Ext4) {
    disk_of(&Image::new(layers)).await
}

#[tokio::test]
async fn files_keep_owner_mode_time_links_and_content() {
    let mut owned = header(EntryType::Regular, "bin/su", "", 0o4755, 3);
    owned.set_uid(1000);
    owned.set_gid(70_000);
    let (_world, disk) = disk(&[Layer::new()
        .directory("bin/")
        .raw(owned, b"elf")
        .hardlink("bin/su2", "/bin/su")
        .symlink("sbin", "bin")
        .file("sbin/through-link", b"x")
        .entry(EntryType::Directory, "tmp/", "", 0o1777, b"")
        .file("no/parent/entries", b"y")
        .symlink("dangling", "../../../nowhere")])
    .await;
    assert_eq!(disk.field("/bin/su", "Mode"), "04755");
    assert_eq!(disk.field("/bin/su", "User"), "1000");
    assert_eq!(disk.field("/bin/su", "Group"), "70000");
    assert!(disk.stat("/bin/su").unwrap().contains("mtime: 0x6553f100"));
    assert_eq!(disk.read("/bin/su"), b"elf");
    assert_eq!(disk.field("/bin/su", "Inode"), disk.field("/bin/su2", "Inode"));
    assert_eq!(disk.field("/bin/su", "Links"), "2");
    assert_eq!(disk.field("/sbin", "Type"), "symlink");
    assert_eq!(disk.read("/bin/through-link"), b"x");
    assert_eq!(disk.field("/tmp", "Mode"), "01777");
    assert!(disk.stat("/tmp").unwrap().contains("mtime: 0x6553f100"));
    assert_eq!(disk.read("/no/parent/entries"), b"y");
    assert!(disk.stat("/dangling").unwrap().contains("../../../nowhere"));
}

#[tokio::test]
async fn attributes_devices_long_names_and_holes_survive() {
    let mut null = header(EntryType::Char, "null", "", 0o666, 0);
    null.set_device_major(1).unwrap();
    null.set_device_minor(3).unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let long_gnu = format!("{}/{}", "g".repeat(120), "h".repeat(240));

    // Old GNU: 5 bytes at 1 MiB, 3 at the end of 2 MiB.
    let mut sparse = header(EntryType::GNUSparse, "holes-gnu", "", 0o644, 8);
    let gnu = sparse.as_gnu_mut().unwrap();
    gnu.set_real_size(2 << 20);
    gnu.sparse[0].set_offset(1 << 20);
    gnu.sparse[0].set_length(5);
    gnu.sparse[1].set_offset((2 << 20) - 3);
    gnu.sparse[1].set_length(3);
    // pax 1.0: the map is at the start of the data.
    let mut mapped = b"1\n1048576\n5\n".to_vec();
    mapped.resize(512, 0);
    mapped.extend_from_slice(b"hello");

    let (_world, disk) = disk(&[Layer::new()
        .raw(null, b"")
        .entry(EntryType::Fifo, "pipe", "", 0o600, b"")
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.note", b"a\nb=c"),
        ])
        .file("ping", b"x")
        .pax(&[("path", long.as_bytes()), ("mtime", b"1700000000.5")])
        .file("short", b"long")
        .entry(EntryType::GNULongName, "././@LongLink", "", 0, format!("{long_gnu}\0").as_bytes())
        .file("short", b"long too")
        .raw(sparse, b"helloend")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"holes-pax"),
            ("GNU.sparse.realsize", b"3145728"),
        ])
        .file("GNUSparseFile.0/holes-pax", &mapped)
        .pax(&[
            ("GNU.sparse.map", b"4096,2"),
            ("GNU.sparse.size", b"8192"),
            ("GNU.sparse.name", b"holes-pax-0.1"),
        ])
        .file("GNUSparseFile.0/holes", b"hi")
        .file("after", b"still in step")])
    .await;
    assert!(disk.stat("/null").unwrap().contains("character special"));
    assert!(disk.stat("/null").unwrap().contains("Device major/minor number: 01:03"));
    assert_eq!(disk.field("/pipe", "Type"), "FIFO");
    assert_eq!(disk.attribute("/ping", "security.capability"), capability);
    assert_eq!(disk.attribute("/ping", "user.note"), b"a\nb=c");
    assert_eq!(disk.read(&format!("/{long}")), b"long");
    assert_eq!(disk.read(&format!("/{long_gnu}")), b"long too");
    let old = disk.read("/holes-gnu");
    assert_eq!(old.len(), 2 << 20);
    assert_eq!((&old[1 << 20..(1 << 20) + 5], &old[(2 << 20) - 3..]), (&b"hello"[..], &b"end"[..]));
    assert!(old[..1 << 20].iter().all(|byte| *byte == 0));
    let pax = disk.read("/holes-pax");
    assert_eq!((pax.len(), &pax[1 << 20..(1 << 20) + 5]), (3 << 20, &b"hello"[..]));
    let pax = disk.read("/holes-pax-0.1");
    assert_eq!((pax.len(), &pax[4096..4098]), (8192, &b"hi"[..]));
    assert_eq!(disk.read("/after"), b"still in step");
}

#[tokio::test]
async fn whiteouts_hide_lower_layers_and_nothing_else() {
    let (_world, disk) = disk(&[
        Layer::new()
            .file("etc/keep", b"1")
            .file("etc/gone", b"1")
            .file("opaque/old", b"1")
            .file("opaque/sub/old", b"1")
            .file("whole/tree/file", b"1")
            .file("becomes-directory", b"1")
            .directory("becomes-file/")
            .file("becomes-file/inner", b"1")
            .symlink("link", "etc"),
        Layer::new()
            .file("etc/.wh.gone", b"")
            .file("etc/.wh.never-was", b"")
            .file("etc/again", b"2")
            .file("opaque/new", b"2")
            .file("opaque/sub/new", b"2")
            // Whatever comes first in the archive: it applies to lower layers only.
            .file("opaque/.wh..wh..opq", b"")
            .file(".wh.whole", b"")
            .file("etc/.wh.again", b"")
            .directory("becomes-directory/")
            .file("becomes-file", b"2")
            .file("link/through", b"2")
            .file("etc/.wh..wh.plnk", b""),
    ])
    .await;
    for (path, there) in [
        ("/etc/keep", true),
        ("/etc/gone", false),
        ("/etc/again", true),
        ("/etc/through", true),
        ("/opaque/old", false),
        ("/opaque/new", true),
        ("/opaque/sub/old", false),
        ("/opaque/sub/new", true),
        ("/whole", false),
        ("/etc/.wh.gone", false),
        ("/opaque/.wh..wh..opq", false),
        ("/etc/.wh..wh.plnk", false),
    ] {
        assert_eq!(disk.exists(path), there, "{path}");
    }
    assert_eq!(disk.field("/becomes-directory", "Type"), "directory");
    assert_eq!(disk.read("/becomes-file"), b"2");
}

#[tokio::test]
async fn whiteouts_below_what_is_no_directory_hide_nothing() {
    let (_world, disk) = disk(&[
        Layer::new().file("file", b"1").file("tree/kept", b"1").symlink("dangling", "nowhere"),
        Layer::new()
            .file("file/.wh.gone", b"")
            .file("file/deeper/.wh.gone", b"")
            .file("file/.wh..wh..opq", b"")
            .file("dangling/.wh.gone", b"")
            .file("tree/kept/.wh.gone", b"")
            .file("never/was/.wh.gone", b"")
            // As when a directory takes the place of a file, whichever comes first.
            .file("tree/kept/.wh..wh..opq", b"")
            .directory("tree/kept/")
            .file("tree/kept/new", b"2"),
    ])
    .await;
    assert_eq!(disk.read("/file"), b"1");
    assert_eq!(disk.read("/tree/kept/new"), b"2");
    assert!(!disk.exists("/never"));
}

#[tokio::test]
async fn an_upper_file_replaces_the_lower_one_without_touching_its_hard_links() {
    let (_world, disk) =
        disk(&[Layer::new().file("a", b"old").hardlink("b", "a"), Layer::new().file("a", b"new")])
            .await;
    assert_eq!((disk.read("/a"), disk.read("/b")), (b"new".to_vec(), b"old".to_vec()));
}

/// Changes the raw bytes of a header.
fn changed(mut header: Header, at: usize, bytes: &[u8]) -> Header {
    header.as_mut_bytes()[at..at + bytes.len()].copy_from_slice(bytes);
    header
}

#[tokio::test]
async fn headers_of_old_and_odd_writers_are_read() {
    let plain = |name: &str| header(EntryType::Regular, name, "", 0o644, 1);
    // Signed, as some took bytes for.
    let mut signed = plain("caf\u{e9}");
    signed.set_cksum();
    let sum = signed.cksum().unwrap() - 2 * 256;
    let signed = changed(signed, 148, format!("{sum:06o}\0 ").as_bytes());
    let mut layer = Layer::new();
    layer.bytes.extend_from_slice(signed.as_bytes());
    layer.bytes.extend_from_slice(&[b'x'; 512]);
    let layer = layer
        .raw(changed(changed(plain("blank"), 108, &[b' '; 8]), 116, &[0; 8]), b"x")
        .raw(changed(plain("padded"), 100, b"   600 \0"), b"x")
        .raw(changed(plain("no-nul"), 124, b"000000000001"), b"x")
        .raw(
            changed(
                changed(header(EntryType::Directory, "empty-size/", "", 0o755, 0), 124, &[0; 12]),
                136,
                &[0; 12],
            ),
            b"",
        )
        .raw(
            changed(
                header(EntryType::Symlink, "size-of-link", "padded", 0o777, 0),
                124,
                &[b' '; 12],
            ),
            b"",
        )
        .raw(changed(header(EntryType::Char, "null", "", 0o666, 0), 329, &[b' '; 16]), b"")
        .pax(&[
            ("path", b""),
            ("uid", b""),
            ("size", b""),
            ("linkpath", b""),
            ("SCHILY.xattr.user.a", b""),
        ])
        .file("as-in-the-header", b"x")
        .pax(&[
            ("uid", b"12"),
            ("uid", b""),
            ("gid", b"34"),
            ("SCHILY.xattr.user.b", b"1"),
            ("SCHILY.xattr.user.b", b"2"),
        ])
        .file("taken-back", b"x")
        .file("a/../kept/./in//side", b"x")
        .file("/../above", b"x")
        .hardlink("a/b/../linked", "kept/../kept/inside/../in/side")
        .directory("kept/sub/../");
    let (_world, disk) = disk(&[layer]).await;
    for (path, field, value) in [
        ("/caf\u{e9}", "Size", "1"),
        ("/blank", "User", "0"),
        ("/blank", "Group", "0"),
        ("/padded", "Mode", "0600"),
        ("/no-nul", "Size", "1"),
        ("/empty-size", "Type", "directory"),
        ("/size-of-link", "Type", "symlink"),
        ("/null", "Type", "character"),
        ("/as-in-the-header", "User", "0"),
        ("/as-in-the-header", "Size", "1"),
        ("/taken-back", "User", "0"),
        ("/taken-back", "Group", "34"),
        ("/kept/in/side", "Links", "2"),
        ("/a/linked", "Links", "2"),
        ("/above", "Size", "1"),
        ("/kept", "Type", "directory"),
    ] {
        assert_eq!(disk.field(path, field), value, "{path}");
    }
    assert_eq!(disk.attribute("/taken-back", "user.b"), b"2");
    assert_eq!(disk.attribute("/as-in-the-header", "user.a"), b"");
}

#[tokio::test]
async fn zstd_and_plain_layers_work_too() {
    let layer = Layer::new().file("z", &[7; 300_000]);
    // Frames without data before, between and after, as zstd:chunked and pzstd have them.
    let skippable = |number: u8, data: &[u8]| {
        [
            &[0x50 + number, 0x2a, 0x4d, 0x18][..],
            &u32::try_from(data.len()).unwrap().to_le_bytes(),
            data,
        ]
        .concat()
    };
    let (tar, empty) = (layer.tar(), skippable(0, b""));
    let (first, second) = tar.split_at(100_000);
    let blob =
        [skippable(0xf, &[1; 3000]), zstd(first), empty, zstd(second), skippable(3, b"index")]
            .concat();
    let (_world, disk) = disk_of(&Image::of_blobs(&[(tar, blob)], "tar+zstd")).await;
    assert_eq!(disk.read("/z"), [7; 300_000]);
    let (_world, disk) =
        disk_of(&Image::of_blobs(&[(layer.tar(), zstd(&layer.tar()))], "tar+zstd")).await;
    assert_eq!(disk.read("/z"), [7; 300_000]);
    let (_world, disk) = disk_of(&Image::of_blobs(&[(layer.tar(), layer.tar())], "tar")).await;
    assert_eq!(disk.read("/z"), [7; 300_000]);
}

#[tokio::test]
async fn the_file_system_is_the_same_on_all_hosts() {
    let image = Image::new(&[Layer::new().file("a", b"a")]);
    let (_world, disk) = disk_of(&image).await;
    let features = disk.superblock();
    let line =
        features.lines().find(|line| line.starts_with("Filesystem features")).unwrap().to_owned();
    assert!(
        !line.contains("has_journal")
            && line.contains("metadata_csum")
            && line.contains("resize_inode"),
        "{line}"
    );
    let (_other_world, other) = disk_of(&image).await;
    let uuid = |text: &str| {
        text.lines().find(|line| line.starts_with("Filesystem UUID")).unwrap().to_owned()
    };
    assert_eq!(uuid(&features), uuid(&other.superblock()));
}

#[tokio::test]
async fn an_image_without_layers_has_what_every_machine_needs() {
    let (_world, disk) = disk(&[]).await;
    assert_eq!(disk.names("/"), [".", "..", "dev", "etc", "proc", "sys"], "and no lost+found");
    assert_eq!(disk.names("/etc"), [".", "..", "hostname", "hosts", "resolv.conf"]);
    assert_eq!(
        (disk.field("/", "Mode"), disk.field("/", "User")),
        ("0755".to_owned(), "0".to_owned())
    );
}

#[tokio::test]
async fn a_file_may_be_called_lost_and_found() {
    let (_world, disk) = disk(&[Layer::new().file("lost+found", b"a file like others")]).await;
    assert_eq!(disk.read("/lost+found"), b"a file like others");
    let (_world, disk) = disk_of(&Image::new(&[Layer::new()
        .entry(EntryType::Directory, "lost+found", "", 0o750, b"")
        .file("lost+found/kept", b"x")]))
    .await;
    assert_eq!(disk.field("/lost+found", "Mode"), "0750");
    assert_eq!(disk.read("/lost+found/kept"), b"x");
}

#[tokio::test]
async fn times_far_away_and_fractions_of_seconds_are_kept() {
    let layer = Layer::new()
        .pax(&[("mtime", b"2524608000.123456789")])
        .file("2050", b"x")
        .pax(&[("mtime", b"-157766400.75")])
        .symlink("1964", "x")
        .pax(&[("mtime", b"4102444800.5")])
        .directory("2100/")
        .pax(&[("mtime", b"99999999999.5")])
        .file("5138", b"x")
        .pax(&[("mtime", b"-99999999999.5")])
        .file("before-1901", b"x");
    let mut octal = header(EntryType::Regular, "2106", "", 0o644, 1);
    octal.set_mtime(1 << 32);
    let (_world, disk) = disk(&[layer.raw(octal, b"x")]).await;
    let time = |path| disk.field(path, " mtime");
    let encoded = |seconds: i64, nanoseconds: i64| {
        let epoch = ((seconds - i64::from(seconds as i32)) >> 32) & 3;
        format!("{:#010x}:{:08x}", seconds as u32, nanoseconds << 2 | epoch)
    };
    assert_eq!(time("/2050"), encoded(2_524_608_000, 123_456_789));
    assert_eq!(time("/1964"), encoded(-157_766_401, 250_000_000));
    assert_eq!(time("/2100"), encoded(4_102_444_800, 500_000_000));
    assert_eq!(time("/2106"), encoded(1 << 32, 0));
    // The nearest that ext4 has.
    assert_eq!(time("/5138"), encoded((1 << 34) - (1 << 31) - 1, 0));
    assert_eq!(time("/before-1901"), encoded(-(1 << 31), 0));
}

#[tokio::test]
async fn very_many_files_in_one_directory_are_no_trouble() {
    let layer =
        (0..30_000).fold(Layer::new(), |layer, number| layer.file(&format!("many/{number}"), b""));
    let (_world, disk) = disk(&[layer]).await;
    assert_eq!(disk.field("/many", "Flags"), "0x81000", "it has an index");
    assert!(disk.exists("/many/0") && disk.exists("/many/29999") && !disk.exists("/many/30000"));
}

#[tokio::test]
async fn the_same_image_gives_the_same_disk() {
    let image = Image::new(&[Layer::new()
        .entry(EntryType::Directory, "./", "", 0o755, b"")
        .directory("etc/")
        .file("etc/a", b"a")
        .file("b", &[7; 10_000])
        .symlink("link", "b")]);
    let mut disks = Vec::new();
    for _ in 0..2 {
        let registry = FakeRegistry::start().await;
        registry.offer("app", "latest", &image);
        let mut world = World::trusting(&registry.address);
        world.config.root_disk_size = 64 << 20;
        let disk = pull(&world.open(), &registry.reference("app")).await.unwrap();
        disks.push(std::fs::read(&disk.path).unwrap());
    }
    assert!(disks[0] == disks[1]);
}

#[tokio::test]
async fn an_image_too_large_for_its_disk_says_so() {
    let registry = FakeRegistry::start().await;
    registry.offer("app", "latest", &Image::new(&[Layer::new().file("big", &vec![1; 40 << 20])]));
    let mut world = World::trusting(&registry.address);
    world.config.root_disk_size = 32 << 20;
    let store = world.open();
    let error = pull(&store, &registry.reference("app")).await.unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
    assert!(error.to_string().contains("root_disk_size"), "{error}");
    world.assert_nothing_came_of_it(&store).await;
    // Too small even for the table of its inodes.
    drop(store);
    world.config.root_disk_size = 8 << 20;
    let error = pull(&world.open(), &registry.reference("app")).await.unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
}
