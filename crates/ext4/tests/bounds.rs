//! What does not fit, what is stopped, what is not ours to fill, and what happens to a file system
//! later.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod support;

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
};

use caddis_ext4::Error;
use support::{MIB, World, check, run};

#[test]
fn a_full_file_system_is_told_from_one_without_inodes() {
    let world = World::new();
    fs::write(world.tree().join("large"), vec![1; 20 << 20]).unwrap();
    world.make(16 * MIB, 64, &[]);
    assert!(matches!(world.fill().unwrap_err(), Error::NoBlocks));
    let world = World::new();
    for number in 0..100 {
        fs::write(world.tree().join(number.to_string()), "").unwrap();
    }
    world.make(16 * MIB, 64, &[]);
    assert!(matches!(world.fill().unwrap_err(), Error::NoInodes));
}

#[test]
fn a_file_system_can_be_filled_to_its_last_block_and_inode() {
    let world = World::new();
    world.make(200 * MIB, 64, &["-g", "8192"]);
    let text = world.debugfs(&["show_super_stats -h"]);
    let number = |name: &str| -> u64 {
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse().unwrap()
    };
    // Back come lost+found's blocks and the root's, of which that needs one.
    let (blocks, inodes) = (number("Free blocks:") + 4, number("Free inodes:") + 1);
    for index in 1..inodes {
        fs::write(world.tree().join(index.to_string()), "").unwrap();
    }
    let file = File::create(world.tree().join("rest")).unwrap();
    // The extents take one block at most.
    let data = vec![1; 4096];
    for block in 0..blocks {
        file.write_all_at(&data, block * 4096).unwrap();
    }
    let last = loop {
        match world.fill() {
            Ok(()) => break number("Free blocks:"),
            Err(Error::NoBlocks) => {
                file.set_len(file.metadata().unwrap().len() - 4096).unwrap();
                world.make(200 * MIB, 64, &["-g", "8192"]);
            }
            Err(other) => panic!("{other}"),
        }
    };
    assert!(file.metadata().unwrap().len() / 4096 + 2 >= last, "at most some blocks of extents");
    world.check();
    world.compare();
    let text = world.debugfs(&["show_super_stats -h"]);
    for field in ["Free blocks:", "Free inodes:"] {
        let line = text.lines().find(|line| line.starts_with(field)).unwrap();
        assert!(line.ends_with(" 0"), "{line}");
    }
}

#[test]
fn who_says_no_stops_it_within_a_file_and_between_files() {
    let world = World::new();
    fs::write(world.tree().join("large"), vec![1; 8 << 20]).unwrap();
    for number in 0..50 {
        fs::write(world.tree().join(number.to_string()), "x").unwrap();
    }
    let mut asked = 0;
    let mut bytes = 0;
    world.make(64 * MIB, 1000, &[]);
    world
        .fill_while(&mut |written| {
            asked += 1;
            bytes += written;
            true
        })
        .unwrap();
    assert!(asked > 51 + 8, "{asked}");
    assert!(bytes > 8 << 20, "{bytes}");
    for end in [1, 20, 54, asked] {
        world.make(64 * MIB, 1000, &[]);
        let mut left = end;
        let stopped = world.fill_while(&mut |_| {
            left -= 1;
            left > 0
        });
        assert!(matches!(stopped.unwrap_err(), Error::Stopped), "{end}");
        assert_eq!(left, 0, "not asked again");
    }
}

#[test]
fn the_same_tree_gives_the_same_bytes_and_the_file_stays_sparse() {
    let world = World::new();
    for number in 0..1000 {
        fs::write(world.tree().join(number.to_string()), number.to_string()).unwrap();
    }
    for number in 0..10 {
        fs::hard_link(world.tree().join("7"), world.tree().join(format!("link{number}"))).unwrap();
    }
    world.make(1024 * MIB, 2000, &[]);
    world.fill().unwrap();
    let first = fs::read(world.image()).unwrap();
    assert!(fs::metadata(world.image()).unwrap().blocks() * 512 < 16 * MIB);
    world.make(1024 * MIB, 2000, &[]);
    world.fill().unwrap();
    assert!(first == fs::read(world.image()).unwrap());
}

#[test]
fn a_filled_file_system_grows_and_shrinks() {
    let world = World::new();
    for number in 0..3000 {
        fs::write(world.tree().join(format!("file {number}")), vec![b'x'; number]).unwrap();
    }
    world.build();
    let image = world.image();
    for size in ["8G", "200M"] {
        let output = run("resize2fs", &[image.to_str().unwrap(), size]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        check(&image);
    }
    world.compare();
}

#[test]
fn only_what_mke2fs_has_just_made_is_filled() {
    let world = World::new();
    let refused = |world: &World, why: &str| {
        let error = world.fill().unwrap_err();
        assert!(matches!(error, Error::Unknown(_)), "{why}: {error}");
    };
    File::create(world.image()).unwrap().set_len(MIB).unwrap();
    refused(&world, "nothing");
    for options in [
        &["-O", "has_journal"][..],
        &["-O", "^metadata_csum"],
        &["-O", "bigalloc"],
        &["-O", "inline_data"],
        &["-O", "^64bit"],
        &["-O", "^dir_index"],
        &["-b", "1024"],
        &["-I", "512"],
    ] {
        world.make(64 * MIB, 1000, options);
        refused(&world, options[1]);
    }
    world.make(64 * MIB, 1000, &[]);
    let file = File::options().write(true).open(world.image()).unwrap();
    file.write_all_at(b"X", 1024 + 0x78).unwrap();
    refused(&world, "a superblock that does not match its checksum");
    world.make(64 * MIB, 1000, &[]);
    file.set_len(32 * MIB).unwrap();
    refused(&world, "cut off");
    world.make(64 * MIB, 1000, &[]);
    world.fill().unwrap();
    refused(&world, "filled already");
    // An empty file is no file system.
    file.set_len(0).unwrap();
    assert!(matches!(world.fill().unwrap_err(), Error::Image { .. }));
}

#[test]
fn layouts_that_mke2fs_may_choose_are_understood() {
    let world = World::new();
    for number in 0..2000 {
        fs::write(world.tree().join(number.to_string()), vec![b'x'; number * 7]).unwrap();
    }
    for (size, inodes, options) in [
        (128 * MIB, 3000, &["-O", "^resize_inode"][..]),
        (128 * MIB, 3000, &["-O", "metadata_csum_seed"]),
        (128 * MIB, 3000, &["-O", "^flex_bg"]),
        (128 * MIB, 3000, &["-G", "4", "-g", "1024"]),
        (129 * MIB + 4096, 3000, &["-g", "2048"]),
        // Tables of inodes that fill the first group.
        (4096 * MIB, 1_000_000, &[]),
        (2 << 40, 3000, &[]),
    ] {
        world.make(size, inodes, options);
        world.fill().unwrap();
        if size < 1 << 40 {
            world.check();
        }
        assert_eq!(world.field("1999", "Size"), "13993", "{options:?}");
    }
}
