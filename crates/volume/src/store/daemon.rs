//! A `qemu-storage-daemon` that has a volume open, told what to do by QMP on its standard streams.

use std::{
    collections::VecDeque,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout},
    task::JoinHandle,
};

use super::{Busy, Inner};
use crate::{
    VolumeError, VolumeKey,
    process::{self, Ended, Program, file_number, key_file, open_file},
};

/// To write what it has and to end. If it takes longer it is killed, which loses no more than what
/// was copied.
const QUIT_TIMEOUT: Duration = Duration::from_secs(2);

/// Node of the volume.
pub(super) const VOLUME: &str = "volume";
/// Node of its backing.
pub(super) const BACKING: &str = "backing";

/// It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Daemon {
    what: String,
    program: PathBuf,
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    /// What it says on standard error, until that was told.
    stderr: Option<JoinHandle<io::Result<Vec<u8>>>>,
    events: VecDeque<Value>,
}

impl Daemon {
    /// Starts one, which has a volume's lock for as long as it runs. `what` is for messages, after
    /// "failed to"; `backing` is connected to an NBD server, of which the default export becomes a
    /// node.
    pub(super) async fn start(
        inner: &Inner,
        busy: &Busy,
        what: &str,
        key: Option<&VolumeKey>,
        backing: Option<&UnixStream>,
    ) -> Result<Self, VolumeError> {
        let path = inner.disks.storage_daemon.clone();
        let failed = |source| VolumeError::Io { what: what.to_owned(), source };
        let lock = busy.lock.as_ref().ok_or_else(|| failed(io::Error::other("it has no lock")))?;
        let mut files = vec![lock.share().map_err(failed)?];
        let arguments = ["--chardev", "stdio,id=qmp", "--monitor", "chardev=qmp"];
        let mut arguments: Vec<_> = arguments.map(Into::into).to_vec();
        if key.is_some() {
            let secret = format!("secret,id=key0,file={},format=raw", key_file(0));
            arguments.extend(["--object".into(), secret.into()]);
        }
        if let Some(backing) = backing {
            files.push(OwnedFd::from(backing.try_clone().map_err(failed)?));
            // QMP does not take a number.
            let server = json!({ "type": "fd", "str": file_number(1) });
            let node = json!({
                "driver": "nbd", "node-name": BACKING, "read-only": true, "server": server,
            });
            arguments.extend(["--blockdev".into(), node.to_string().into()]);
        }
        let mut program = Program {
            path: &path,
            what,
            package: "qemu-system-common",
            arguments,
            environment: Vec::new(),
            keys: key.into_iter().collect(),
            files,
        };
        let mut child = inner.disks.programs.spawn(&mut program, Stdio::piped())?;
        let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), stderr) = streams else {
            return Err(failed(io::Error::other("it has no standard streams")));
        };
        let stderr = Some(tokio::spawn(process::read(stderr, |_| ())));
        let stdout = BufReader::new(stdout).lines();
        let (what, events) = (what.to_owned(), VecDeque::new());
        let mut daemon = Self { what, program: path, child, stdin, stdout, stderr, events };
        // The greeting: it has done all that its arguments say.
        daemon.line().await?;
        daemon.execute("qmp_capabilities", json!({})).await?.map_err(|said| daemon.error(said))?;
        Ok(daemon)
    }

    /// Opens the volume; `backing` is a node, or null.
    pub(super) async fn open_volume(
        &mut self,
        key: Option<&VolumeKey>,
        backing: Value,
        read_only: bool,
    ) -> Result<(), VolumeError> {
        // The lock of the volume is ours. QEMU's own would stay for a moment with a daemon that was
        // killed, and keep a VM from starting.
        let locking = if read_only { "off" } else { "auto" };
        let file = json!({ "driver": "file", "filename": open_file(0), "locking": locking });
        let mut node = json!({
            "driver": "qcow2", "node-name": VOLUME, "read-only": read_only, "backing": backing,
            "file": file,
        });
        if let (Some(_), Some(node)) = (key, node.as_object_mut()) {
            let encrypt = json!({ "format": "luks", "key-secret": "key0" });
            node.insert("encrypt".to_owned(), encrypt);
        }
        self.expect("blockdev-add", node).await
    }

    /// A command that has to succeed.
    pub(super) async fn expect(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> Result<(), VolumeError> {
        let answer = self.execute(command, arguments).await?;
        answer.map(drop).map_err(|said| self.error(said))
    }

    /// A command, and its answer or what it says is wrong.
    pub(super) async fn execute(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> Result<Result<Value, String>, VolumeError> {
        let request = json!({ "execute": command, "arguments": arguments });
        if self.stdin.write_all(format!("{request}\n").as_bytes()).await.is_err() {
            return Err(self.ended().await);
        }
        loop {
            let mut message = self.line().await?;
            if message.get("event").is_some() {
                self.events.push_back(message);
            } else if let Some(answer) = message.get_mut("return") {
                return Ok(Ok(answer.take()));
            } else {
                let said = message.pointer("/error/desc").and_then(Value::as_str);
                return Ok(Err(said.unwrap_or("it gave no reason").to_owned()));
            }
        }
    }

    /// The next event. May be dropped without losing one.
    pub(super) async fn event(&mut self) -> Result<Value, VolumeError> {
        match self.events.pop_front() {
            Some(event) => Ok(event),
            None => self.line().await,
        }
    }

    async fn line(&mut self) -> Result<Value, VolumeError> {
        match self.stdout.next_line().await {
            Ok(Some(line)) => serde_json::from_str(&line)
                .map_err(|error| self.error(format!("it said what is no JSON: {error}"))),
            _ => Err(self.ended().await),
        }
    }

    /// Its end, which nobody asked for.
    async fn ended(&mut self) -> VolumeError {
        let code = self.child.wait().await.ok().and_then(|status| status.code());
        let mut said = Vec::new();
        if let Some(stderr) = self.stderr.take() {
            said = stderr.await.ok().and_then(Result::ok).unwrap_or_default();
        }
        let stderr = String::from_utf8_lossy(&said).into_owned();
        Ended { code, stdout: Vec::new(), stderr }.error(&self.program, &self.what)
    }

    pub(super) fn error(&self, said: String) -> VolumeError {
        Ended { code: None, stdout: Vec::new(), stderr: said }.error(&self.program, &self.what)
    }

    /// Ends it, so that all is written, if that does not take long.
    pub(super) async fn quit(mut self) {
        let quits = async {
            let _ = self.execute("quit", json!({})).await;
            self.child.wait().await
        };
        if tokio::time::timeout(QUIT_TIMEOUT, quits).await.is_err() {
            self.kill().await;
        }
    }

    /// Ends it at once.
    pub(super) async fn kill(mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::warn!(%error, "could not end a qemu-storage-daemon");
        }
    }

    /// Waits until it ends by itself.
    pub(super) async fn wait(&mut self) {
        let _ = self.child.wait().await;
    }
}
