//! What a server leaves that was killed, and what was changed behind its back.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod support;

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use caddis_volume::{Filesystem, Growth, StoreConfig, VolumeError, VolumeStore};

use crate::support::{Host, at, copy_to, gib, id, key, run};

/// Tells a process of this test that it is the one to be killed, and what it is to do.
const CHILD: &str = "CADDIS_VOLUME_TEST";

/// Where a program kills whoever started it.
#[derive(Debug, Clone, Copy)]
enum When {
    Before,
    After,
    /// And goes on as if it still had work to do.
    AndStays,
}

/// A program that kills its parent when its first argument is `verb`.
fn killing(directory: &Path, program: &str, verb: &str, when: When) -> PathBuf {
    let own = match when {
        When::Before => "kill -9 $PPID; exit 1",
        When::After => "\"$program\" \"$@\"; kill -9 $PPID; exit 0",
        When::AndStays => "kill -9 $PPID; echo $$ >\"$pid\"; exec sleep 1000",
    };
    let script = format!(
        "#!/bin/sh\nprogram={program} pid={}\ncase $1 in {verb}) {own};; esac\n\
         exec \"$program\" \"$@\"\n",
        directory.join("pid").display()
    );
    let (source, path) = (directory.join("script"), directory.join(program));
    fs::write(&source, script).unwrap();
    run("install", &["-m755".as_ref(), source.as_ref(), path.as_ref()]);
    path
}

/// What the process that is killed does.
fn child(task: &str) {
    let (name, task) = task.split_once(' ').unwrap();
    let (directory, tools) = task.split_once(' ').unwrap();
    let directory = Path::new(directory);
    let mut config = StoreConfig::new(directory.join("volumes"), key());
    for program in ["qemu-img", "mke2fs", "qemu-storage-daemon"] {
        let path = Path::new(tools).join(program);
        match program {
            _ if !path.exists() => {}
            "mke2fs" => config.mke2fs = path,
            "qemu-storage-daemon" => config.storage_daemon = path,
            _ => config.qemu_img = path,
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // Where it is removed with what the test has: this process does not live to do it.
        let directory = tempfile::tempdir_in(tools).unwrap();
        let store = VolumeStore::open(config.clone()).unwrap();
        let host = Host { directory, config, store };
        let (progress, _) = tokio::sync::watch::channel(Default::default());
        match name {
            "create" => drop(host.create("vol_new", 1, Filesystem::Ext4, false).await),
            "copy" => {
                drop(host.store.copy(&id("vol_a"), copy_to("vol_new", None), &progress).await)
            }
            "check" => drop(host.store.check(&id("vol_a")).await),
            "export" => drop(host.store.export(&id("vol_a")).await),
            "hydrate" => {
                // Nobody answers there.
                let socket = host.directory.path().join("nbd");
                let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
                drop(host.store.hydrate(&id("vol_b"), &socket, &progress).await);
            }
            "grow" => drop(host.store.grow(&id("vol_a"), gib(5)).await),
            other => panic!("{other}"),
        }
    });
    panic!("nobody killed it");
}

/// Has a process killed while it does something; `test` is the one that calls this.
fn kill(test: &str, host: &Host, task: &str, program: &str, verb: &str, when: When) -> PathBuf {
    let tools = host.directory.path().join(format!("{task}-{program}-{verb}-{when:?}"));
    fs::create_dir(&tools).unwrap();
    killing(&tools, program, verb, when);
    let killed = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(CHILD, format!("{task} {} {}", host.directory.path().display(), tools.display()))
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(killed.signal(), Some(9), "{task} {program} {verb} {when:?}");
    tools
}

/// With a volume `vol_a`, whose store is closed.
async fn closed() -> Host {
    let host = Host::plain();
    let volume = host.raw("vol_a", 4).await;
    host.node(&volume).await.write(7, "0", "1M");
    host
}

fn is_child() -> bool {
    std::env::var(CHILD).map(|task| child(&task)).is_ok()
}

#[tokio::test]
async fn a_server_killed_at_any_program_of_a_creation_or_copy_leaves_nothing() {
    const TEST: &str = "a_server_killed_at_any_program_of_a_creation_or_copy_leaves_nothing";
    if std::env::var(CHILD).is_ok() {
        std::thread::spawn(is_child).join().unwrap();
    }
    let mut host = closed().await;
    for (task, program, verb) in [
        ("create", "qemu-img", "create"),
        ("create", "mke2fs", "-q"),
        ("create", "qemu-img", "convert"),
        ("copy", "qemu-img", "create"),
        ("copy", "qemu-img", "convert"),
    ] {
        for when in [When::Before, When::After] {
            let Host { directory, config, store } = host;
            drop(store);
            let spare = tempfile::tempdir().unwrap();
            let spare = StoreConfig::new(spare.path().join("volumes"), key());
            let store = VolumeStore::open(spare).unwrap();
            let closed = Host { directory, config, store };
            kill(TEST, &closed, task, program, verb, when);
            assert_eq!(closed.names("tmp").len(), 1, "there is something to be removed");
            host = closed.reopen();
            assert_eq!(host.contents(), ["volumes/vol_a"], "{task} {program} {verb} {when:?}");
            assert_eq!((host.store.problems(), host.store.space().declared), (vec![], 4));
            assert!(host.node(&id("vol_a")).await.has(7, "0", "1M"));
        }
    }
    host.create("vol_new", 1, Filesystem::Ext4, false).await.unwrap();
}

#[tokio::test]
async fn programs_that_outlive_the_server_are_ended_when_it_comes_back() {
    const TEST: &str = "programs_that_outlive_the_server_are_ended_when_it_comes_back";
    if std::env::var(CHILD).is_ok() {
        std::thread::spawn(is_child).join().unwrap();
    }
    let host = closed().await;
    host.restoring("vol_b", 1, false).await;
    let Host { directory, config, store } = host;
    drop(store);
    for (task, program, verb, volume) in [
        ("copy", "qemu-img", "convert", "vol_a"),
        ("check", "qemu-img", "check", "vol_a"),
        ("grow", "qemu-img", "resize", "vol_a"),
        ("export", "qemu-storage-daemon", "--chardev", "vol_a"),
        ("hydrate", "qemu-storage-daemon", "--chardev", "vol_b"),
    ] {
        let spare = tempfile::tempdir().unwrap();
        let spare = StoreConfig::new(spare.path().join("volumes"), key());
        let host = Host {
            directory: tempfile::tempdir().unwrap(),
            config: config.clone(),
            store: VolumeStore::open(spare).unwrap(),
        };
        // Its tools are in the directory of the host that is given.
        let tools = {
            let link = host.directory.path().join("volumes");
            std::os::unix::fs::symlink(&config.directory, link).unwrap();
            kill(TEST, &host, task, program, verb, When::AndStays)
        };
        let pid = loop {
            match fs::read_to_string(tools.join("pid")) {
                Ok(pid) if pid.ends_with('\n') => break pid,
                _ => tokio::task::yield_now().await,
            }
        };
        let process = format!("/proc/{}/cmdline", pid.trim());
        while !fs::read(&process).unwrap().starts_with(b"sleep") {
            tokio::task::yield_now().await;
        }
        let host = host.reopen();
        // Reaped by whoever it was left to, or not yet.
        let command = fs::read(&process).unwrap_or_default();
        assert_eq!(command, b"", "{task}: it runs on");
        let writer = host.store.open_writer(&id(volume), "a test").await.unwrap();
        writer.release();
    }
    drop(directory);
}

#[tokio::test]
async fn a_growth_that_was_killed_is_finished_when_the_volume_is_next_opened() {
    const TEST: &str = "a_growth_that_was_killed_is_finished_when_the_volume_is_next_opened";
    if std::env::var(CHILD).is_ok() {
        std::thread::spawn(is_child).join().unwrap();
    }
    for when in [When::Before, When::After] {
        let Host { directory, config, store } = closed().await;
        drop(store);
        let spare = tempfile::tempdir().unwrap();
        let spare = StoreConfig::new(spare.path().join("volumes"), key());
        let host = Host { directory, config, store: VolumeStore::open(spare).unwrap() };
        kill(TEST, &host, "grow", "qemu-img", "resize", when);
        let host = host.reopen();
        let volume = id("vol_a");
        assert_eq!(host.store.get(&volume).unwrap().size, gib(5), "it was recorded first");
        host.store.open_writer(&volume, "a test").await.unwrap().release();
        assert_eq!(host.store.usage(&volume).unwrap().virtual_bytes, 5 << 30);
        assert!(host.node(&volume).await.has(7, "0", "1M"));
        assert_eq!(host.store.grow(&volume, gib(6)).await.unwrap(), Growth::Done);
    }
}

/// Changes a field of a record, as whoever writes another format would.
fn edit(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let path = path.join("volume.json");
    let mut record = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut record);
    fs::write(path, record.to_string()).unwrap();
}

#[tokio::test]
async fn a_creation_that_was_killed_before_its_last_step_leaves_nothing() {
    let host = Host::new();
    host.raw("vol_a", 1).await;
    let work = host.config.directory.join("tmp/volume-x");
    fs::create_dir(&work).unwrap();
    fs::rename(host.place("vol_a"), work.join("volume")).unwrap();
    fs::write(work.join("raw"), "x").unwrap();
    fs::write(host.config.directory.join("tmp/.tmpRecord"), "{").unwrap();
    let host = host.reopen();
    assert_eq!((host.contents(), host.store.problems()), (vec![], vec![]));
}

#[tokio::test]
async fn a_deletion_that_was_killed_half_way_is_finished_and_so_is_its_undoing() {
    let host = Host::new();
    let (deleted, undeleted) = (host.raw("vol_a", 1).await, host.raw("vol_b", 1).await);
    host.store.delete(&undeleted, at(0)).unwrap();
    edit(&host.place("vol_a"), |record| record["deleted_at"] = at(5).to_string().into());
    edit(&host.trash("vol_b"), |record| record["deleted_at"] = serde_json::Value::Null);
    // Purged, but for its files.
    fs::create_dir(host.config.directory.join("tmp/purged-vol_c")).unwrap();
    fs::write(host.config.directory.join("tmp/purged-vol_c/disk.qcow2"), "x").unwrap();
    let host = host.reopen();
    assert_eq!(host.contents(), ["volumes/vol_b", "trash/vol_a"]);
    assert_eq!(host.store.get(&deleted).unwrap().deleted_at, Some(at(5)));
    assert_eq!(host.store.get(&undeleted).unwrap().deleted_at, None);
    host.store.undelete(&deleted).unwrap();
    assert!(host.reopen().store.problems().is_empty());
}

#[tokio::test]
async fn what_cannot_be_used_is_reported_counted_and_left_as_it_is() {
    let host = Host::new();
    for name in ["vol_a", "vol_b", "vol_c", "vol_d", "vol_e", "vol_f"] {
        host.raw(name, 2).await;
    }
    edit(&host.place("vol_a"), |record| record["version"] = 3.into());
    fs::write(host.place("vol_b").join("volume.json"), "{\"version\": 1, ").unwrap();
    fs::remove_file(host.place("vol_c").join("volume.json")).unwrap();
    fs::remove_file(host.disk("vol_d")).unwrap();
    fs::rename(host.place("vol_e"), host.place("vol_x")).unwrap();
    edit(&host.place("vol_f"), |record| record["size_gib"] = 0.into());
    fs::write(host.config.directory.join("volumes/notes.txt"), "an operator's").unwrap();
    let before: Vec<_> = host.contents();

    let host = host.reopen();
    assert_eq!(host.contents(), before);
    assert_eq!(host.store.list(), []);
    let problems = host.store.problems();
    let reason = |name: &str| {
        let problem = problems.iter().find(|problem| problem.name == name).unwrap();
        problem.reason.as_str()
    };
    assert!(reason("vol_a").contains("format 3 and this server knows 2"), "{problems:?}");
    assert!(reason("vol_b").contains("volume.json is invalid"), "{problems:?}");
    assert!(reason("vol_c").contains("cannot be read"), "{problems:?}");
    assert!(reason("vol_d").contains("disk.qcow2"), "{problems:?}");
    assert_eq!(reason("vol_x"), "its record is that of vol_e");
    assert!(reason("vol_f").contains("invalid volume size 0 GB"), "{problems:?}");
    assert!(reason("notes.txt").contains("volume.json"), "{problems:?}");
    assert_eq!(problems.len(), 7);
    assert_eq!(host.store.space().declared, 10, "all that have a disk");

    let open = host.store.open_writer(&id("vol_a"), "a test").await.unwrap_err();
    assert!(matches!(&open, VolumeError::Damaged { path, .. } if *path == host.place("vol_a")));
    assert!(open.to_string().contains("nothing of it was changed"), "{open}");
    assert!(matches!(host.store.delete(&id("vol_b"), at(0)), Err(VolumeError::Damaged { .. })));
    let again = host.create("vol_c", 1, Filesystem::Raw, false).await;
    assert!(matches!(again, Err(VolumeError::Exists(_))));
}
