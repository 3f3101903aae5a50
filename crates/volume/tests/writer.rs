//! At most one writer, and who holds the lock when QEMU has the volume.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod support;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
};

use caddis_volume::{Filesystem, Growth, VolumeError, VolumeId};
use command_fds::{CommandFdExt as _, FdMapping};
use serde_json::{Value, json};

use crate::support::{Host, gib, run};

/// A QEMU without a machine, that has a volume open as the driver has it: by a descriptor.
struct Qemu {
    process: Child,
    replies: BufReader<std::process::ChildStdout>,
}

impl Qemu {
    fn start(volume: OwnedFd, passphrase: Option<&str>) -> Self {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"])
            .args(["-add-fd", "fd=600,set=1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .fd_mappings(vec![FdMapping { parent_fd: volume, child_fd: 600 }])
            .unwrap();
        let mut process = command.spawn().expect("apt-get install qemu-system-x86");
        let replies = BufReader::new(process.stdout.take().unwrap());
        let mut qemu = Self { process, replies };
        qemu.read();
        qemu.execute("qmp_capabilities", json!({}));
        let file = json!({ "driver": "file", "filename": "/dev/fdset/1" });
        let mut node = json!({ "driver": "qcow2", "node-name": "volume", "file": file });
        if let Some(passphrase) = passphrase {
            let secret = json!({ "qom-type": "secret", "id": "key", "data": passphrase });
            qemu.execute("object-add", secret);
            node["encrypt"] = json!({ "format": "luks", "key-secret": "key" });
        }
        qemu.execute("blockdev-add", node);
        qemu
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.replies.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.process.stdin.as_mut().unwrap(), "{request}").unwrap();
        loop {
            let reply = self.read();
            assert!(reply.get("error").is_none(), "{command}: {reply}");
            if let Some(value) = reply.get("return") {
                return value.clone();
            }
        }
    }

    fn size(&mut self) -> u64 {
        let nodes = self.execute("query-named-block-nodes", json!({}));
        let nodes = nodes.as_array().unwrap();
        let volume = nodes.iter().find(|node| node["node-name"] == "volume").unwrap();
        volume["image"]["virtual-size"].as_u64().unwrap()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

async fn refused(host: &Host, volume: &VolumeId) -> String {
    match host.store.open_writer(volume, "another").await {
        Err(error @ VolumeError::InUse { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_second_writer_is_refused_with_the_name_of_the_first_and_each_raises_the_generation() {
    let host = Host::new();
    let volume = host.raw("vol_a", 1).await;
    let writer = host.store.open_writer(&volume, "machine 123").await.unwrap();
    assert_eq!((writer.previous_generation(), writer.volume().generation), (1, 2));
    assert_eq!(
        refused(&host, &volume).await,
        "volume vol_a is in use by machine 123: stop that first"
    );
    let delete = host.store.delete(&volume, support::at(0));
    assert!(matches!(delete, Err(VolumeError::InUse { .. })));
    let check = host.store.check(&volume).await;
    assert!(matches!(check, Err(VolumeError::InUse { .. })));
    let (progress, _) = tokio::sync::watch::channel(Default::default());
    let copy = host.store.copy(&volume, support::copy_to("vol_b", None), &progress).await;
    assert!(matches!(copy, Err(VolumeError::InUse { .. })));
    writer.release();

    let host = host.reopen();
    let writer = host.store.open_writer(&volume, "machine 456").await.unwrap();
    assert_eq!((writer.previous_generation(), writer.volume().generation), (2, 3));
    assert_eq!(host.store.get(&volume).unwrap().last_writer.unwrap(), "machine 456");
    drop(writer);
    host.open_soon(&volume).await;
}

#[tokio::test]
async fn a_volume_is_its_writer_s_while_that_is_being_recorded() {
    let host = Host::new();
    let volume = host.raw("vol_a", 1).await;
    let (writer, recorded) = host.store.begin_writer(&volume, "machine 123").await.unwrap();
    assert!(refused(&host, &volume).await.contains("in use by machine 123"));
    let (open, before) = recorded.done().await.unwrap();
    assert_eq!((before, open.generation), (1, 2));
    assert_eq!(writer.volume().generation, open.generation);
    let host = host.reopen();
    assert_eq!(host.store.get(&volume).unwrap().generation, 2);
    assert!(refused(&host, &volume).await.contains("in use by machine 123"));
    drop(writer);
    host.open_soon(&volume).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_that_open_a_volume_at_once_one_has_it() {
    let host = Host::new();
    let volume = host.raw("vol_a", 1).await;
    let mut rounds = 0;
    while rounds < 20 {
        let open = |number: u32| {
            let (store, volume) = (host.store.clone(), volume.clone());
            tokio::spawn(async move { store.open_writer(&volume, &format!("m{number}")).await })
        };
        let attempts: Vec<_> = (0..8).map(open).collect();
        let mut writers = Vec::new();
        for attempt in attempts {
            match attempt.await.unwrap() {
                Ok(writer) => writers.push(writer),
                Err(VolumeError::InUse { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(writers.len(), 1);
        rounds += 1;
        let writer = writers.remove(0);
        assert_eq!(writer.volume().generation, 1 + rounds);
        writer.release();
    }
}

#[tokio::test]
async fn the_lock_is_qemu_s_once_it_was_handed_the_descriptor_and_ends_with_it() {
    let host = Host::new();
    let volume = host.raw("vol_a", 1).await;
    let writer = host.store.open_writer(&volume, "machine 123").await.unwrap();
    // QEMU's own locks find nothing wrong with ours.
    let mut qemu = Qemu::start(writer.into_descriptor(), None);

    // A server that has been started anew finds it in use, by whom.
    let host = host.reopen();
    let said = refused(&host, &volume).await;
    let expected = format!("machine 123 (process {} qemu-system-x86", qemu.process.id());
    assert!(said.contains(&expected), "{said}");

    // And who opens the file by path, without our lock, is refused by QEMU's.
    let disk = host.disk("vol_a");
    let output =
        Command::new("qemu-img").args(["resize", "-f", "qcow2"]).arg(&disk).arg("2G").output();
    let said = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(said.contains("Failed to get \"write\" lock"), "{said}");

    assert_eq!(qemu.size(), 1 << 30);
    drop(qemu);
    host.open_soon(&volume).await.release();
    run("qemu-img", &["check".as_ref(), disk.as_ref()]);
}

#[tokio::test]
async fn an_encrypted_volume_grows_while_qemu_has_it_open() {
    let host = Host::new();
    let volume = host.create("vol_a", 1, Filesystem::Raw, true).await.unwrap().id;
    let writer = host.store.open_writer(&volume, "machine 123").await.unwrap();
    let passphrase = writer.key().unwrap().passphrase();
    let mut qemu = Qemu::start(writer.into_descriptor(), Some(&passphrase));

    let growth = host.store.grow(&volume, gib(3)).await.unwrap();
    let Growth::Resize { bytes } = growth else { panic!("{growth:?}") };
    let recorded = host.store.get(&volume).unwrap();
    assert_eq!((recorded.size, recorded.generation, bytes), (gib(3), 3, 3 << 30));
    assert_eq!(host.store.space().declared, 3);
    qemu.execute("block_resize", json!({ "node-name": "volume", "size": bytes }));
    assert_eq!(qemu.size(), 3 << 30);
    // Nobody tells it of this one.
    assert_eq!(host.store.grow(&volume, gib(4)).await.unwrap(), Growth::Resize { bytes: 4 << 30 });
    drop(qemu);

    let writer = host.open_soon(&volume).await;
    assert_eq!(host.store.usage(&volume).unwrap().virtual_bytes, 4 << 30);
    assert_eq!((writer.previous_generation(), writer.volume().generation), (4, 5));
    writer.release();
    let node = host.node(&volume).await;
    node.write(7, "4095M", "1M");
    assert!(node.has(7, "4095M", "1M"));
    assert!(host.store.check(&volume).await.unwrap().is_sound());
}
