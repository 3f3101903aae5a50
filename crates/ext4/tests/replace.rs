//! Files that get another content from outside.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod support;

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    time::{Duration, SystemTime},
};

use caddis_ext4::{Filled, Replacement};
use support::World;

/// What is to be written for a file, by its path.
fn replacement(world: &World, path: &str, content: &[u8], time: SystemTime) -> Replacement {
    let disk = File::open(world.image()).unwrap();
    let names: Vec<_> = path.split('/').collect();
    Filled::open(&disk).unwrap().replace(&names, content, time).unwrap()
}

#[test]
fn a_small_file_has_the_new_content_and_is_otherwise_as_before() {
    let world = World::new();
    fs::create_dir_all(world.tree().join("etc/deep")).unwrap();
    // Directories of several blocks, and of an index.
    for number in 0..600 {
        fs::write(
            world.tree().join(format!("etc/a rather long name, so that there are blocks {number}")),
            "x",
        )
        .unwrap();
    }
    let path = world.tree().join("etc/deep/hosts");
    fs::write(&path, [b'\n'; 4096]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    xattr::set(&path, "user.note", b"kept").unwrap();
    world.build();
    for content in ["127.0.0.1 localhost\n".to_owned(), String::new(), "x".repeat(4096)] {
        let time = SystemTime::UNIX_EPOCH + Duration::new(3_000_000_000, 7);
        let Replacement::Of(patches) =
            replacement(&world, "etc/deep/hosts", content.as_bytes(), time)
        else {
            panic!("it can be replaced")
        };
        let image = File::options().write(true).open(world.image()).unwrap();
        for patch in patches {
            image.write_all_at(&patch.bytes, patch.offset).unwrap();
        }
        world.check();
        let copy = world.image().with_extension("copy");
        world.debugfs(&[&format!("dump /etc/deep/hosts {}", copy.display())]);
        assert_eq!(fs::read_to_string(copy).unwrap(), content);
        assert_eq!(world.field("/etc/deep/hosts", "Size"), content.len().to_string());
        assert_eq!(world.field("/etc/deep/hosts", "Mode"), "0640");
        assert_eq!(world.field("/etc/deep/hosts", " mtime"), "0xb2d05e00:0000001d");
        assert_eq!(world.attribute("/etc/deep/hosts", "user.note"), b"kept");
    }
}

#[test]
fn whatever_is_no_plain_file_of_one_block_is_left_to_others() {
    let world = World::new();
    let tree = world.tree();
    fs::create_dir_all(tree.join("etc/directory")).unwrap();
    let block = [b'\n'; 4096];
    fs::write(tree.join("etc/plain"), block).unwrap();
    fs::write(tree.join("etc/empty"), "").unwrap();
    fs::write(tree.join("etc/long"), [b'x'; 4097]).unwrap();
    fs::write(tree.join("etc/two"), block).unwrap();
    fs::hard_link(tree.join("etc/two"), tree.join("etc/names")).unwrap();
    symlink("plain", tree.join("etc/link")).unwrap();
    symlink("etc", tree.join("other")).unwrap();
    world.build();
    let of =
        |path: &str, content: &[u8]| replacement(&world, path, content, SystemTime::UNIX_EPOCH);
    assert!(matches!(of("etc/plain", b"x"), Replacement::Of(_)));
    assert_eq!(of("etc/plain", &[0; 4097]), Replacement::Impossible);
    for path in [
        "etc/empty",
        "etc/long",
        "etc/two",
        "etc/names",
        "etc/link",
        "etc/directory",
        "other/plain",
        "etc/plain/x",
    ] {
        assert_eq!(of(path, b"x"), Replacement::Impossible, "{path}");
    }
    for path in ["etc/none", "none/plain", "none"] {
        assert_eq!(of(path, b"x"), Replacement::Missing, "{path}");
    }
}

#[test]
fn what_is_no_file_system_is_told() {
    let file = tempfile::tempfile().unwrap();
    assert!(Filled::open(&file).is_err());
    file.set_len(1 << 20).unwrap();
    assert!(Filled::open(&file).is_err());
}
