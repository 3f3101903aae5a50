//! Directories, from none to many entries.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod support;

use std::{collections::HashSet, ffi::OsStr, fs, os::unix::ffi::OsStrExt};

use support::{MIB, World};

#[test]
fn directories_of_any_size_are_whole() {
    let world = World::new();
    for count in [0, 1, 2, 200, 204, 205, 500, 20_000] {
        let directory = world.tree().join(count.to_string());
        fs::create_dir(&directory).unwrap();
        for number in 0..count {
            fs::write(directory.join(format!("file{number:08}")), "").unwrap();
        }
    }
    world.make(256 * MIB, 30_000, &[]);
    world.fill().unwrap();
    world.check();
    world.compare();
    for (name, indexed) in
        [("0", false), ("200", false), ("204", true), ("500", true), ("20000", true)]
    {
        let flags = world.field(name, "Flags");
        assert_eq!(flags, if indexed { "0x81000" } else { "0x80000" }, "{name}");
    }
}

#[test]
fn an_index_of_two_levels_leads_to_every_name() {
    let world = World::new();
    // Fifteen names of 255 bytes fill a block, and a root of an index leads to 507 blocks.
    let names: HashSet<String> = (0..10_000).map(|number| format!("{number:0>255}")).collect();
    for name in &names {
        fs::write(world.tree().join(name), "").unwrap();
    }
    world.build();
    let dump = world.debugfs(&["htree_dump /"]);
    assert!(dump.contains("Indirect levels: 1"), "{}", &dump[..1000]);
    assert!(dump.contains("Hash Version: 1"), "{}", &dump[..1000]);
    let text = world.debugfs(&["ls -p /"]);
    let names_of = text.lines().filter_map(|line| line.split('/').nth(5)).map(str::to_owned);
    let listed: HashSet<String> = names_of.filter(|name| name.len() == 255).collect();
    assert!(listed == names, "{} of {} names", listed.len(), names.len());
}

#[test]
fn names_may_hold_any_byte() {
    let world = World::new();
    let mut names: Vec<Vec<u8>> =
        (1..=255_u8).filter(|byte| *byte != b'/').map(|byte| vec![b'x', byte]).collect();
    names.extend([
        vec![0xff; 255],
        b" ".to_vec(),
        b"...".to_vec(),
        b".wh.x".to_vec(),
        "ä".repeat(127).into_bytes(),
    ]);
    let many = world.tree().join(OsStr::from_bytes(&[0x80, 0xfe]));
    fs::create_dir(&many).unwrap();
    for name in &names {
        fs::write(world.tree().join(OsStr::from_bytes(name)), name).unwrap();
        // Signed bytes count in the hashes of an index.
        for number in 0..10 {
            fs::write(
                many.join(OsStr::from_bytes(&[&name[..name.len() - 1], &[number + 0x80]].concat())),
                "",
            )
            .unwrap();
        }
    }
    world.build();
    world.compare();
}

#[test]
fn a_directory_may_have_more_subdirectories_than_it_can_count() {
    let world = World::in_memory();
    let most = 64_998;
    for number in 0..most {
        fs::create_dir(world.tree().join(number.to_string())).unwrap();
    }
    for links in ["65000", "1"] {
        world.make(512 * MIB, 70_000, &[]);
        world.fill().unwrap();
        world.check();
        assert_eq!(world.field("/", "Links"), links);
        fs::create_dir(world.tree().join("one more")).unwrap_or_default();
    }
}

#[test]
fn depth_is_not_bounded_by_open_files_or_the_length_of_paths() {
    let world = World::new();
    let mut directory =
        rustix::fs::open(world.tree(), rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())
            .unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&directory, "down", rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
        directory = rustix::fs::openat(
            &directory,
            "down",
            rustix::fs::OFlags::RDONLY,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
    }
    world.build();
    assert!(world.field("/down/down/down", "Links") == "3");
}
