//! The client with exports of QEMU.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod support;

use std::{path::PathBuf, process::Stdio};

use caddis_snapshot::{Extent, SnapshotError, Source, nbd::Client};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::support::{MIB, path, text};

/// A qemu-storage-daemon, told what to do by QMP.
struct Daemon {
    directory: TempDir,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    child: Child,
}

impl Daemon {
    async fn start(directory: TempDir, arguments: &[&str]) -> Self {
        let socket = directory.path().join("nbd");
        let mut child = Command::new("qemu-storage-daemon")
            .args(["--chardev", "stdio,id=qmp", "--monitor", "chardev=qmp"])
            .args(arguments)
            .arg("--nbd-server")
            .arg(format!("addr.type=unix,addr.path={}", socket.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("needs qemu-storage-daemon: apt-get install qemu-system-common");
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut daemon = Self { directory, stdin, stdout, child };
        daemon.stdout.next_line().await.unwrap().expect("a greeting");
        daemon.tell("qmp_capabilities", json!({})).await;
        daemon
    }

    async fn tell(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        self.stdin.write_all(format!("{request}\n").as_bytes()).await.unwrap();
        loop {
            let line = self.stdout.next_line().await.unwrap().expect("it ended");
            let answer: Value = serde_json::from_str(&line).unwrap();
            assert!(answer.get("error").is_none(), "{request}: {answer}");
            if let Some(answer) = answer.get("return") {
                return answer.clone();
            }
        }
    }

    /// Serves a node.
    async fn export(&mut self, node: &str, bitmaps: &[&str]) {
        let bitmaps: Vec<_> = bitmaps.iter().map(|name| json!(name)).collect();
        let export = json!({ "type": "nbd", "id": node, "node-name": node, "writable": true,
            "bitmaps": bitmaps });
        self.tell("block-export-add", export).await;
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("nbd")
    }

    fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket().display())
    }
}

async fn write(daemon: &Daemon, name: &str, commands: &[&str]) {
    let mut arguments = vec!["-f", "raw"];
    arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
    let uri = daemon.uri(name);
    arguments.push(&uri);
    text("qemu-io", &arguments).await;
}

/// All of it, with how much was read.
async fn map(client: &mut Client) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    while let at = extents.last().map_or(0, |last| last.offset + last.length)
        && at < client.size()
    {
        extents.extend(client.extents(at, client.size() - at).await.unwrap());
    }
    // Where two answers meet.
    extents.dedup_by(|next, last| {
        let is_same = (next.is_zero, next.is_unchanged) == (last.is_zero, last.is_unchanged);
        if is_same {
            last.length += next.length;
        }
        is_same
    });
    extents
}

fn extent(offset: u64, length: u64, is_zero: bool, is_unchanged: bool) -> Extent {
    Extent { offset: offset * MIB, length: length * MIB, is_zero, is_unchanged }
}

async fn has(client: &mut Client, offset: u64, length: u64, byte: u8) -> bool {
    let mut buffer = vec![byte ^ 0xff; usize::try_from(length).unwrap()];
    client.read(offset, &mut buffer).await.unwrap();
    buffer.iter().all(|found| *found == byte)
}

#[tokio::test]
async fn a_sparse_disk_is_read_and_its_holes_are_known() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    text("qemu-img", &["create", "-q", "-f", "qcow2", path(&disk), "10G"]).await;
    let node = format!("driver=qcow2,node-name=a,file.driver=file,file.filename={}", path(&disk));
    let mut daemon = Daemon::start(directory, &["--blockdev", &node]).await;
    daemon.export("a", &[]).await;
    write(&daemon, "a", &["write -P 7 64M 40M", "write -P 8 9G 1M"]).await;

    let mut client = Client::connect(&daemon.socket(), "a", None).await.unwrap();
    assert_eq!(client.size(), 10 << 30);
    let expected = [
        extent(0, 64, true, false),
        extent(64, 40, false, false),
        extent(104, (9 << 10) - 104, true, false),
        extent(9 << 10, 1, false, false),
        extent((9 << 10) + 1, 1023, true, false),
    ];
    assert_eq!(map(&mut client).await, expected);
    assert!(has(&mut client, 64 * MIB, 40 * MIB, 7).await, "more than one request can have");
    assert!(has(&mut client, 64 * MIB + 12_345, 3 * MIB + 1, 7).await, "not aligned");
    assert!(has(&mut client, 104 * MIB, 20 * MIB, 0).await);
    let mut edge = [0xff; 4];
    client.read(64 * MIB - 2, &mut edge).await.unwrap();
    assert_eq!(edge, [0, 0, 7, 7]);
    client.read(0, &mut []).await.unwrap();

    let beyond = client.read((10 << 30) - 1, &mut [0; 2]).await.unwrap_err();
    assert!(beyond.to_string().contains("beyond its"), "{beyond}");
    assert!(has(&mut client, 9 << 30, MIB, 8).await, "a call that can't be harms none after it");
}

#[tokio::test]
async fn what_a_dirty_bitmap_does_not_name_is_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    text("qemu-img", &["create", "-q", "-f", "qcow2", path(&disk), "1G"]).await;
    let node = format!("driver=qcow2,node-name=a,file.driver=file,file.filename={}", path(&disk));
    let mut daemon = Daemon::start(directory, &["--blockdev", &node]).await;
    daemon
        .tell(
            "block-export-add",
            json!({ "type": "nbd", "id": "w", "node-name": "a",
        "name": "w", "writable": true }),
        )
        .await;
    write(&daemon, "w", &["write -P 7 0 8M"]).await;
    let bitmap = json!({ "node": "a", "name": "since", "granularity": MIB });
    daemon.tell("block-dirty-bitmap-add", bitmap).await;
    write(&daemon, "w", &["write -P 8 2M 1M", "write -P 9 100M 2M", "write -z -u 5M 1M"]).await;
    daemon.export("a", &["since"]).await;

    let mut client = Client::connect(&daemon.socket(), "a", Some("since")).await.unwrap();
    let expected = [
        extent(0, 2, false, true),
        extent(2, 1, false, false),
        extent(3, 2, false, true),
        extent(5, 1, true, false),
        extent(6, 2, false, true),
        extent(8, 92, true, true),
        extent(100, 2, false, false),
        extent(102, 922, true, true),
    ];
    assert_eq!(map(&mut client).await, expected);
    assert!(has(&mut client, 2 * MIB, MIB, 8).await);

    let none = Client::connect(&daemon.socket(), "a", Some("other")).await.unwrap_err();
    assert!(none.to_string().contains("it has no qemu:dirty-bitmap:other"), "{none}");
    let none = Client::connect(&daemon.socket(), "b", None).await.unwrap_err();
    assert!(none.to_string().contains("export b of"), "{none}");
}

#[tokio::test]
async fn an_encrypted_disk_is_read_in_the_clear_and_its_holes_are_known() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    let secret = "secret,id=k,data=secret";
    let luks = "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=1,\
        encrypt.hash-alg=sha512";
    let create = ["create", "-q", "-f", "qcow2", "--object", secret, "-o", luks];
    text("qemu-img", &[&create[..], &[path(&disk), "1G"]].concat()).await;
    let node = format!(
        "driver=qcow2,node-name=a,encrypt.format=luks,encrypt.key-secret=k,\
         file.driver=file,file.filename={}",
        path(&disk)
    );
    let mut daemon = Daemon::start(directory, &["--object", secret, "--blockdev", &node]).await;
    daemon.export("a", &[]).await;
    write(&daemon, "a", &["write -P 7 1M 3M"]).await;
    let mut client = Client::connect(&daemon.socket(), "a", None).await.unwrap();
    let expected =
        [extent(0, 1, true, false), extent(1, 3, false, false), extent(4, 1020, true, false)];
    assert_eq!(map(&mut client).await, expected);
    assert!(has(&mut client, MIB, 3 * MIB, 7).await);
}

#[tokio::test]
async fn a_qemu_nbd_and_a_socket_with_a_long_path_serve_too() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    std::fs::write(&disk, vec![5; 3 << 20]).unwrap();
    let long = directory.path().join("d".repeat(100));
    std::fs::create_dir(&long).unwrap();
    let (socket, pid) = (directory.path().join("nbd"), directory.path().join("pid"));
    let mut server = Command::new("qemu-nbd")
        .args(["-f", "raw", "-r", "-t", "-x", "disk", "-k", path(&socket), path(&disk)])
        .args(["--pid-file", path(&pid)])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // Written when it serves.
    while !pid.exists() {
        assert_eq!(server.try_wait().unwrap(), None, "it ended");
        tokio::task::yield_now().await;
    }
    std::fs::rename(socket, long.join("nbd")).unwrap();
    let mut client = Client::connect(&long.join("nbd"), "disk", None).await.unwrap();
    assert_eq!(map(&mut client).await, [extent(0, 3, false, false)]);
    assert!(has(&mut client, 0, 3 * MIB, 5).await);
}

#[tokio::test]
async fn a_server_that_goes_away_is_an_error_and_stays_one() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    std::fs::write(&disk, vec![5; 3 << 20]).unwrap();
    let node = format!("driver=file,node-name=a,filename={}", path(&disk));
    let mut daemon = Daemon::start(directory, &["--blockdev", &node]).await;
    daemon.export("a", &[]).await;
    let mut client = Client::connect(&daemon.socket(), "a", None).await.unwrap();
    assert!(has(&mut client, 0, MIB, 5).await);
    daemon.child.kill().await.unwrap();
    for _ in 0..2 {
        let error = client.read(0, &mut [0; 512]).await.unwrap_err();
        assert!(matches!(error, SnapshotError::Source(_)), "{error}");
    }
    let error = Client::connect(&daemon.socket(), "a", None).await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_call_that_was_dropped_in_the_middle_spoils_no_later_one() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    std::fs::write(&disk, vec![5; 3 << 20]).unwrap();
    let node = format!("driver=file,node-name=a,filename={}", path(&disk));
    let mut daemon = Daemon::start(directory, &["--blockdev", &node]).await;
    daemon.export("a", &[]).await;
    let mut client = Client::connect(&daemon.socket(), "a", None).await.unwrap();
    let mut buffer = vec![0; 3 << 20];
    assert!(futures::poll!(std::pin::pin!(client.read(0, &mut buffer))).is_pending());
    let error = client.read(MIB, &mut [0; 512]).await.unwrap_err();
    assert!(error.to_string().contains("was dropped"), "{error}");
}
