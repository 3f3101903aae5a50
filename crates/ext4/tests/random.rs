//! Random trees come back as they were.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod support;

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, PermissionsExt, chown, symlink},
    },
    path::PathBuf,
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use support::World;

#[derive(Debug, Clone)]
enum Node {
    /// Offsets and lengths of what is written.
    File(Vec<(u64, usize)>),
    Directory,
    /// Directory with so many files.
    Many(u16),
    Symlink(Vec<u8>),
    /// To the file made so many before.
    HardLink(usize),
}

#[derive(Debug, Clone)]
struct Step {
    /// Which of the directories so far it is in.
    parent: usize,
    name: Vec<u8>,
    node: Node,
    mode: u32,
    owner: (u32, u32),
    seconds: u32,
    attributes: Vec<(String, usize)>,
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("no separator", |byte| *byte != 0 && *byte != b'/');
    prop::collection::vec(byte, 1..60)
        .prop_filter("no directory itself", |name| name != b"." && name != b"..")
}

fn node() -> impl Strategy<Value = Node> {
    prop_oneof![
        4 => prop::collection::vec((0..3_000_000_u64, 0..20_000_usize), 0..12).prop_map(Node::File),
        2 => Just(Node::Directory),
        1 => (0..600_u16).prop_map(Node::Many),
        1 => prop::collection::vec(1..=255_u8, 1..200).prop_map(Node::Symlink),
        1 => (0..20_usize).prop_map(Node::HardLink),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let attribute = ("user\\.[a-z]{1,20}", 0..300_usize);
    let attributes = prop::collection::vec(attribute, 0..6);
    let owner = (any::<u16>().prop_map(u32::from), 0..4_000_000_000_u32);
    (any::<usize>(), name(), node(), 0..0o10_000_u32, owner, any::<u32>(), attributes).prop_map(
        |(parent, name, node, mode, owner, seconds, attributes)| Step {
            parent,
            name,
            node,
            mode,
            owner,
            seconds,
            attributes,
        },
    )
}

/// Makes the tree; steps that can't be, for a name that is taken, are left out.
fn plant(world: &World, steps: &[Step]) {
    let mut directories = vec![world.tree()];
    let mut files: Vec<PathBuf> = Vec::new();
    let mut made = Vec::new();
    for step in steps {
        let path = directories[step.parent % directories.len()].join(OsStr::from_bytes(&step.name));
        if fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        match &step.node {
            Node::File(pieces) => {
                let file = File::create(&path).unwrap();
                for (offset, length) in pieces {
                    file.write_all_at(&vec![(offset % 251) as u8; *length], *offset).unwrap();
                }
                files.push(path.clone());
            }
            Node::Directory | Node::Many(_) => {
                fs::create_dir(&path).unwrap();
                if let Node::Many(count) = step.node {
                    for number in 0..count {
                        fs::write(path.join(format!("{number:x}")), []).unwrap();
                    }
                }
                directories.push(path.clone());
            }
            Node::Symlink(target) => {
                symlink(OsStr::from_bytes(target), &path).unwrap();
                continue;
            }
            Node::HardLink(index) => {
                if let Some(file) = files.get(*index) {
                    fs::hard_link(file, &path).unwrap();
                }
                continue;
            }
        }
        for (name, length) in &step.attributes {
            xattr::set(&path, name, &vec![b'v'; *length]).unwrap();
        }
        chown(&path, Some(step.owner.0), Some(step.owner.1)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(step.mode)).unwrap();
        made.push((path, step));
    }
    for (path, step) in made.into_iter().rev() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(step.seconds) / 2);
        File::open(path).unwrap().set_modified(time).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 8, max_shrink_iters: 60, ..ProptestConfig::default()
    })]

    #[test]
    fn random_trees_come_back_as_they_were(steps in prop::collection::vec(step(), 0..60)) {
        let world = World::new();
        plant(&world, &steps);
        world.build();
        world.compare();
    }
}
