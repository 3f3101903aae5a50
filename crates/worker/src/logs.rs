//! Logs of the programs: lines in files, per machine, bounded.
//!
//! One thread writes for all machines. It numbers every line (nanoseconds of the clock, but always
//! rising), so that a reader of several machines has one position for all of them: lines up to
//! [`Logs::position`] are in the files. A record of the guest is acknowledged only once its lines
//! are in the file; after a crash of this process the files tell how far that was
//! ([`Logs::acknowledged`]).

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use caddis_api::{MachineId, MachineState, event::MachineEvent};
use caddis_bus::message::HostLine;
use caddis_guest_protocol::{message::LogSource, text};
use tokio::sync::{oneshot, watch};

use crate::{clock::host_now_ns, runner};

mod line;
mod read;
#[cfg(test)]
mod tests;

pub use line::Line;
use line::NewLine;
pub use read::Selection;
use read::segments;

/// Files per machine: the newest is written, the oldest is removed when all are full.
const SEGMENTS: u64 = 4;
/// A line longer than this is cut into several.
const MAX_LINE_BYTES: usize = 16 * 1024;

enum Job {
    Append {
        machine: MachineId,
        lines: Vec<NewLine>,
        done: Box<dyn FnOnce() + Send>,
    },
    /// Of the proxy, about the machine.
    Told {
        machine: MachineId,
        lines: Vec<NewLine>,
    },
    /// Of the machine, oldest first: lines about those that have none yet.
    Events {
        machine: MachineId,
        events: Vec<MachineEvent>,
        known: bool,
    },
    Close {
        machine: MachineId,
    },
    Remove {
        machine: MachineId,
    },
    Barrier(oneshot::Sender<()>),
}

/// The logs of all machines of a worker. Clones share them; the last one to go waits until all is
/// written.
#[derive(Clone)]
pub struct Logs {
    directory: PathBuf,
    thread: Arc<WritingThread>,
    position: watch::Receiver<u64>,
}

struct WritingThread {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for WritingThread {
    fn drop(&mut self) {
        // It ends with its queue.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been told on standard error.
            let _ = thread.join();
        }
    }
}

impl Logs {
    /// Logs below `directory`, at most `bytes_per_machine` each.
    ///
    /// # Errors
    /// When the directory can't be made or the thread can't be started.
    pub fn open(directory: PathBuf, bytes_per_machine: u64) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        let (jobs, queue) = mpsc::channel();
        let (position, reader) = watch::channel(host_now_ns());
        let segment_bytes = (bytes_per_machine / SEGMENTS).max(64 * 1024);
        let mut writer = Writer {
            directory: directory.clone(),
            segment_bytes,
            files: HashMap::new(),
            lost: HashMap::new(),
            last: host_now_ns(),
        };
        let thread = thread::Builder::new().name("worker-logs".to_owned()).spawn(move || {
            for job in queue {
                match job {
                    Job::Append { machine, lines, done } => {
                        if let Err(e) = writer.append(&machine, lines) {
                            tracing::error!(machine = %machine, error = %e, "can't write log \
                                lines");
                        }
                        position.send_replace(writer.last);
                        done();
                    }
                    Job::Events { machine, events, known } => {
                        if let Err(e) = writer.tell(&machine, &events, known) {
                            tracing::error!(machine = %machine, error = %e, "can't write log \
                                lines");
                        }
                        position.send_replace(writer.last);
                    }
                    Job::Told { machine, lines } => {
                        let keep = writer.files.contains_key(&machine);
                        if let Err(e) = writer.append_and(&machine, lines, keep) {
                            tracing::error!(machine = %machine, error = %e, "can't write log \
                                lines");
                        }
                        position.send_replace(writer.last);
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
        let thread = Arc::new(WritingThread { jobs: Some(jobs), thread: Some(thread) });
        Ok(Self { directory, thread, position: reader })
    }

    /// Waits until all that was appended so far is in the files.
    pub async fn written(&self) {
        let (passed, all) = oneshot::channel();
        self.send(Job::Barrier(passed));
        // Fails only when the thread has ended; then nothing is written any more.
        let _ = all.await;
    }

    /// Writes a record of the guest, counted by the boot `boot`, and calls `done` once it is in the
    /// file.
    pub fn append_record(
        &self,
        machine: &MachineId,
        boot: u64,
        record: (u64, LogSource, u64, u64, bool),
        text: &Bytes,
        done: impl FnOnce() + Send + 'static,
    ) {
        let (sequence, source, time_ns, dropped, partial) = record;
        let source = match source {
            LogSource::Stdout => "stdout",
            LogSource::Stderr => "stderr",
            LogSource::Init => "init",
        };
        let mut lines = Vec::new();
        if dropped > 0 {
            let message = format!(
                "{dropped} log records were lost: the program wrote faster than they could be taken"
            );
            lines.push(NewLine::of_record("runner", time_ns, (boot, sequence), message));
        }
        for (line, partial) in split(text, partial) {
            let line = NewLine::of_record(source, time_ns, (boot, sequence), line);
            lines.push(NewLine { partial, ..line });
        }
        self.send(Job::Append { machine: machine.clone(), lines, done: Box::new(done) });
    }

    /// Writes lines of the proxy about a machine.
    pub fn append_of_proxy(&self, machine: &MachineId, lines: Vec<HostLine>) {
        let lines = lines.iter().flat_map(NewLine::of_proxy).collect();
        self.send(Job::Told { machine: machine.clone(), lines });
    }

    /// Writes the lines about events that have just been recorded, oldest first.
    pub fn append_events(&self, machine: &MachineId, events: &[MachineEvent]) {
        if events.iter().any(|event| !runner::lines(event).is_empty()) {
            self.send(Job::Events {
                machine: machine.clone(),
                events: events.to_vec(),
                known: true,
            });
        }
    }

    /// Writes the lines about those of a machine's latest events, oldest first, that an earlier
    /// process has recorded and not written.
    pub fn catch_up(&self, machine: &MachineId, events: Vec<MachineEvent>) {
        self.send(Job::Events { machine: machine.clone(), events, known: false });
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
        if let Some(jobs) = &self.thread.jobs {
            // The thread lives as long as its sender.
            let _ = jobs.send(job);
        }
    }

    /// Lines up to this number are in the files; changes when more are.
    pub fn position(&self) -> watch::Receiver<u64> {
        self.position.clone()
    }

    /// The last record of `boot` that is in the files, 0 when there is none. Reads files; not for
    /// an async task.
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

/// Lines of a record, without line ends, and whether each goes on in the next; what is no UTF-8 is
/// replaced. `partial` says so of the last.
fn split(text: &[u8], partial: bool) -> Vec<(String, bool)> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let mut pieces = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let mut line = line.strip_suffix(b"\r").unwrap_or(line);
        while let Some(window) =
            line.get(..MAX_LINE_BYTES).filter(|window| window.len() < line.len())
        {
            let (piece, rest) = line.split_at(text::whole(window));
            pieces.push((String::from_utf8_lossy(piece).into_owned(), true));
            line = rest;
        }
        pieces.push((String::from_utf8_lossy(line).into_owned(), false));
    }
    if let Some((_, last)) = pieces.last_mut() {
        *last = partial;
    }
    pieces
}

struct Writer {
    directory: PathBuf,
    segment_bytes: u64,
    files: HashMap<MachineId, (u64, File, u64)>,
    /// Lines that could not be written, by machine, until one can that says how many.
    lost: HashMap<MachineId, u64>,
    last: u64,
}

impl Writer {
    /// Writes the lines about events. Whether they are written already is looked up, unless it is
    /// `known` that they are not. A file that was not open is closed again, and so is that of a
    /// machine that has come to rest: there are many quiet ones.
    fn tell(
        &mut self,
        machine: &MachineId,
        events: &[MachineEvent],
        known: bool,
    ) -> io::Result<()> {
        let mut lines: Vec<_> = events.iter().flat_map(NewLine::of_event).collect();
        if !known {
            let newest = read::newest(&self.directory.join(machine.as_str()))?;
            self.last = self.last.max(newest.number);
            lines.retain(|line| match &newest.event {
                Some(written) => line.event.as_ref() > Some(written),
                // What is missing came after all there is.
                None => line.time_ns > newest.number,
            });
        }
        if lines.is_empty() {
            return Ok(());
        }
        let keep = self.files.contains_key(machine) && events.last().is_none_or(goes_on);
        self.append_and(machine, lines, keep)
    }

    /// Writes lines, and keeps the file open or not.
    fn append_and(
        &mut self,
        machine: &MachineId,
        lines: Vec<NewLine>,
        keep: bool,
    ) -> io::Result<()> {
        let written = self.append(machine, lines);
        if !keep {
            self.files.remove(machine);
        }
        written
    }

    /// Writes lines, or counts them as lost.
    fn append(&mut self, machine: &MachineId, mut lines: Vec<NewLine>) -> io::Result<()> {
        let count = lines.len() as u64;
        if let (Some(lost), Some(first)) = (self.lost.get(machine), lines.first()) {
            let message = format!(
                "{lost} lines were lost: the host could not write them, its disk may have been full"
            );
            let (record, level) = (first.record, Some(runner::Level::Error.as_str()));
            lines.insert(
                0,
                NewLine {
                    time_ns: host_now_ns(),
                    source: "runner",
                    record,
                    event: None,
                    level,
                    partial: false,
                    message,
                },
            );
        }
        match self.write(machine, lines) {
            Ok(()) => {
                self.lost.remove(machine);
                Ok(())
            }
            Err(error) => {
                let lost = self.lost.entry(machine.clone()).or_default();
                *lost += count;
                // Once, whatever comes: what can't be written would fill another disk with what is
                // said of it.
                if *lost == count { Err(error) } else { Ok(()) }
            }
        }
    }

    fn write(&mut self, machine: &MachineId, lines: Vec<NewLine>) -> io::Result<()> {
        let (segment, mut file, written) = match self.files.remove(machine) {
            Some(open) => open,
            None => self.open(machine)?,
        };
        let mut text = Vec::new();
        for line in lines {
            self.last = host_now_ns().max(self.last + 1);
            let NewLine { time_ns, source, record, event, level, partial, message } = line;
            let (source, level) = (source.to_owned(), level.map(str::to_owned));
            let line =
                Line { number: self.last, time_ns, source, record, event, level, partial, message };
            serde_json::to_writer(&mut text, &line)?;
            text.push(b'\n');
        }
        if let Err(error) = file.write_all(&text) {
            // What is counted as lost is not to be there in part.
            file.set_len(written)?;
            return Err(error);
        }
        let written = written + text.len() as u64;
        if written < self.segment_bytes {
            self.files.insert(machine.clone(), (segment, file, written));
            return Ok(());
        }
        if let Err(error) = self.rotate(machine, segment + 1) {
            // The lines are written. The next ones try it again.
            tracing::warn!(machine = %machine, %error, "can't begin a new log file");
        }
        Ok(())
    }

    /// Begins another file and removes the oldest.
    fn rotate(&mut self, machine: &MachineId, segment: u64) -> io::Result<()> {
        let directory = self.directory.join(machine.as_str());
        let file = create(&directory, segment)?;
        self.files.insert(machine.clone(), (segment, file, 0));
        for (number, path) in segments(&directory)? {
            if number + SEGMENTS <= segment {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn open(&mut self, machine: &MachineId) -> io::Result<(u64, File, u64)> {
        let directory = self.directory.join(machine.as_str());
        fs::create_dir_all(&directory)?;
        let Some((number, path)) = segments(&directory)?.pop() else {
            return Ok((1, create(&directory, 1)?, 0));
        };
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
        self.lost.remove(machine);
        match fs::remove_dir_all(self.directory.join(machine.as_str())) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::error!(machine = %machine, error = %e, "can't remove logs");
            }
            _ => {}
        }
    }
}

/// Whether its program may write more after this event.
fn goes_on(event: &MachineEvent) -> bool {
    use MachineState::{Destroyed, Failed, Stopped, Suspended};
    ![Stopped, Failed, Suspended, Destroyed].iter().any(|settled| settled.as_str() == event.status)
}

fn create(directory: &Path, segment: u64) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(directory.join(format!("{segment:06}.log")))
}
