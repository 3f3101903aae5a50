//! Logs of the programs: lines in files, per machine, bounded.
//!
//! One thread writes for all machines. It numbers every line (nanoseconds of the clock, but always rising), so that a
//! reader of several machines has one position for all of them: lines up to [`Logs::position`] are in the files.
//! A record of the guest is acknowledged only once its lines are in the file; after a crash of this process the files
//! tell how far that was ([`Logs::acknowledged`]).

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use bytes::Bytes;
use caddis_api::MachineId;
use caddis_guest_protocol::message::LogSource;
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::clock::now_ns;

mod read;

pub use read::Selection;
use read::segments;

/// Files per machine: the newest is written, the oldest is removed when all are full.
const SEGMENTS: u64 = 4;
/// A line longer than this is cut into several.
const MAX_LINE_BYTES: usize = 16 * 1024;

/// One line in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Number, unique on this worker, rising in the order of writing.
    #[serde(rename = "n")]
    pub number: u64,
    /// Guest's or our clock, nanoseconds since the Unix epoch.
    #[serde(rename = "t")]
    pub time_ns: u64,
    /// Where it came from: `stdout`, `stderr`, `init` or `runner`.
    #[serde(rename = "s")]
    pub source: String,
    /// The record of the guest it was in, and the boot that counts them: absent for our own lines.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub record: Option<(u64, u64)>,
    /// The text.
    #[serde(rename = "m")]
    pub message: String,
}

enum Job {
    Append { machine: MachineId, lines: Vec<NewLine>, done: Box<dyn FnOnce() + Send> },
    Close { machine: MachineId },
    Remove { machine: MachineId },
    Barrier(oneshot::Sender<()>),
}

struct NewLine {
    time_ns: u64,
    source: &'static str,
    record: Option<(u64, u64)>,
    message: String,
}

/// The logs of all machines of a worker. Clones share them.
#[derive(Clone)]
pub struct Logs {
    directory: PathBuf,
    jobs: mpsc::Sender<Job>,
    position: watch::Receiver<u64>,
}

impl Logs {
    /// Logs below `directory`, at most `bytes_per_machine` each.
    ///
    /// # Errors
    /// When the directory can't be made or the thread can't be started.
    pub fn open(directory: PathBuf, bytes_per_machine: u64) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        let (jobs, queue) = mpsc::channel();
        let (position, reader) = watch::channel(now_ns());
        let segment_bytes = (bytes_per_machine / SEGMENTS).max(64 * 1024);
        let mut writer = Writer { directory: directory.clone(), segment_bytes, files: HashMap::new(), last: now_ns() };
        thread::Builder::new().name("worker-logs".to_owned()).spawn(move || {
            for job in queue {
                match job {
                    Job::Append { machine, lines, done } => {
                        if let Err(e) = writer.append(&machine, lines) {
                            tracing::error!(machine = %machine, error = %e, "can't write log lines");
                        }
                        position.send_replace(writer.last);
                        done();
                    }
                    Job::Close { machine } => drop(writer.files.remove(&machine)),
                    Job::Remove { machine } => writer.remove(&machine),
                    Job::Barrier(passed) => {
                        // Who no longer waits has no use for it.
                        let _ = passed.send(());
                    }
                }
            }
        })?;
        Ok(Self { directory, jobs, position: reader })
    }

    /// Waits until all that was appended so far is in the files.
    pub async fn written(&self) {
        let (passed, all) = oneshot::channel();
        if self.jobs.send(Job::Barrier(passed)).is_ok() {
            // Fails only when the thread has ended; then nothing is written any more.
            let _ = all.await;
        }
    }

    /// Writes a record of the guest, counted by the boot `boot`, and calls `done` once it is in the file.
    pub fn append_record(
        &self,
        machine: &MachineId,
        boot: u64,
        record: (u64, LogSource, u64, u64),
        text: &Bytes,
        done: impl FnOnce() + Send + 'static,
    ) {
        let (sequence, source, time_ns, dropped) = record;
        let source = match source {
            LogSource::Stdout => "stdout",
            LogSource::Stderr => "stderr",
            LogSource::Init => "init",
        };
        let mut lines = Vec::new();
        if dropped > 0 {
            let message = format!("{dropped} log records were lost: the program wrote faster than they could be taken");
            lines.push(NewLine { time_ns, source: "runner", record: Some((boot, sequence)), message });
        }
        for line in split(text) {
            lines.push(NewLine { time_ns, source, record: Some((boot, sequence)), message: line });
        }
        self.send(Job::Append { machine: machine.clone(), lines, done: Box::new(done) });
    }

    /// Writes a line of our own.
    pub fn append_own(&self, machine: &MachineId, message: impl Into<String>) {
        let line = NewLine { time_ns: now_ns(), source: "runner", record: None, message: message.into() };
        self.send(Job::Append { machine: machine.clone(), lines: vec![line], done: Box::new(|| {}) });
    }

    /// Nothing more is to be expected of a machine: its files stay, and are not kept open.
    pub fn close(&self, machine: &MachineId) {
        self.send(Job::Close { machine: machine.clone() });
    }

    /// Removes a machine's logs.
    pub fn remove(&self, machine: &MachineId) {
        self.send(Job::Remove { machine: machine.clone() });
    }

    fn send(&self, job: Job) {
        // The thread lives as long as any clone of the sender.
        let _ = self.jobs.send(job);
    }

    /// Lines up to this number are in the files; changes when more are.
    pub fn position(&self) -> watch::Receiver<u64> {
        self.position.clone()
    }

    /// The last record of `boot` that is in the files, 0 when there is none. Reads files; not for an async task.
    pub fn acknowledged(&self, machine: &MachineId, boot: u64) -> u64 {
        let mut last = 0;
        // A file that can't be read counts as empty: the guest then sends again what it still has.
        let _ = read::each(&self.directory.join(machine.as_str()), 0, |line| {
            if let Some((of, sequence)) = line.record
                && of == boot
            {
                last = last.max(sequence);
            }
            ControlFlow::Continue(())
        });
        last
    }

    /// Lines of a machine, oldest first. Reads files; not for an async task.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn read(&self, machine: &MachineId, selection: &Selection) -> io::Result<Vec<Line>> {
        read::select(&self.directory.join(machine.as_str()), selection)
    }
}

/// Lines of a record, without line ends; what is no UTF-8 is replaced.
fn split(text: &[u8]) -> Vec<String> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let pieces = text.split(|byte| *byte == b'\n').flat_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let whole: Vec<_> = if line.is_empty() { vec![line] } else { line.chunks(MAX_LINE_BYTES).collect() };
        whole
    });
    pieces.map(|piece| String::from_utf8_lossy(piece).into_owned()).collect()
}

struct Writer {
    directory: PathBuf,
    segment_bytes: u64,
    files: HashMap<MachineId, (u64, File, u64)>,
    last: u64,
}

impl Writer {
    fn append(&mut self, machine: &MachineId, lines: Vec<NewLine>) -> io::Result<()> {
        let (segment, mut file, written) = match self.files.remove(machine) {
            Some(open) => open,
            None => self.open(machine)?,
        };
        let mut text = Vec::new();
        for line in lines {
            self.last = now_ns().max(self.last + 1);
            let NewLine { time_ns, source, record, message } = line;
            let line = Line { number: self.last, time_ns, source: source.to_owned(), record, message };
            serde_json::to_writer(&mut text, &line)?;
            text.push(b'\n');
        }
        file.write_all(&text)?;
        let written = written + text.len() as u64;
        if written < self.segment_bytes {
            self.files.insert(machine.clone(), (segment, file, written));
            return Ok(());
        }
        let directory = self.directory.join(machine.as_str());
        let file = create(&directory, segment + 1)?;
        self.files.insert(machine.clone(), (segment + 1, file, 0));
        for (number, path) in segments(&directory)? {
            if number + SEGMENTS <= segment + 1 {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn open(&mut self, machine: &MachineId) -> io::Result<(u64, File, u64)> {
        let directory = self.directory.join(machine.as_str());
        fs::create_dir_all(&directory)?;
        let Some((number, path)) = segments(&directory)?.pop() else { return Ok((1, create(&directory, 1)?, 0)) };
        // Numbers of a machine rise even when the clock was set back since.
        self.last = self.last.max(read::last_number(&path)?);
        let mut file = OpenOptions::new().read(true).append(true).open(path)?;
        let size = file.seek(SeekFrom::End(0))?;
        if size > 0 {
            file.seek(SeekFrom::End(-1))?;
            let mut last = [0];
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                // Half a line from a killed process: ends here, so that the next one stands alone.
                file.write_all(b"\n")?;
            }
        }
        Ok((number, file, size))
    }

    fn remove(&mut self, machine: &MachineId) {
        self.files.remove(machine);
        match fs::remove_dir_all(self.directory.join(machine.as_str())) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::error!(machine = %machine, error = %e, "can't remove logs");
            }
            _ => {}
        }
    }
}

fn create(directory: &Path, segment: u64) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(directory.join(format!("{segment:06}.log")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> MachineId {
        MachineId::from_trusted("11112222333344")
    }

    fn write(logs: &Logs, boot: u64, sequence: u64, text: &str) {
        let (sender, receiver) = mpsc::channel();
        let record = (sequence, LogSource::Stdout, 5, 0);
        let text = Bytes::copy_from_slice(text.as_bytes());
        logs.append_record(&machine(), boot, record, &text, move || sender.send(()).unwrap());
        receiver.recv().unwrap();
    }

    fn messages(logs: &Logs, after: u64, limit: usize, newest: bool) -> Vec<String> {
        let until = *logs.position().borrow();
        let lines = logs.read(&machine(), &Selection { after, until, limit, newest, ..Selection::ALL }).unwrap();
        lines.into_iter().map(|line| line.message).collect()
    }

    #[test]
    fn lines_come_back_in_order_and_a_position_splits_them() {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs::open(directory.path().to_owned(), 1 << 20).unwrap();
        write(&logs, 7, 1, "one\ntwo\r\n");
        let position = *logs.position().borrow();
        write(&logs, 7, 2, "three");
        assert_eq!(messages(&logs, 0, 100, true), ["one", "two", "three"]);
        assert_eq!(messages(&logs, 0, 2, false), ["one", "two"]);
        assert_eq!(messages(&logs, 0, 2, true), ["two", "three"]);
        assert_eq!(messages(&logs, position, 100, false), ["three"]);
    }

    #[test]
    fn a_new_process_knows_what_was_acknowledged_and_survives_half_a_line() {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs::open(directory.path().to_owned(), 1 << 20).unwrap();
        write(&logs, 7, 3, "kept");
        let file = directory.path().join(machine().as_str()).join("000001.log");
        OpenOptions::new().append(true).open(file).unwrap().write_all(b"{\"n\":1,\"t").unwrap();
        let logs = Logs::open(directory.path().to_owned(), 1 << 20).unwrap();
        assert_eq!(logs.acknowledged(&machine(), 7), 3);
        assert_eq!(logs.acknowledged(&machine(), 8), 0);
        write(&logs, 8, 1, "after");
        assert_eq!(messages(&logs, 0, 100, true), ["kept", "after"]);
    }

    #[test]
    fn a_flood_is_bounded_and_the_newest_lines_stay() {
        let directory = tempfile::tempdir().unwrap();
        let limit = 512 * 1024;
        let logs = Logs::open(directory.path().to_owned(), limit).unwrap();
        for sequence in 1..=200 {
            write(&logs, 1, sequence, &"x".repeat(8000));
        }
        write(&logs, 1, 201, "last");
        let machine = directory.path().join(machine().as_str());
        let size: u64 = fs::read_dir(machine).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!(size <= limit + 64 * 1024, "{size}");
        assert_eq!(messages(&logs, 0, 1, true), ["last"]);
    }

    #[test]
    fn going_on_from_any_line_gives_all_that_follow() {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs::open(directory.path().to_owned(), 2 << 20).unwrap();
        for sequence in 1..=300 {
            write(&logs, 1, sequence, &format!("{sequence} {}", "x".repeat(5000)));
        }
        let all = logs.read(&machine(), &Selection::ALL).unwrap();
        assert!(all.len() > 200, "{}", all.len());
        for (index, line) in all.iter().enumerate() {
            let rest = logs.read(&machine(), &Selection { after: line.number, ..Selection::ALL }).unwrap();
            assert_eq!(rest, all[index + 1..], "after line {index}");
        }
    }

    #[test]
    fn lines_are_selected_by_their_time() {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs::open(directory.path().to_owned(), 1 << 20).unwrap();
        let before = now_ns();
        logs.append_own(&machine(), "ours");
        write(&logs, 7, 1, "long ago");
        let messages = |selection: Selection| -> Vec<String> {
            logs.read(&machine(), &selection).unwrap().into_iter().map(|line| line.message).collect()
        };
        assert_eq!(messages(Selection { since_ns: before, ..Selection::ALL }), ["ours"]);
        assert_eq!(messages(Selection { until_ns: before - 1, ..Selection::ALL }), ["long ago"]);
    }

    #[test]
    fn numbers_rise_although_the_clock_was_set_back() {
        let directory = tempfile::tempdir().unwrap();
        let of_machine = directory.path().join(machine().as_str());
        fs::create_dir_all(&of_machine).unwrap();
        let late = now_ns() + 3_600_000_000_000;
        let line = format!("{{\"n\":{late},\"t\":1,\"s\":\"stdout\",\"m\":\"before\"}}\n");
        fs::write(of_machine.join("000001.log"), line).unwrap();
        let logs = Logs::open(directory.path().to_owned(), 1 << 20).unwrap();
        write(&logs, 7, 1, "after");
        let lines = logs.read(&machine(), &Selection { after: late, ..Selection::ALL }).unwrap();
        assert_eq!((lines[0].message.as_str(), lines[0].number), ("after", late + 1));
    }
}
