//! Programs run beside the machine's own.

use std::{
    collections::VecDeque,
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    time::{Duration, Instant},
};

use bytes::{Buf as _, Bytes};
use caddis_guest_protocol::{
    GuestMessage, STREAM_WINDOW_BYTES,
    message::{ExecRequest, LogSource},
};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::{Pid, tcgetpgrp},
};

use crate::{
    configure::Prepared,
    files,
    launch::{Launch, NotBegun},
    namespaces::Namespaces,
    port::Port,
    sessions,
    spawn::{self, As},
};

/// Cgroup of all of them.
pub const CGROUP: &str = "exec";

/// Bytes read at once.
const CHUNK: usize = 32 * 1024;

/// One of a process's streams, read when there is something and somebody takes it.
pub struct Output {
    file: Option<File>,
    source: LogSource,
    /// There may be something to read: nothing tells again until it was read to the end.
    readable: bool,
}

/// A running exec.
pub struct Exec {
    /// Its stream.
    pub id: u32,
    /// Its process.
    pub pid: i32,
    /// Until its program runs.
    launch: Option<Launch>,
    input: Option<File>,
    pending: VecDeque<Bytes>,
    /// The last byte that was taken for it.
    last: Option<u8>,
    input_ends: bool,
    terminal: bool,
    outputs: Vec<Output>,
    credit: usize,
    ended: Option<(i32, Option<i32>)>,
    deadline: Option<Instant>,
    timed_out: bool,
    /// The machine's programs go on as long as this runs.
    pub holds_machine: bool,
}

impl Exec {
    /// Starts it.
    pub fn start(
        request: &ExecRequest,
        machine: &Prepared,
        directory: &str,
        namespaces: Namespaces,
    ) -> Result<Self, String> {
        let (user, mut env) = match &request.user {
            // Another user has another home.
            Some(user) => (
                As::Named(user),
                machine.env.iter().filter(|(key, _)| key != "HOME").cloned().collect(),
            ),
            None => (As::Known(&machine.user), machine.env.clone()),
        };
        let terminal = request.terminal.map(|_| ("TERM".to_owned(), "xterm-256color".to_owned()));
        for (key, value) in terminal.iter().chain(&request.env) {
            match env.iter_mut().find(|(known, _)| known == key) {
                Some((_, old)) => old.clone_from(value),
                None => env.push((key.clone(), value.clone())),
            }
        }
        let argv = if request.files { files::command(&request.argv) } else { request.argv.clone() };
        let streams = spawn::spawn(&spawn::Program {
            argv: &argv,
            env: &env,
            user,
            directory: request.working_dir.as_deref().unwrap_or(directory),
            cgroup: CGROUP,
            terminal: request.terminal,
            has_input: request.has_input,
            namespaces,
            limits: Some(machine.limits),
        })?;
        let output = |file, source| Output { file: Some(file), source, readable: true };
        let mut outputs = vec![output(streams.output, LogSource::Stdout)];
        outputs.extend(streams.error.map(|file| output(file, LogSource::Stderr)));
        let timeout = Duration::from_millis(request.timeout_ms);
        Ok(Self {
            id: request.id,
            pid: streams.pid,
            launch: Some(streams.launch),
            input: streams.input,
            pending: VecDeque::new(),
            last: None,
            input_ends: false,
            terminal: request.terminal.is_some(),
            outputs,
            credit: STREAM_WINDOW_BYTES,
            ended: None,
            deadline: Instant::now().checked_add(timeout).filter(|_| !timeout.is_zero()),
            timed_out: false,
            holds_machine: request.holds_machine,
        })
    }

    /// The files to be told about: for reading, and for writing.
    pub fn files(&self) -> (Vec<&File>, Option<&File>) {
        let outputs = self.outputs.iter().filter_map(|output| output.file.as_ref());
        (outputs.chain(self.launch.as_ref().map(Launch::pipe)).collect(), self.input.as_ref())
    }

    /// Something may have changed on its streams.
    pub fn wake(&mut self) {
        self.outputs.iter_mut().for_each(|output| output.readable = true);
    }

    /// Takes input for the program.
    pub fn push_input(&mut self, bytes: Bytes) {
        if self.input.is_some() && !bytes.is_empty() {
            self.last = bytes.last().copied();
            self.pending.push_back(bytes);
        }
    }

    /// No more input follows.
    pub fn end_input(&mut self) {
        if self.terminal && !self.input_ends && self.input.is_some() {
            // End of input, as a person types it: after an unfinished line once more, since the
            // first ends that.
            let unfinished = self.last.is_some_and(|last| last != b'\n' && last != b'\r');
            self.pending.push_back(Bytes::from_static(if unfinished { &[4, 4] } else { &[4] }));
        }
        self.input_ends = true;
    }

    /// More output may be sent.
    pub fn add_credit(&mut self, bytes: u32) {
        self.credit = self.credit.saturating_add(bytes as usize);
    }

    /// Its terminal has a new size.
    pub fn resize(&self, columns: u16, rows: u16) {
        if let Some(terminal) = self.terminal() {
            spawn::resize(terminal, columns, rows);
        }
    }

    fn terminal(&self) -> Option<&File> {
        self.outputs.first().and_then(|output| output.file.as_ref()).filter(|_| self.terminal)
    }

    /// Sends a signal, by its number, to what runs in the foreground of its terminal, or to its
    /// process group.
    pub fn signal(&self, number: i32) {
        let foreground =
            self.terminal().and_then(|terminal| tcgetpgrp(terminal).ok()).map(Pid::as_raw);
        // A terminal that nobody has as theirs says 0, which would be init's own group.
        let group = foreground.filter(|group| *group > 1).unwrap_or(self.pid);
        if self.ended.is_none() {
            spawn::send_signal(-group, number);
        }
    }

    /// Tells it and what it has started that nobody listens any more. Gives what to kill later.
    pub fn hang_up(self) -> i32 {
        if self.launch.is_some() {
            // It is no program yet that could do something about it.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
        sessions::signal(self.pid, Signal::SIGHUP);
        // What stands still hears nothing.
        sessions::signal(self.pid, Signal::SIGCONT);
        self.pid
    }

    /// Kills it and what it has started.
    pub fn kill(&self) {
        if self.ended.is_none() {
            // It leads its own group, or is about to; it may have just ended.
            let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }

    /// Its process has ended.
    pub fn note_end(&mut self, code: i32, signal: Option<i32>) {
        self.ended = Some((code, signal));
        self.input = None;
        self.deadline = None;
        self.wake();
    }

    /// When it is to be killed.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline.into_iter().chain(self.launch.as_ref().map(Launch::deadline)).min()
    }

    /// Kills it when its time is over.
    pub fn check_deadline(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            self.timed_out = true;
            self.kill();
        }
    }

    /// Moves what can be moved. True when it is over and all was said.
    pub fn pump(&mut self, now: Instant, port: &mut Port) -> bool {
        match self.launch.as_mut().and_then(|launch| launch.settle(now)) {
            Some(Ok(())) => self.launch = None,
            Some(Err(NotBegun { code, reason })) => {
                port.send(&GuestMessage::ExecFailed { id: self.id, message: reason, code }, b"");
                return true;
            }
            None => {}
        }
        self.write_input(port);
        let mut drained = true;
        for at in 0..self.outputs.len() {
            drained &= self.read_output(at, port);
        }
        // A process that has ended has closed its end of the launch's pipe, which may tell of a
        // failure first.
        let over = drained && self.launch.is_none();
        let Some((code, signal)) = self.ended.filter(|_| over) else { return false };
        port.send(
            &GuestMessage::ExecFinished { id: self.id, code, signal, timed_out: self.timed_out },
            b"",
        );
        true
    }

    /// Whether there is something to be read that nobody would tell of again.
    pub fn is_busy(&self, port: &Port) -> bool {
        self.credit > 0
            && port.has_room()
            && self.outputs.iter().any(|output| output.readable && output.file.is_some())
    }

    fn write_input(&mut self, port: &mut Port) {
        let mut taken = 0;
        while let (Some(file), Some(front)) = (&mut self.input, self.pending.front_mut()) {
            match file.write(front) {
                Ok(count) => {
                    taken += count;
                    front.advance(count.min(front.len()));
                    if front.is_empty() {
                        self.pending.pop_front();
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // It reads no more: what is sent to it is taken and dropped.
                Err(_) => {
                    taken += self.pending.drain(..).map(|bytes| bytes.len()).sum::<usize>();
                    self.input = None;
                }
            }
        }
        if taken > 0 {
            port.send(
                &GuestMessage::Credit {
                    id: self.id,
                    bytes: u32::try_from(taken).unwrap_or(u32::MAX),
                },
                b"",
            );
        }
        if self.input_ends && self.pending.is_empty() {
            self.input = None;
        }
    }

    /// Sends what the window allows. True when there is no more to come, or nothing now from a
    /// process that ended.
    fn read_output(&mut self, at: usize, port: &mut Port) -> bool {
        let Some(output) = self.outputs.get_mut(at) else { return true };
        let mut buffer = vec![0; CHUNK];
        while output.readable && self.credit > 0 && port.has_room() {
            let Some(file) = &mut output.file else { return true };
            let room = CHUNK.min(self.credit);
            match file.read(&mut buffer[..room]) {
                Ok(0) => output.file = None,
                Ok(count) => {
                    self.credit -= count;
                    port.send(
                        &GuestMessage::Output { id: self.id, source: output.source },
                        &buffer[..count],
                    );
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => output.readable = false,
                // A terminal whose program is gone says EIO.
                Err(_) => output.file = None,
            }
            if output.file.is_none() {
                return true;
            }
        }
        output.file.is_none() || !output.readable
    }
}
