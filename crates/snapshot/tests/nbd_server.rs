//! The server with QEMU as its client.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod support;

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use caddis_snapshot::{Extent, Source, nbd::Client};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    process::Command,
};

use crate::support::{Disk, MIB, Server, path, qemu, text};

fn disk() -> Disk {
    let pieces = vec![(0, 3 * MIB, 1), (5 * MIB + 4096, 70 * MIB, 2), (1023 * MIB, MIB, 3)];
    Disk { size: 1 << 30, pieces, ..Disk::default() }
}

/// The same in a file.
fn raw(disk: &Disk, file: &std::path::Path) {
    use std::os::unix::fs::FileExt as _;
    let made = std::fs::File::create(file).unwrap();
    made.set_len(disk.size).unwrap();
    for (offset, length, byte) in &disk.pieces {
        made.write_all_at(&vec![*byte; usize::try_from(*length).unwrap()], *offset).unwrap();
    }
}

#[tokio::test]
async fn qemu_reads_what_is_served_and_skips_what_is_not() {
    let server = Server::new(disk());
    let file = server.directory.path().join("raw");
    raw(&server.disk, &file);
    let compared =
        text("qemu-img", &["compare", "-f", "raw", "-F", "raw", &server.uri(), path(&file)]).await;
    assert!(compared.contains("identical"), "{compared}");

    let map = text("qemu-img", &["map", "--output=json", "-f", "raw", &server.uri()]).await;
    let map: Value = serde_json::from_str(&map).unwrap();
    let data: Vec<_> = map.as_array().unwrap().iter().filter(|part| part["data"] == true).collect();
    let places = data.iter().map(|part| (part["start"].as_u64(), part["length"].as_u64()));
    let expected = server.disk.pieces.iter().map(|piece| (Some(piece.0), Some(piece.1)));
    assert!(places.eq(expected), "{map}");

    let copy = server.directory.path().join("copy");
    text("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &server.uri(), path(&copy)]).await;
    let compared = text("qemu-img", &["compare", path(&copy), path(&file)]).await;
    assert!(compared.contains("identical"), "{compared}");
    let info = text("qemu-img", &["info", &server.uri()]).await;
    assert!(info.contains("1 GiB (1073741824 bytes)"), "{info}");
}

#[tokio::test]
async fn our_client_reads_it_as_qemu_does() {
    let server = Server::new(disk());
    let mut client = Client::connect(&server.socket(), "", None).await.unwrap();
    assert_eq!(client.size(), 1 << 30);
    let mut buffer = vec![0xff; 9 << 20];
    client.read(2 * MIB, &mut buffer).await.unwrap();
    let expected: Vec<u8> = [(MIB, 1), (2 * MIB + 4096, 0), (6 * MIB - 4096, 2)]
        .iter()
        .flat_map(|(count, byte)| vec![*byte; usize::try_from(*count).unwrap()])
        .collect();
    assert!(buffer == expected);
    let extents = client.extents(0, 1 << 30).await.unwrap();
    // Holes are not told to be zeroes.
    let all = Extent { offset: 0, length: 1 << 30, is_zero: false, is_unchanged: false };
    assert_eq!(extents, [all]);
}

/// A qemu-storage-daemon that streams a backing into a volume.
async fn stream(server: &Server, target: &std::path::Path) -> Value {
    let node = json!({
        "driver": "qcow2", "node-name": "top", "file": { "driver": "file",
        "filename": path(target) },
        "backing": { "driver": "nbd", "server": { "type": "unix", "path": path(&server.socket()) },
        "reconnect-delay": 100 },
    });
    let mut daemon = Command::new("qemu-storage-daemon")
        .args(["--chardev", "stdio,id=qmp", "--monitor", "chardev=qmp"])
        .args(["--blockdev", &node.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("needs qemu-storage-daemon: apt-get install qemu-system-common");
    let mut stdin = daemon.stdin.take().unwrap();
    for (command, arguments) in [
        ("qmp_capabilities", json!({})),
        ("block-stream", json!({ "job-id": "a", "device": "top" })),
    ] {
        let request = json!({ "execute": command, "arguments": arguments });
        stdin.write_all(format!("{request}\n").as_bytes()).await.unwrap();
    }
    let mut lines = BufReader::new(daemon.stdout.take().unwrap()).lines();
    let ended = loop {
        let line = lines.next_line().await.unwrap().expect("it ended");
        let message: Value = serde_json::from_str(&line).unwrap();
        assert!(message.get("error").is_none(), "{message}");
        if message["event"] == "BLOCK_JOB_COMPLETED" {
            break message;
        }
    };
    stdin.write_all(b"{\"execute\":\"quit\"}\n").await.unwrap();
    daemon.wait().await.unwrap();
    ended
}

async fn empty(server: &Server, size: u64) -> std::path::PathBuf {
    let target = server.directory.path().join("target");
    let size = size.to_string();
    let layout = "compat=1.1";
    text("qemu-img", &["create", "-q", "-f", "qcow2", "-o", layout, path(&target), &size]).await;
    target
}

#[tokio::test]
async fn block_stream_copies_data_and_leaves_holes_alone() {
    let size = 500 << 30;
    let pieces = vec![(3 * MIB, 20 * MIB, 1), (400 << 30, 5 * MIB, 2)];
    let server = Server::new(Disk { size, pieces, ..Disk::default() });
    let target = empty(&server, size).await;
    let ended = stream(&server, &target).await;
    assert!(ended["data"].get("error").is_none(), "{ended}");
    let allocated = std::os::unix::fs::MetadataExt::blocks(&target.metadata().unwrap()) * 512;
    assert!(allocated < 27 * MIB, "{allocated}");
    let read = server.disk.read.load(Ordering::SeqCst);
    assert!((25 * MIB..27 * MIB).contains(&read), "{read}");
    let reads = ["read -P 1 3M 20M", "read -P 0 23M 100M", "read -P 2 400G 5M"];
    let arguments = reads.iter().flat_map(|read| ["-c", read]).chain([path(&target)]);
    let output = text("qemu-io", &arguments.collect::<Vec<_>>()).await;
    assert!(!output.contains("verification failed"), "{output}");
}

#[tokio::test]
async fn a_server_that_comes_back_is_read_on_from() {
    let disk = Disk { is_away: AtomicBool::new(true), ..disk() };
    let server = Server::new(disk);
    let target = empty(&server, 1 << 30).await;
    let (socket, shared) = (server.socket(), Arc::clone(&server.disk));
    let file = server.directory.path().join("raw");
    raw(&shared, &file);
    let restart = async {
        // A request is under way.
        shared.tried.notified().await;
        socket
    };
    let directory = server.directory.path().to_owned();
    let streaming = {
        let server = &server;
        let target = target.clone();
        async move { stream(server, &target).await }
    };
    tokio::pin!(streaming);
    tokio::select! {
        ended = &mut streaming => panic!("{ended}"),
        _ = restart => {}
    }
    // Another server takes the place of the first, and has the store again.
    let second = tempfile::tempdir_in(&directory).unwrap();
    shared.is_away.store(false, Ordering::SeqCst);
    let second = Server::at(second, Arc::clone(&shared));
    std::fs::rename(second.socket(), directory.join("nbd")).unwrap();
    server.disconnect();
    let ended = streaming.await;
    assert!(ended["data"].get("error").is_none(), "{ended}");
    let compared = text("qemu-img", &["compare", "-F", "raw", path(&target), path(&file)]).await;
    assert!(compared.contains("identical"), "{compared}");
    assert!(server.damages.lock().is_empty() && second.damages.lock().is_empty());
}

#[tokio::test]
async fn a_store_that_is_away_delays_a_read_and_does_not_fail_it() {
    let server = Server::new(Disk { is_away: AtomicBool::new(true), ..disk() });
    let mut client = Client::connect(&server.socket(), "", None).await.unwrap();
    let mut buffer = [0; 512];
    let back = async {
        server.disk.tried.notified().await;
        server.disk.is_away.store(false, Ordering::SeqCst);
    };
    let (read, ()) = tokio::join!(client.read(0, &mut buffer), back);
    read.unwrap();
    assert_eq!(buffer, [1; 512]);
}

#[tokio::test]
async fn what_is_damaged_is_an_error_is_told_and_harms_nothing_else() {
    let server = Server::new(Disk { damaged_from: Some(6 * MIB), ..disk() });
    let read = |at: &str| {
        let (uri, command) = (server.uri(), format!("read {at} 64k"));
        async move { qemu("qemu-io", &["-r", "-f", "raw", "-c", &command, &uri]).await }
    };
    let output = read("5900k").await;
    assert!(output.status.success(), "{output:?}");
    assert!(server.damages.lock().is_empty());
    let output = read("6M").await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("read failed: Input/output error"), "{said}");
    assert!(server.damages.lock().iter().all(|told| told.contains("a damaged chunk")));
    assert!(!server.damages.lock().is_empty());

    let mut client = Client::connect(&server.socket(), "", None).await.unwrap();
    let error = client.read(7 * MIB, &mut [0; 512]).await.unwrap_err();
    assert!(error.to_string().contains("it is damaged"), "{error}");
    assert!(read("0").await.status.success());
}

#[tokio::test]
async fn it_cannot_be_written() {
    let server = Server::new(disk());
    for command in ["write 0 64k", "write -z 0 64k", "discard 0 64k"] {
        let output = qemu("qemu-io", &["-f", "raw", "-c", command, &server.uri()]).await;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let is_refused = ["read-only", "Read-only", "not permitted", "Permission denied"];
        assert!(is_refused.iter().any(|words| said.contains(words)), "{command}: {said}");
    }
}

/// What the protocol calls them.
const READ: u16 = 0;
const WRITE: u16 = 1;
const TRIM: u16 = 4;

/// A client that speaks the oldest form, without structured replies.
struct Old(UnixStream);

impl Old {
    async fn connect(server: &Server) -> Self {
        let mut stream = UnixStream::connect(server.socket()).await.unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        // Neither fixed newstyle nor without zeroes; then the option of the export's name.
        stream.write_all(&[0; 4]).await.unwrap();
        stream.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\x03any").await.unwrap();
        let mut export = [0; 134];
        stream.read_exact(&mut export).await.unwrap();
        assert_eq!(u64::from_be_bytes(export[..8].try_into().unwrap()), 1 << 30);
        Self(stream)
    }

    async fn send(&mut self, command: u16, cookie: u64, offset: u64, length: u32) {
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend(0_u16.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        self.0.write_all(&request).await.unwrap();
    }

    /// The error and cookie of a reply.
    async fn reply(&mut self) -> (u32, u64) {
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        let error = u32::from_be_bytes(reply[4..8].try_into().unwrap());
        (error, u64::from_be_bytes(reply[8..].try_into().unwrap()))
    }
}

#[tokio::test]
async fn a_client_without_structured_replies_is_served() {
    let server = Server::new(disk());
    let mut client = Old::connect(&server).await;
    client.send(READ, 7, 0, 32 << 20).await;
    assert_eq!(client.reply().await, (0, 7));
    let mut data = vec![0xff; 32 << 20];
    client.0.read_exact(&mut data).await.unwrap();
    assert!(data[..3 << 20].iter().all(|byte| *byte == 1));
    assert!(data[3 << 20..5 << 20].iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn requests_that_cannot_be_are_refused_and_the_next_is_answered() {
    let server = Server::new(disk());
    let mut client = Old::connect(&server).await;
    const INVALID: u32 = 22;
    for (command, offset, length, error) in [
        (READ, 0, (32 << 20) + 1, INVALID),
        (READ, 0, u32::MAX, INVALID),
        (READ, (1 << 30) - 1, 2, INVALID),
        (READ, u64::MAX, 512, INVALID),
        (READ, 0, 0, INVALID),
        (7, 0, 512, INVALID),
        (TRIM, 0, 512, 1),
        (999, 0, 512, INVALID),
    ] {
        client.send(command, 1, offset, length).await;
        assert_eq!(client.reply().await, (error, 1), "{command} {offset} {length}");
    }
    client.send(WRITE, 2, 0, 5).await;
    client.0.write_all(b"12345").await.unwrap();
    assert_eq!(client.reply().await, (1, 2));
    client.send(READ, 3, 1023 << 20, 4).await;
    assert_eq!(client.reply().await, (0, 3));
    let mut data = [0; 4];
    client.0.read_exact(&mut data).await.unwrap();
    assert_eq!(data, [3; 4]);
    // A write that is too long to be skipped.
    client.send(WRITE, 4, 0, u32::MAX).await;
    assert_eq!(client.0.read(&mut data).await.unwrap(), 0, "it is cut off");
}

#[tokio::test]
async fn many_requests_are_under_way_at_a_time_and_all_are_answered() {
    let server = Server::new(disk());
    let mut client = Old::connect(&server).await;
    let (mut answered, count) = (std::collections::BTreeSet::new(), 200);
    // More than are worked on at a time, before any reply is read.
    for cookie in 0..count {
        client.send(READ, cookie, cookie * 4096, 512).await;
    }
    for _ in 0..count {
        let (error, cookie) = client.reply().await;
        let mut data = [0; 512];
        client.0.read_exact(&mut data).await.unwrap();
        assert_eq!((error, data), (0, [1; 512]));
        answered.insert(cookie);
    }
    assert!(answered.into_iter().eq(0..count));
}

#[tokio::test]
async fn who_ends_the_server_ends_its_connections() {
    let server = Server::new(disk());
    let mut client = Old::connect(&server).await;
    server.end().await;
    assert_eq!(client.0.read(&mut [0; 1]).await.unwrap(), 0);
}
