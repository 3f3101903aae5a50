//! Every kind of file, and all that belongs to it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod support;

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink},
    time::{Duration, SystemTime},
};

use caddis_ext4::Error;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, makedev, mknodat, utimensat};
use support::{MIB, World, run};

fn set_time(path: &std::path::Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[test]
fn an_empty_tree_gives_an_empty_root() {
    let world = World::new();
    xattr::set(world.tree(), "user.note", b"root").unwrap();
    fs::set_permissions(world.tree(), fs::Permissions::from_mode(0o700)).unwrap();
    set_time(&world.tree(), 1_000_000_000, 5);
    world.build();
    world.compare();
    assert_eq!(world.field("/", "Links"), "2");
    assert_eq!(world.field("/", "Mode"), "0755", "as mke2fs made it");
    assert_eq!(world.attribute("/", "user.note"), b"root");
    assert_eq!(world.field("/", " mtime"), "0x3b9aca00:00000014");
    assert!(!world.debugfs(&["ls -l /"]).contains("lost+found"));
    let image = world.image().to_str().unwrap().to_owned();
    let copy =
        run("dumpe2fs", &["-h", "-o", "superblock=32768", "-o", "blocksize=4096", &image]).stdout;
    let copy = String::from_utf8_lossy(&copy).into_owned();
    let own = world.debugfs(&["show_super_stats -h"]);
    for field in ["Free blocks:", "Free inodes:"] {
        let line =
            |text: &str| text.lines().find(|line| line.starts_with(field)).unwrap().to_owned();
        assert_eq!(line(&own), line(&copy), "the copy of the superblock");
    }
}

#[test]
fn all_kinds_of_files_are_there_with_owner_and_permissions() {
    let world = World::new();
    let tree = world.tree();
    for (name, mode) in [("plain", 0o644), ("setuid", 0o4755), ("none", 0), ("all", 0o7777)] {
        fs::write(tree.join(name), name).unwrap();
        chown(tree.join(name), Some(70_000), Some(4_000_000_000)).unwrap();
        fs::set_permissions(tree.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(tree.join("empty"), "").unwrap();
    fs::write(tree.join("lost+found"), "a name like others").unwrap();
    fs::create_dir_all(tree.join("a/b/c")).unwrap();
    fs::set_permissions(tree.join("a/b"), fs::Permissions::from_mode(0o3770)).unwrap();
    for length in [1, 59, 60, 61, 4095] {
        symlink("x".repeat(length), tree.join(format!("link{length}"))).unwrap();
        lchown(tree.join(format!("link{length}")), Some(7), Some(8)).unwrap();
    }
    symlink("/etc/passwd", tree.join("absolute")).unwrap();
    let make = |name: &str, kind, device| {
        mknodat(CWD, tree.join(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    };
    make("null", FileType::CharacterDevice, makedev(1, 3));
    make("disk", FileType::BlockDevice, makedev(259, 70_000));
    make("fifo", FileType::Fifo, 0);
    make("socket", FileType::Socket, 0);
    world.build();
    let text = world.debugfs(&["stat null", "stat disk", "stat fifo", "stat socket"]);
    for expected in [
        "Type: character special    Mode:  0640",
        "Device major/minor number: 01:03",
        "Type: block special    Mode:  0640",
        "Device major/minor number: 259:70000 (hex 103:11170)",
        "Type: FIFO    Mode:  0640",
        "Type: socket    Mode:  0640",
    ] {
        assert!(text.contains(expected), "no {expected} in {text}");
    }
    for (name, mode) in [("setuid", "04755"), ("none", "0000"), ("all", "07777"), ("a/b", "03770")]
    {
        assert_eq!(world.field(name, "Mode"), mode, "{name}");
    }
    assert_eq!(world.field("link59", "User"), "7");
    assert_eq!(world.field("link59", "Blockcount"), "0");
    assert_eq!(world.field("link60", "Blockcount"), "8");
    for special in ["null", "disk", "fifo", "socket"] {
        fs::remove_file(tree.join(special)).unwrap();
    }
    world.compare();
}

#[test]
fn times_after_2038_before_1970_and_fractions_are_kept() {
    let world = World::new();
    for (name, seconds) in [("1965", -157_766_400), ("2001", 978_307_200), ("2050", 2_524_608_000)]
    {
        let path = world.tree().join(name);
        fs::write(&path, "x").unwrap();
        symlink("x", world.tree().join(format!("{name}-link"))).unwrap();
        fs::create_dir(world.tree().join(format!("{name}-directory"))).unwrap();
        for suffix in ["", "-link", "-directory"] {
            set_time(&world.tree().join(format!("{name}{suffix}")), seconds, 123_456_789);
        }
    }
    // Only some file systems of hosts take times up to 2446.
    let far = world.tree().join("far");
    fs::write(&far, "x").unwrap();
    File::open(&far)
        .unwrap()
        .set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(15_000_000_000))
        .unwrap();
    world.build();
    for (name, word, epoch) in
        [("1965", "0xf698ad00", 0), ("2001", "0x3a4fc880", 0), ("2050", "0x967a7600", 1)]
    {
        for suffix in ["", "-link", "-directory"] {
            for field in [" mtime", " atime", " ctime", "crtime"] {
                let found = world.field(&format!("{name}{suffix}"), field);
                assert_eq!(
                    found,
                    format!("{word}:{:08x}", 123_456_789 << 2 | epoch),
                    "{name}{suffix} {field}"
                );
            }
        }
    }
    let kept = fs::metadata(&far)
        .unwrap()
        .modified()
        .unwrap()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let (low, epoch) = (kept.as_secs() as u32, (kept.as_secs() + 0x8000_0000) >> 32);
    assert_eq!(world.field("far", " mtime"), format!("{low:#010x}:{epoch:08x}"));
}

#[test]
fn files_with_several_names_are_one_file() {
    let world = World::new();
    let tree = world.tree();
    fs::create_dir_all(tree.join("z/deep")).unwrap();
    fs::write(tree.join("m"), "one").unwrap();
    symlink("target", tree.join("link")).unwrap();
    for (from, to) in [("m", "a"), ("m", "z/deep/b"), ("link", "z/link")] {
        fs::hard_link(tree.join(from), tree.join(to)).unwrap();
    }
    // A name outside the tree counts for nothing.
    fs::hard_link(tree.join("m"), tree.parent().unwrap().join("outside")).unwrap();
    world.build();
    world.compare();
    let numbers: Vec<String> =
        ["m", "a", "z/deep/b"].map(|name| world.field(name, "Inode")).to_vec();
    assert!(numbers.iter().all(|number| *number == numbers[0]), "{numbers:?}");
    assert_eq!(world.field("m", "Links"), "3");
    assert_eq!(world.field("link", "Inode"), world.field("z/link", "Inode"));
    assert_eq!(world.field("z/link", "Links"), "2");
    assert_eq!(world.field("z", "Links"), "3");
}

#[test]
fn holes_and_zeros_take_no_room_and_many_extents_are_found() {
    let world = World::new();
    let file = |name: &str| File::create(world.tree().join(name)).unwrap();
    file("hole").set_len(1 << 40).unwrap();
    file("zeros").write_all_at(&[0; 100_000], 0).unwrap();
    file("end").write_all_at(b"x", (1 << 30) - 1).unwrap();
    let middle = file("middle");
    middle.write_all_at(b"x", 5_000_001).unwrap();
    middle.set_len(9_000_000).unwrap();
    for (name, count) in [("four", 4), ("five", 5), ("tree", 2_000)] {
        let file = file(name);
        for index in 0..count {
            file.write_all_at(&[index as u8 | 1; 10], index * 8192).unwrap();
        }
    }
    let large: Vec<u8> = (0..20 * MIB).map(|at| ((at * 7) >> 9) as u8 | 1).collect();
    fs::write(world.tree().join("large"), &large).unwrap();
    world.build();
    for (name, blocks) in
        [("hole", 0), ("zeros", 0), ("end", 1), ("middle", 1), ("four", 4), ("five", 6)]
    {
        assert_eq!(world.field(name, "Blockcount"), (blocks * 8).to_string(), "{name}");
    }
    assert_eq!(world.field("tree", "Blockcount"), ((2_000 + 7) * 8).to_string());
    assert!(world.stat("large").contains("(0-5119):"), "one piece: {}", world.stat("large"));
    assert_eq!(world.field("hole", "Size"), (1_u64 << 40).to_string());
    // A terabyte would take long to compare.
    fs::remove_file(world.tree().join("hole")).unwrap();
    run("debugfs", &["-w", "-R", "rm hole", world.image().to_str().unwrap()]);
    world.compare();
}

#[test]
fn more_extents_than_a_tree_of_two_levels_has() {
    let world = World::new();
    let file = File::create(world.tree().join("file")).unwrap();
    let count = 4 * 340 * 2;
    for index in 0..count {
        file.write_all_at(b"x", index * 8192).unwrap();
    }
    world.build();
    world.compare();
    assert!(world.stat("file").contains("ETB1"), "an index of two levels");
}

#[test]
fn extended_attributes_are_in_the_inode_or_in_a_block() {
    let world = World::new();
    let tree = world.tree();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let list = [
        2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255,
        255, 255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
    ];
    for name in ["small", "large", "both", "nothing"] {
        fs::write(tree.join(name), name).unwrap();
    }
    fs::create_dir(tree.join("directory")).unwrap();
    symlink("nowhere", tree.join("link")).unwrap();
    xattr::set(tree.join("small"), "security.capability", &capability).unwrap();
    xattr::set(tree.join("large"), "user.large", &[7; 3000]).unwrap();
    xattr::set(tree.join("large"), "user.empty", b"").unwrap();
    xattr::set(tree.join("both"), "user.b", &[1; 61]).unwrap();
    xattr::set(tree.join("both"), "user.a", &[2; 62]).unwrap();
    xattr::set(tree.join("both"), "user.long name ä", &[3; 63]).unwrap();
    xattr::set(tree.join("both"), "trusted.t", &[4; 7]).unwrap();
    xattr::set(tree.join("both"), "security.capability", &capability).unwrap();
    xattr::set(tree.join("both"), "system.posix_acl_access", &list).unwrap();
    xattr::set(tree.join("directory"), "system.posix_acl_default", &list).unwrap();
    xattr::set(tree.join("link"), "trusted.link", &[5; 200]).unwrap();
    world.build();
    assert_eq!(world.attribute("small", "security.capability"), capability);
    assert_eq!(world.field("small", "File ACL"), "0");
    assert_eq!(world.attribute("large", "user.large"), [7; 3000]);
    assert_ne!(world.field("large", "File ACL"), "0");
    assert!(world.stat("large").contains("user.empty (0)"), "{}", world.stat("large"));
    for (name, value) in
        [("user.b", vec![1; 61]), ("user.a", vec![2; 62]), ("trusted.t", vec![4; 7])]
    {
        assert_eq!(world.attribute("both", name), value, "{name}");
    }
    assert!(world.stat("both").contains("(63)"), "{}", world.stat("both"));
    // Where an entry has no number, debugfs shows 0.
    let shown = list.map(|byte| if byte == 255 { 0 } else { byte });
    assert_eq!(world.attribute("both", "system.posix_acl_access"), shown);
    assert_eq!(world.attribute("directory", "system.posix_acl_default"), shown);
    assert_eq!(world.attribute("link", "trusted.link"), [5; 200]);
    assert_eq!(world.field("nothing", "File ACL"), "0");
    assert!(!world.stat("nothing").contains("Extended attributes"), "{}", world.stat("nothing"));
    world.compare();
}

#[test]
fn a_file_may_have_as_many_names_as_ext4_counts_and_no_more() {
    let world = World::in_memory();
    fs::write(world.tree().join("0"), "x").unwrap();
    for number in 1..65_000 {
        fs::hard_link(world.tree().join("0"), world.tree().join(number.to_string())).unwrap();
    }
    world.build();
    assert_eq!(world.field("0", "Links"), "65000");
    fs::hard_link(world.tree().join("0"), world.tree().join("one more")).unwrap();
    world.make(64 * MIB, 1000, &[]);
    let error = world.fill().unwrap_err();
    assert!(
        matches!(&error, Error::Unsupported { reason, .. } if reason.contains("65000 names")),
        "{error}"
    );
}

#[test]
fn a_file_larger_than_ext4_has_them_is_refused() {
    let world = World::new();
    let file = File::create(world.tree().join("huge")).unwrap();
    let largest = u64::from(u32::MAX) * 4096;
    world.make(64 * MIB, 1000, &[]);
    if file.set_len(largest + 1).is_ok() {
        assert!(matches!(
            world.fill().unwrap_err(),
            Error::Unsupported { path, .. } if path.ends_with("huge")
        ));
    }
}
