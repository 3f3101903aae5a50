//! The machine's program, or programs: their streams and how they ended. Several live together:
//! when one ends, the others are ended too, and how that one ended is how the machine did.

use std::{
    fs::File,
    io::{ErrorKind, Read as _},
    path::Path,
    time::{Duration, Instant},
};

use caddis_guest_protocol::{
    MachineSpec,
    message::{ExitReport, LogSource},
};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::WaitStatus,
    },
    unistd::Pid,
};

use crate::{
    clock,
    configure::{self, Prepared},
    execs,
    launch::Launch,
    launcher::Launcher,
    limits::Limits,
    lines::{Lines, Record},
    logs::Backlog,
    modprobe,
    namespaces::{self, Kind, Namespaces},
    spawn::{self, As},
    users,
};

/// Their cgroup.
pub const CGROUP: &str = "program";
/// Time until a line without end is sent all the same.
const LINE_TIMEOUT: Duration = Duration::from_millis(200);
/// What is read after the end of all: what their children go on to write is not waited for.
const OUTPUT_TAIL_BYTES: usize = 4 << 20;
/// Time the others have to end when one has.
const OTHERS_TIMEOUT: Duration = Duration::from_secs(5);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Exit status, or 128 + signal.
    pub code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// The kernel killed it for want of memory.
    pub oom_killed: bool,
}

/// A program that is process 1 of namespaces of its own.
struct Leader {
    pid: i32,
    kind: Kind,
    /// How it was called.
    name: String,
    env: Vec<(String, String)>,
}

/// Those that run.
#[derive(Default)]
pub struct Programs {
    /// What the first of them is to come from.
    launcher: Option<Launcher>,
    pids: Vec<i32>,
    leader: Option<Leader>,
    /// Those that do not run yet.
    launching: Vec<Launch>,
    /// Process id of the first, until it is told that all run.
    first: Option<i32>,
    /// How the first to end did.
    first_end: Option<End>,
    /// The others are killed then.
    kill_at: Option<Instant>,
    /// The machine is to be switched off: how they end does not matter.
    switched_off: bool,
    /// Keep terminals' other ends open.
    inputs: Vec<File>,
    pipes: Vec<LogPipe>,
}

/// One stream of a program.
struct LogPipe {
    file: Option<File>,
    source: LogSource,
    readable: bool,
    lines: Lines,
    flush_at: Option<Instant>,
}

impl Programs {
    /// Starts all, and has their streams watched. [`Self::settle`] tells what comes of it; the
    /// error is for the user.
    pub fn start(
        &mut self,
        spec: &MachineSpec,
        machine: &Prepared,
        launcher: Option<Launcher>,
        watch: impl Fn(&File) -> Result<(), String>,
    ) -> Result<(), String> {
        self.launcher = launcher;
        let started = self.start_all(spec, machine, &watch);
        // Where it is of no use it ends.
        self.launcher = None;
        self.first = started.as_ref().ok().copied();
        if started.is_err() {
            self.give_up();
        }
        started.map(drop)
    }

    fn give_up(&mut self) {
        self.signal(Signal::SIGKILL);
        self.pids.clear();
        self.leader = None;
        self.launching.clear();
        self.first = None;
    }

    /// Once, when all run: the process id of the first; or why one of them never will, and then
    /// none does.
    pub fn settle(&mut self, now: Instant) -> Option<Result<i32, String>> {
        let mut failed = None;
        self.launching.retain_mut(|launch| match launch.settle(now) {
            None => true,
            Some(outcome) => {
                failed = failed.take().or(outcome.err().map(|not_begun| not_begun.reason));
                false
            }
        });
        if let Some(reason) = failed {
            self.give_up();
            return Some(Err(reason));
        }
        if self.launching.is_empty() { self.first.take().map(Ok) } else { None }
    }

    fn start_all(
        &mut self,
        spec: &MachineSpec,
        machine: &Prepared,
        watch: &impl Fn(&File) -> Result<(), String>,
    ) -> Result<i32, String> {
        if modprobe::is_in_image() {
            // It looks for modules on its own: no other image pays for it.
            modprobe::mount_modules();
        }
        let first = match leader_kind(spec, machine) {
            Some(kind) => self.start_leader(kind, spec, machine, watch)?,
            None => self.start_one(
                spec,
                (&spec.argv, Namespaces::Inits),
                (&machine.env, &machine.user, machine.limits),
                watch,
            )?,
        };
        for other in &spec.others {
            let user = users::resolve(&other.user)?;
            let env = configure::complete(&other.env, &user);
            self.start_one(
                spec,
                (&other.argv, Namespaces::Inits),
                (&env, &user, machine.limits),
                watch,
            )?;
        }
        Ok(first)
    }

    /// Starts a program that is process 1 of namespaces of its own.
    fn start_leader(
        &mut self,
        kind: Kind,
        spec: &MachineSpec,
        machine: &Prepared,
        watch: &impl Fn(&File) -> Result<(), String>,
    ) -> Result<i32, String> {
        namespaces::share_mounts()?;
        let mut env = machine.env.clone();
        let (key, value) = namespaces::CONTAINER;
        if !env.iter().any(|(known, _)| known == key) {
            env.push((key.to_owned(), value.to_owned()));
        }
        let pid = self.start_one(
            spec,
            (&spec.argv, Namespaces::Own),
            (&env, &machine.user, machine.limits),
            watch,
        )?;
        let name = spec.argv.first().cloned().unwrap_or_default();
        self.leader = Some(Leader { pid, kind, name, env });
        Ok(pid)
    }

    fn start_one(
        &mut self,
        spec: &MachineSpec,
        (argv, namespaces): (&[String], Namespaces),
        (env, user, limits): (&[(String, String)], &users::User, Limits),
        watch: &impl Fn(&File) -> Result<(), String>,
    ) -> Result<i32, String> {
        let program = spawn::Program {
            argv,
            env,
            user: As::Known(user),
            directory: &spec.working_dir,
            cgroup: CGROUP,
            terminal: spec.tty.then_some((80, 24)),
            has_input: false,
            namespaces,
            limits: Some(limits),
        };
        let launched =
            self.launcher.take().map_or(Ok(None), |launcher| launcher.launch(&program))?;
        let streams = launched.map_or_else(|| spawn::spawn(&program), Ok)?;
        watch(streams.launch.pipe())?;
        self.pids.push(streams.pid);
        self.launching.push(streams.launch);
        self.inputs.extend(streams.input);
        for (file, source) in
            [(Some(streams.output), LogSource::Stdout), (streams.error, LogSource::Stderr)]
        {
            let Some(file) = file else { continue };
            watch(&file)?;
            let (file, lines) = (Some(file), Lines::default());
            self.pipes.push(LogPipe { file, source, readable: true, lines, flush_at: None });
        }
        Ok(streams.pid)
    }

    /// Whether a process is one of them.
    pub fn has(&self, pid: i32) -> bool {
        self.pids.contains(&pid)
    }

    /// Sends all of them a signal. One that has just ended hears nothing.
    pub fn signal(&self, signal: Signal) {
        for pid in &self.pids {
            let _ = kill(Pid::from_raw(*pid), signal);
        }
    }

    /// Where programs run that are to see what the machine's own sees.
    pub fn namespaces(&self) -> Namespaces {
        self.leader.as_ref().map_or(Namespaces::Inits, |leader| Namespaces::Of(leader.pid))
    }

    /// Sends all of them a signal, or tells them to end in their own way when this one was chosen
    /// by nobody.
    pub fn tell(&self, number: i32, is_default: bool) -> Result<(), String> {
        match self
            .leader
            .as_ref()
            .filter(|_| is_default)
            .and_then(|leader| Some((leader, leader.kind.end()?)))
        {
            Some((leader, namespaces::End::Signal(own))) => spawn::send_signal(leader.pid, own),
            Some((leader, namespaces::End::Run(argument))) => leader.run(argument)?,
            None => self.pids.iter().for_each(|pid| spawn::send_signal(*pid, number)),
        }
        Ok(())
    }

    /// Ends all of them, as when one of several has ended.
    pub fn end(&mut self, now: Instant) {
        // An init system that can't be told is killed then.
        let _ = self.tell(Signal::SIGTERM as i32, true);
        self.kill_at.get_or_insert(now + OTHERS_TIMEOUT);
    }

    /// Ends all of them, as someone in the machine asks who switches it off. That is no failure.
    pub fn switch_off(&mut self, now: Instant) {
        self.switched_off = true;
        self.end(now);
    }

    /// Something may have changed on their streams.
    pub fn wake(&mut self) {
        self.pipes.iter_mut().for_each(|pipe| pipe.readable = true);
    }

    /// When something is to be done next, though nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        let flushes = self.pipes.iter().filter_map(|pipe| pipe.flush_at);
        flushes.chain(self.kill_at).chain(self.launching.iter().map(Launch::deadline)).min()
    }

    /// Kills those that did not end in time.
    pub fn check_deadline(&mut self, now: Instant) {
        if self.kill_at.take_if(|at| *at <= now).is_some() {
            self.signal(Signal::SIGKILL);
        }
    }

    /// Notes that a process has ended. When it was the last of them, gives how the first ended.
    pub fn ended(&mut self, pid: i32, end: End, logs: &mut Backlog) -> Option<End> {
        let at = self.pids.iter().position(|known| *known == pid)?;
        self.pids.swap_remove(at);
        let end = match self.leader.take_if(|leader| leader.pid == pid) {
            Some(_) => leader_end(end, logs),
            None => end,
        };
        let end =
            if self.switched_off { End { code: 0, signal: None, oom_killed: false } } else { end };
        let end = *self.first_end.get_or_insert(end);
        let now = Instant::now();
        if !self.pids.is_empty() {
            if self.kill_at.is_none() {
                self.signal(Signal::SIGTERM);
                self.kill_at = Some(now + OTHERS_TIMEOUT);
            }
            return None;
        }
        self.kill_at = None;
        self.wake();
        self.read(OUTPUT_TAIL_BYTES, now, logs);
        for mut pipe in std::mem::take(&mut self.pipes) {
            if let Some(rest) = pipe.lines.take_rest() {
                logs.push(pipe.source, rest);
            }
        }
        Some(end)
    }

    /// Reads what they write, up to `limit` of each stream. True when there may be more.
    pub fn read(&mut self, limit: usize, now: Instant, logs: &mut Backlog) -> bool {
        let mut more = false;
        let mut buffer = vec![0; 16 * 1024];
        for pipe in &mut self.pipes {
            let mut read = 0;
            while pipe.readable && read < limit {
                let Some(file) = &mut pipe.file else { break };
                match file.read(&mut buffer) {
                    Ok(0) => pipe.file = None,
                    Ok(count) => {
                        read += count;
                        for record in pipe.lines.push(&buffer[..count]) {
                            logs.push(pipe.source, record);
                        }
                        pipe.flush_at = pipe.lines.has_rest().then(|| now + LINE_TIMEOUT);
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => pipe.readable = false,
                    // A terminal that was hung up, which init systems do to their console, comes
                    // back.
                    Err(error)
                        if error.raw_os_error() == Some(libc::EIO) && self.leader.is_some() =>
                    {
                        pipe.readable = false;
                    }
                    // A terminal whose program is gone says EIO.
                    Err(_) => pipe.file = None,
                }
            }
            let late = pipe.flush_at.take_if(|at| *at <= now).is_some();
            let rest = match pipe.file {
                None => pipe.lines.take_rest(),
                Some(_) if late => pipe.lines.take_whole(),
                Some(_) => None,
            };
            if let Some(rest) = rest {
                logs.push(pipe.source, rest);
            }
            if pipe.file.is_none() {
                pipe.flush_at = None;
            }
            more |= pipe.readable && pipe.file.is_some();
        }
        more
    }
}

impl Leader {
    /// Runs the program once more, beside itself.
    fn run(&self, argument: &str) -> Result<(), String> {
        let argv = [self.name.clone(), argument.to_owned()];
        // What it says is in the way of nothing: it ends at once.
        spawn::spawn(&spawn::Program {
            argv: &argv,
            env: &self.env,
            user: As::Named(""),
            directory: "/",
            cgroup: execs::CGROUP,
            terminal: None,
            has_input: false,
            namespaces: Namespaces::Of(self.pid),
            limits: None,
        })
        .map(drop)
    }
}

/// What the first program is, when it is to be process 1 of namespaces of its own.
fn leader_kind(spec: &MachineSpec, machine: &Prepared) -> Option<Kind> {
    if spec.pid_namespace == Some(false) || !spec.others.is_empty() {
        return None;
    }
    let directory = Path::new("/").join(&spec.working_dir);
    // What can't be found is told when it is started.
    let path = spawn::find(spec.argv.first()?, &machine.env, &directory).ok();
    let kind = path.and_then(|path| namespaces::kind(&path, &spec.argv));
    kind.or((spec.pid_namespace == Some(true)).then_some(Kind::Other))
}

/// How process 1 of namespaces ended. Who asks for a reboot or the power to be off there has it
/// killed by the kernel, with a signal that says which (reboot(2)): it is an end like any other.
fn leader_end(end: End, logs: &mut Backlog) -> End {
    let asked = match end.signal {
        Some(libc::SIGHUP) => "a reboot",
        Some(libc::SIGINT) => "the power to be off",
        _ => return end,
    };
    let text = format!("the program asked for {asked}: the machine has ended\n").into_bytes();
    logs.push(LogSource::Init, Record { text, partial: false });
    End { code: 0, signal: None, oom_killed: false }
}

/// How a process ended, as far as its status tells. `None` when it has not.
pub fn end(status: WaitStatus) -> Option<End> {
    match status {
        WaitStatus::Exited(_, code) => Some(End { code, signal: None, oom_killed: false }),
        WaitStatus::Signaled(_, signal, _) => {
            let signal = signal as i32;
            Some(End { code: 128 + signal, signal: Some(signal), oom_killed: false })
        }
        _ => None,
    }
}

/// The report on the program's end.
pub fn report(End { code, signal, oom_killed }: End) -> ExitReport {
    ExitReport { code, signal, oom_killed, exited_at_ns: clock::now_ns(), logs_complete: false }
}
