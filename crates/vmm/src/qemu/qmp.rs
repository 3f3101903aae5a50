//! QEMU's control protocol, as much of it as we use: one command at a time, each answered, and the
//! events that tell how a migration goes and that an export is gone. Blocks; for blocking threads
//! only.

use std::{
    io::{self, BufRead as _, BufReader, IoSlice, Read as _},
    mem::MaybeUninit,
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

use crate::{process::Process, socket};

/// A command as a line, and the id that its answer has: no other command has it, of this server or
/// an earlier one. When a client is gone before QEMU, which was busy, has answered it, QEMU gives
/// that answer to the next client.
pub(super) fn command(name: &str, arguments: &Value) -> (String, String) {
    static BEGUN: OnceLock<u128> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let since = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let begun = BEGUN.get_or_init(|| since().as_nanos());
    let id = format!("{begun:x}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let command = json!({ "execute": name, "arguments": arguments, "id": id });
    (format!("{command}\n"), id)
}

/// Whether a line is the answer to the command with this id.
pub(super) fn answers(line: &Value, id: &str) -> bool {
    line.get("id").and_then(Value::as_str) == Some(id)
}

/// Patience with one line of QEMU's. On a busy host its main loop may wait long for a processor.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Patience with a migration.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(200);
/// A line is never longer than this; the program at the other end has been taken over if it is.
const LONGEST_LINE: u64 = 1 << 20;

/// A connection.
pub(crate) struct Qmp {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    migration: Option<String>,
    /// Exports that are gone.
    deleted: Vec<String>,
    /// The beginning of a line whose end has not come yet.
    begun: Vec<u8>,
}

impl Qmp {
    /// Connects to the socket of that name of a VM's process and waits until QEMU is ready.
    pub(crate) fn connect(process: &Process, directory: &Path, name: &str) -> io::Result<Self> {
        let stream = socket::connect_blocking(directory, name)?;
        process.check()?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let reader = BufReader::new(stream.try_clone()?);
        let mut qmp =
            Self { stream, reader, migration: None, deleted: Vec::new(), begun: Vec::new() };
        // What it still has to say to an earlier client may come first.
        while qmp.line()?.get("QMP").is_none() {}
        match qmp.execute("qmp_capabilities", json!({})) {
            // An earlier client is gone that had sent the same, which was carried out only now.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            negotiated => drop(negotiated?),
        }
        Ok(qmp)
    }

    /// Executes a command and returns its answer. What QEMU refuses is `InvalidInput`.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        self.send(command, arguments, &[], TIMEOUT)
    }

    /// Gives QEMU a descriptor under a name.
    pub(crate) fn give(&mut self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.send("getfd", json!({ "fdname": name }), &[descriptor], TIMEOUT).map(|_| ())
    }

    /// Has it close a descriptor that it was given under a name, if it has one.
    pub(crate) fn take_back(&mut self, name: &str) -> io::Result<()> {
        match self.execute("closefd", json!({ "fdname": name })) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            closed => closed.map(drop),
        }
    }

    /// Adds a descriptor to a set of them, from which files are opened by the name
    /// `/dev/fdset/SET`. When no file is open from it and nobody is connected it is closed.
    pub(crate) fn add_descriptor(
        &mut self,
        set: u32,
        descriptor: BorrowedFd<'_>,
    ) -> io::Result<()> {
        self.send("add-fd", json!({ "fdset-id": set }), &[descriptor], TIMEOUT).map(|_| ())
    }

    /// Has it close the descriptors of a set that nothing uses any more, if there are any.
    pub(crate) fn remove_descriptors(&mut self, set: u32) -> io::Result<()> {
        let sets = self.execute("query-fdsets", json!({}))?;
        let mut sets = sets.as_array().into_iter().flatten();
        match sets.any(|known| known["fdset-id"] == json!(set)) {
            true => self.execute("remove-fd", json!({ "fdset-id": set })).map(drop),
            false => Ok(()),
        }
    }

    /// Ends an export and the connections to it, and waits until it is gone.
    pub(crate) fn delete_export(&mut self, id: &str) -> io::Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        self.deleted.clear();
        self.execute("block-export-del", json!({ "id": id, "mode": "hard" }))?;
        while !self.deleted.iter().any(|deleted| deleted == id) {
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let line = self.line()?;
            self.note(&line);
        }
        Ok(())
    }

    /// Writes the state of all devices, and no memory, of a VM that stands still to a pipe: QEMU
    /// has it by the name `state` and by this number, and may open it. Closes it then.
    ///
    /// From the first byte on until the last was read QEMU does nothing else, so that its memory
    /// does not change either: the state is written by its main thread, and is more than the pipe
    /// holds.
    pub(crate) fn save_devices(&mut self, number: u32) -> io::Result<()> {
        // Of all commands that save the only one that leaves out memory. That its name says Xen is
        // history. `live` has it write out what it holds of the disk.
        let arguments = json!({ "filename": format!("/proc/self/fd/{number}"), "live": true });
        let saved = self.send("xen-save-devices-state", arguments, &[], MIGRATION_TIMEOUT);
        let closed = self.execute("closefd", json!({ "fdname": "state" }));
        saved.and(closed).map(|_| ())
    }

    /// Chooses how state is saved and restored, the same way for all: memory that is shared with
    /// the outside stays out of it. That of a template in the making is; that of machines is not.
    pub(crate) fn leave_out_shared_memory(&mut self) -> io::Result<()> {
        let capability = |name: &str| json!({ "capability": name, "state": true });
        let capabilities = [capability("events"), capability("x-ignore-shared")];
        self.execute("migrate-set-capabilities", json!({ "capabilities": capabilities }))
            .map(|_| ())
    }

    /// Begins to save state to a descriptor.
    pub(crate) fn save(&mut self, to: BorrowedFd<'_>) -> io::Result<()> {
        self.give("state", to)?;
        self.execute("migrate", json!({ "uri": "fd:state" })).map(|_| ())
    }

    /// Restores state from a descriptor.
    pub(crate) fn restore(&mut self, from: BorrowedFd<'_>) -> io::Result<()> {
        self.give("state", from)?;
        self.execute("migrate-incoming", json!({ "uri": "fd:state" }))?;
        self.migrated()
    }

    /// What the VM is doing, in QEMU's words.
    pub(crate) fn status(&mut self) -> io::Result<String> {
        let answer = self.execute("query-status", json!({}))?;
        Ok(answer.get("status").and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    /// Waits for the end of the migration that was begun. A large memory on a slow disk takes its
    /// time, in which QEMU says nothing unless it is asked.
    pub(crate) fn migrated(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + MIGRATION_TIMEOUT;
        loop {
            match self.migration.take().as_deref() {
                Some("completed") => return Ok(()),
                Some(status @ ("failed" | "cancelled")) => {
                    return Err(io::Error::other(format!("it has {status}")));
                }
                _ => {}
            }
            match self.line() {
                Ok(line) => self.note(&line),
                Err(error)
                    if error.kind() == io::ErrorKind::TimedOut && Instant::now() < deadline =>
                {
                    let answer = self.execute("query-migrate", json!({}))?;
                    let status = answer.get("status").and_then(Value::as_str);
                    self.migration = self.migration.take().or(status.map(str::to_owned));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn send(
        &mut self,
        command: &str,
        arguments: Value,
        descriptors: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> io::Result<Value> {
        let deadline = Instant::now() + patience;
        let (text, id) = self::command(command, &arguments);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        // Far shorter than a socket's buffer, which is empty: it goes out whole.
        let sent = sendmsg(
            &self.stream,
            &[IoSlice::new(text.as_bytes())],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )?;
        if sent != text.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        loop {
            let mut line = match self.line() {
                Err(error)
                    if error.kind() == io::ErrorKind::TimedOut && Instant::now() < deadline =>
                {
                    continue;
                }
                line => line?,
            };
            if !answers(&line, &id) {
                self.note(&line);
                continue;
            }
            if let Some(error) = line.get("error") {
                let reason = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
                let text = format!("{command}: {reason}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
            if let Some(answer) = line.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }

    fn note(&mut self, line: &Value) {
        let told = |field: &str| line.pointer(field).and_then(Value::as_str).map(str::to_owned);
        match line.get("event").and_then(Value::as_str) {
            Some("MIGRATION") => self.migration = told("/data/status"),
            Some("BLOCK_EXPORT_DELETED") => self.deleted.extend(told("/data/id")),
            _ => {}
        }
    }

    fn line(&mut self) -> io::Result<Value> {
        self.reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut self.begun).map_err(
            |error| {
                let timed_out =
                    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                let silence = || {
                    io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("no answer from QEMU for {TIMEOUT:?}"),
                    )
                };
                if timed_out { silence() } else { error }
            },
        )?;
        let line = std::mem::take(&mut self.begun);
        if line.is_empty() {
            return Err(io::Error::other("QEMU ended"));
        }
        serde_json::from_slice(&line).map_err(io::Error::other)
    }
}

#[cfg(test)]
pub(super) use tests::{OK, ours, play};

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::fd::AsFd as _, thread};

    use super::*;

    /// A process that does not end.
    pub fn ours() -> Process {
        Process::open(std::process::id()).unwrap()
    }

    pub const OK: &str = "{\"return\": {}, \"id\": ID}";

    /// A QEMU that says these lines, one after each command, whose id is put in.
    pub fn play(
        lines: &'static [&'static str],
    ) -> (tempfile::TempDir, thread::JoinHandle<Vec<String>>) {
        let directory = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::from(
            socket::listen(directory.path(), "qmp.sock").unwrap(),
        );
        let played = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"QMP\": {}}\n").unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut heard = Vec::new();
            for answer in [OK].iter().chain(lines) {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                let command: Value = serde_json::from_str(&line).unwrap();
                heard.push(line);
                let id = command["id"].to_string();
                stream.write_all(answer.replace("ID", &id).as_bytes()).unwrap();
                stream.write_all(b"\n").unwrap();
            }
            heard
        });
        (directory, played)
    }

    #[test]
    fn events_and_answers_to_others_are_told_from_answers_and_errors_told() {
        let (directory, played) = play(&[
            "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"setup\"}}\n\
             {\"return\": {}, \"id\": ID}",
            "{\"event\": \"STOP\"}\n{\"return\": 5}\n{\"return\": 6, \"id\": \"another\"}\n\
             {\"event\": \"MIGRATION\", \"data\": {\"status\": \"completed\"}}\n\
             {\"return\": 7, \"id\": ID}",
            "{\"error\": {\"class\": \"x\", \"desc\": \"no such thing\"}, \"id\": ID}",
        ]);
        let mut qmp = Qmp::connect(&ours(), directory.path(), "qmp.sock").unwrap();
        let file = tempfile::tempfile().unwrap();
        qmp.give("state", file.as_fd()).unwrap();
        assert_eq!(qmp.execute("migrate", json!({ "uri": "fd:state" })).unwrap(), 7);
        qmp.migrated().unwrap();
        assert_eq!(qmp.execute("x", json!({})).unwrap_err().to_string(), "x: no such thing");
        assert!(qmp.execute("y", json!({})).is_err(), "QEMU has ended");
        assert!(played.join().unwrap()[1].contains("getfd"));
    }

    #[test]
    fn a_failed_migration_is_an_error() {
        let (directory, played) =
            play(&["{\"event\": \"MIGRATION\", \"data\": {\"status\": \"failed\"}}\n\
             {\"return\": {}, \"id\": ID}"]);
        let mut qmp = Qmp::connect(&ours(), directory.path(), "qmp.sock").unwrap();
        qmp.execute("migrate", json!({})).unwrap();
        assert!(qmp.migrated().is_err());
        played.join().unwrap();
    }
}
