//! The event loop.

use std::{
    os::fd::AsFd,
    path::Path,
    time::{Duration, Instant},
};

use caddis_guest_protocol::{
    GuestMessage, GuestState, HostMessage, MachineSpec, OLDEST_SUPPORTED_VERSION, PROTOCOL_VERSION,
    VICTIMS_SINCE,
    frame::Frame,
    message::{ExecRequest, LogSource},
};
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

use crate::{
    clock,
    configure::{self, Prepared},
    execs::Exec,
    freezer::Freezer,
    image_files, kernel,
    launcher::Launcher,
    lines::Record,
    logs::Backlog,
    memory,
    oom::{Victim, Victims},
    port::Port,
    processes,
    program::{self, Programs},
    rehearsal, sessions,
    timing::Timing,
};

/// Marks of what epoll tells about; everything else is some stream, and all of them are looked at.
const SIGNALS: u64 = 1;
const STREAMS: u64 = 2;
const KERNEL_LOG: u64 = 3;

/// How long an exit report waits for the log lines before it to be sent, and the end of the VM for
/// them to be safe.
const LOG_PATIENCE: Duration = Duration::from_secs(2);
/// What is read of a program's streams before others get a turn, bytes.
const TURN: usize = 256 * 1024;
/// Processes listed at most, so that the list fits a frame.
const MOST_PROCESSES: usize = 1000;
/// How long programs stand still at most until the host's time is known exactly.
const TIME_PATIENCE: Duration = Duration::from_secs(1);
/// Highest signal number, that of the last real-time signal.
const LAST_SIGNAL: i32 = 64;
/// Time that an exec which was hung up on has to end.
const HANG_UP_PATIENCE: Duration = Duration::from_secs(5);
/// Says `resume` after the machine was resumed: a program that can't notice may look there.
const START_KIND: &str = "/.caddis/start_kind";
const RESUMED: &str = "resume\n";

/// By which poweroff, halt and reboot of busybox tell init, which is the one program that may not
/// be asked otherwise. Those of systemd, and whoever insists, ask the kernel, and the VM ends at
/// once.
const SWITCH_OFF: [Signal; 3] = [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGTERM];

struct Guest {
    epoll: Epoll,
    signals: SignalFd,
    port: Port,
    timing: Timing,
    sync: clock::Sync,
    status: GuestState,
    spec: Option<MachineSpec>,
    prepared: Option<Prepared>,
    programs: Programs,
    /// What the machine's program is to come from.
    launcher: Option<Launcher>,
    victims: Victims,
    /// The version both ends of this connection speak.
    protocol: u32,
    logs: Backlog,
    execs: Vec<Exec>,
    /// Sessions that were hung up on, and when they are killed.
    hung_up: Vec<(i32, Instant)>,
    /// An exec holds the machine: its own programs' end is not the end.
    held: bool,
    /// How the programs ended while one did.
    held_end: Option<GuestState>,
    /// The host of this connection knows of the end.
    told_end: bool,
    ended_at: Option<Instant>,
    /// Who is told, and by when, that programs go on: once the clock is right.
    thawing: Option<(u32, Instant)>,
    freezer: Freezer,
    /// Programs were told of a resume that has not come yet; whether they were not told of an
    /// earlier one.
    told_resume: Option<bool>,
    /// The report is safe: the VM ends at this time, or once all logs are safe too.
    power_off_at: Option<Instant>,
}

/// Works until the VM is to end.
pub fn run() -> Result<(), String> {
    kernel::mount_early()?;
    kernel::hurry(true);
    let mut timing = Timing::begin();
    kernel::load_modules()?;
    timing.step("modules");
    let failed = |what: &'static str| move |error: nix::Error| format!("can't {what}: {error}");
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    SWITCH_OFF.into_iter().for_each(|signal| mask.add(signal));
    mask.thread_block().map_err(failed("block signals"))?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(failed("watch signals"))?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed("watch events"))?;
    let port = Port::open()?;
    epoll
        .add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNALS))
        .map_err(failed("watch signals"))?;
    watch(&epoll, &port)?;
    timing.step("port");
    let warnings = configure::prepare_early()?;
    kernel::empty_initrd();
    let launcher = Launcher::start()?;
    timing.step("mounts");
    let mut guest = Guest {
        epoll,
        signals,
        port,
        timing,
        sync: clock::Sync::default(),
        status: GuestState::Waiting,
        spec: None,
        prepared: None,
        programs: Programs::default(),
        launcher: Some(launcher),
        victims: Victims::default(),
        protocol: OLDEST_SUPPORTED_VERSION,
        logs: Backlog::new(),
        execs: Vec::new(),
        hung_up: Vec::new(),
        held: false,
        held_end: None,
        told_end: false,
        ended_at: None,
        thawing: None,
        freezer: Freezer::default(),
        told_resume: None,
        power_off_at: None,
    };
    warnings.into_iter().for_each(|warning| guest.warn(Err(warning)));
    guest.work()
}

/// Told once per change: an event means that there is something to do until nothing is left.
fn watch(epoll: &Epoll, file: impl AsFd) -> Result<(), String> {
    watch_as(epoll, file, STREAMS)
}

fn watch_as(epoll: &Epoll, file: impl AsFd, mark: u64) -> Result<(), String> {
    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
    epoll.add(file, EpollEvent::new(flags, mark)).map_err(|e| format!("can't watch a stream: {e}"))
}

impl Guest {
    fn work(&mut self) -> Result<(), String> {
        let mut events = [EpollEvent::empty(); 16];
        loop {
            for frame in self.port.receive() {
                if self.receive(frame) {
                    return Ok(());
                }
            }
            let now = Instant::now();
            if self.thawing.is_some_and(|(_, at)| at <= now) {
                self.go_on();
            }
            self.programs.check_deadline(now);
            for (session, _) in self.hung_up.extract_if(.., |(_, at)| *at <= now) {
                sessions::kill_all(session);
            }
            let busy = self.pump() | self.let_go(now);
            if self.power_off_at.is_some_and(|at| at <= now || self.logs.is_empty()) {
                return Ok(());
            }
            let count = match self.epoll.wait(&mut events, self.timeout(busy, now)) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(format!("can't wait for events: {error}")),
            };
            for event in &events[..count] {
                match event.data() {
                    SIGNALS => self.hear_signals(),
                    KERNEL_LOG => self.note_victims(),
                    _ => self.wake(),
                }
            }
        }
    }

    /// Any stream may have changed. They are few.
    fn wake(&mut self) {
        self.programs.wake();
        self.execs.iter_mut().for_each(Exec::wake);
    }

    fn timeout(&self, busy: bool, now: Instant) -> EpollTimeout {
        if busy {
            return EpollTimeout::ZERO;
        }
        let ended = self.ended_at.filter(|_| !self.told_end).map(|at| at + LOG_PATIENCE);
        let execs = self.execs.iter().filter_map(Exec::deadline);
        let thawing = self.thawing.map(|(_, at)| at);
        let hung_up = self.hung_up.iter().map(|(_, at)| *at);
        let programs = self.programs.deadline();
        let next = programs
            .into_iter()
            .chain(execs)
            .chain(hung_up)
            .chain(ended)
            .chain(thawing)
            .chain(self.power_off_at)
            .min();
        // One more than the rest, so as not to wake before the time.
        let wait = next.map(|at| at.saturating_duration_since(now).as_millis() + 1);
        wait.map_or(EpollTimeout::NONE, |ms| {
            EpollTimeout::try_from(i32::try_from(ms).unwrap_or(i32::MAX))
                .unwrap_or(EpollTimeout::NONE)
        })
    }

    /// Moves everything that can be moved. True when there is more to do at once.
    fn pump(&mut self) -> bool {
        let now = Instant::now();
        self.settle(now);
        let mut busy = self.programs.read(TURN, now, &mut self.logs);
        self.execs.iter_mut().for_each(|exec| exec.check_deadline(now));
        loop {
            while self.port.has_room()
                && let Some((message, text)) = self.logs.next()
            {
                self.port.send(&message, &text);
            }
            let waited = self.ended_at.is_some_and(|at| now >= at + LOG_PATIENCE);
            if self.ended_at.is_some()
                && !self.told_end
                && self.port.epoch().is_some()
                && (self.logs.is_sent() || waited)
            {
                self.told_end = true;
                if let GuestState::Exited(report) = &mut self.status {
                    report.logs_complete = self.logs.is_sent();
                }
                self.port.send(&GuestMessage::Finished(self.status.clone()), b"");
            }
            let port = &mut self.port;
            self.execs.retain_mut(|exec| !exec.pump(now, port));
            if !self.port.flush() {
                break;
            }
        }
        busy |= self.execs.iter().any(|exec| exec.is_busy(&self.port));
        busy
    }

    fn hear_signals(&mut self) {
        let mut heard = Vec::new();
        while let Ok(Some(signal)) = self.signals.read_signal() {
            heard.push(signal.ssi_signo.cast_signed());
        }
        self.reap();
        if heard.iter().any(|heard| SWITCH_OFF.into_iter().any(|signal| signal as i32 == *heard)) {
            self.warn(Err("a program of the machine has switched it off".to_owned()));
            match self.held_end {
                // Its own programs have ended: what ends now is what holds it.
                Some(_) => self.hang_up(|exec| exec.holds_machine),
                None => self.programs.switch_off(Instant::now()),
            }
        }
    }

    /// Tells of processes that the kernel has killed for want of memory.
    fn note_victims(&mut self) {
        for Victim { pid, name } in self.victims.read() {
            self.warn(Err(format!("out of memory: the kernel killed process {pid} ({name})")));
            // Where nobody takes it the line in the log has to do.
            if !self.programs.has(pid) && self.protocol >= VICTIMS_SINCE && self.port.has_room() {
                self.port.send(&GuestMessage::OutOfMemory { pid, name }, b"");
            }
        }
    }

    /// Collects processes that have ended.
    fn reap(&mut self) {
        // The kernel says why before they end.
        self.note_victims();
        loop {
            match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(status) => match (status.pid(), program::end(status)) {
                    (Some(pid), Some(end)) => self.process_ended(pid.as_raw(), end),
                    (None, _) => return,
                    _ => {}
                },
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    fn process_ended(&mut self, pid: i32, end: program::End) {
        let end = program::End { oom_killed: self.victims.take(pid), ..end };
        if let Some(exec) = self.execs.iter_mut().find(|exec| exec.pid == pid) {
            exec.note_end(end.code, end.signal);
        }
        // What it was comes before how it ended.
        self.settle(Instant::now());
        if let Some(end) = self.programs.ended(pid, end, &mut self.logs) {
            let end = GuestState::Exited(program::report(end));
            match self.held {
                true => self.held_end = Some(end),
                false => self.end(end),
            }
        }
    }

    /// Ends the machine when what held it is over. True when there is something to be said at once.
    fn let_go(&mut self, now: Instant) -> bool {
        let held = self.execs.iter().any(|exec| exec.holds_machine);
        if !std::mem::replace(&mut self.held, held) || held {
            return false;
        }
        match self.held_end.take() {
            Some(end) => {
                self.end(end);
                true
            }
            None => {
                self.programs.end(now);
                false
            }
        }
    }

    fn hang_up(&mut self, which: impl Fn(&Exec) -> bool) {
        let at = Instant::now() + HANG_UP_PATIENCE;
        self.hung_up
            .extend(self.execs.extract_if(.., |exec| which(exec)).map(|exec| (exec.hang_up(), at)));
    }

    fn end(&mut self, status: GuestState) {
        self.status = status;
        self.ended_at = Some(Instant::now());
    }

    /// Acts on a message. True when the VM is to end.
    fn receive(&mut self, frame: Frame<HostMessage>) -> bool {
        if let HostMessage::Hello { protocol, acknowledged_logs, .. } = frame.message {
            self.hello(frame.epoch, protocol, acknowledged_logs);
            return false;
        }
        if self.port.epoch() != Some(frame.epoch) {
            return false;
        }
        match frame.message {
            HostMessage::Configure(spec) => self.configure(*spec),
            HostMessage::Rehearse { id, spec } => {
                let outcome = match self.status {
                    GuestState::Waiting => rehearsal::warm_up(&spec, self.launcher.as_mut()),
                    _ => Err("there is nothing to rehearse any more".to_owned()),
                };
                self.answer(id, outcome);
            }
            HostMessage::Freeze { id } => {
                self.thawing = None;
                let outcome = self.freezer.freeze();
                if outcome.is_ok() {
                    // Now, since it is dear later.
                    self.tell_resume();
                    // The root file system must be whole without this memory: it may be lost.
                    nix::unistd::sync();
                }
                self.answer(id, outcome);
            }
            HostMessage::Thaw { id, time_ns, entropy, resumed } => {
                self.thaw(id, time_ns, &entropy, resumed)
            }
            HostMessage::Signal { signal, is_default } => self.signal(signal, is_default),
            HostMessage::Exec(request) => self.exec(&request),
            HostMessage::Input { id } => self.with_exec(id, |exec| exec.push_input(frame.payload)),
            HostMessage::CloseInput { id } => self.with_exec(id, Exec::end_input),
            HostMessage::CancelExec { id } => self.hang_up(|exec| exec.id == id),
            HostMessage::SignalExec { id, signal: number @ 1..=LAST_SIGNAL } => {
                self.with_exec(id, |exec| exec.signal(number));
            }
            HostMessage::SignalExec { signal, .. } => {
                self.refuse(format!("there is no signal {signal}"))
            }
            HostMessage::Resize { id, columns, rows } => {
                self.with_exec(id, |exec| exec.resize(columns, rows))
            }
            HostMessage::Credit { id, bytes } => self.with_exec(id, |exec| exec.add_credit(bytes)),
            HostMessage::ListProcesses { id } => {
                let mut processes = processes::list(self.programs.namespaces());
                processes.truncate(MOST_PROCESSES);
                self.port.send(&GuestMessage::Processes { id, processes }, b"");
            }
            HostMessage::Memory { id, limit_mib, reclaim_mib } => {
                match memory::manage(limit_mib, reclaim_mib) {
                    Ok(memory) => self.port.send(&GuestMessage::Memory { id, memory }, b""),
                    Err(failure) => self.answer(id, Err(failure)),
                }
            }
            HostMessage::AcknowledgeLogs { sequence } => self.logs.acknowledge(sequence),
            HostMessage::AcknowledgeExit => {
                if self.ended_at.is_some() {
                    self.power_off_at.get_or_insert(Instant::now() + LOG_PATIENCE);
                }
            }
            HostMessage::Time { time_ns, answers: Some(id) } => {
                match self.sync.answered(id, time_ns) {
                    Ok(true) => self.ask_time(),
                    outcome => {
                        self.warn(outcome.map(|_| ()));
                        // It may have been the answer to an earlier question.
                        if !self.sync.is_asking() {
                            self.go_on();
                        }
                    }
                }
            }
            HostMessage::Time { .. } => {
                self.sync.begin();
                self.ask_time();
            }
            HostMessage::PowerOff => return true,
            HostMessage::Hello { .. } => {}
        }
        false
    }

    fn hello(&mut self, epoch: u32, protocol: u32, acknowledged_logs: u64) {
        if self.port.epoch() != Some(epoch) {
            self.port.begin(epoch);
            self.logs.restart(acknowledged_logs);
            self.told_end = false;
            if let GuestState::Exited(report) = &mut self.status {
                // What was sent may be lost: it is sent again, and only then all was said.
                report.logs_complete = false;
            }
            // Nobody follows them any more.
            self.hang_up(|_| true);
        }
        self.protocol = protocol.clamp(OLDEST_SUPPORTED_VERSION, PROTOCOL_VERSION);
        let welcome = GuestMessage::Welcome {
            protocol: self.protocol,
            init_version: env!("CARGO_PKG_VERSION").to_owned(),
            status: self.status.clone(),
            machine_id: self.spec.as_ref().map(|spec| spec.machine_id.clone()),
        };
        self.port.send(&welcome, b"");
        if self.status != GuestState::Waiting {
            self.sync.begin();
            self.ask_time();
        }
    }

    fn answer(&mut self, id: u32, outcome: Result<(), String>) {
        self.port.send(&GuestMessage::Answer { id, failure: outcome.err() }, b"");
    }

    /// Makes ready for programs to go on, which they do when the host's time is known.
    fn thaw(&mut self, id: u32, time_ns: u64, entropy: &str, resumed: bool) {
        let renewed = configure::renew(entropy, time_ns);
        self.warn(renewed);
        if resumed {
            self.tell_resume();
        }
        if !resumed && self.told_resume == Some(true) {
            // It was not to be.
            self.warn(
                std::fs::remove_file(START_KIND)
                    .map_err(|error| format!("can't remove {START_KIND}: {error}")),
            );
        }
        self.told_resume = None;
        self.thawing = Some((id, Instant::now() + TIME_PATIENCE));
        self.sync.begin();
        self.ask_time();
    }

    /// Says to programs, which stand still, how the VM was started when they go on.
    fn tell_resume(&mut self) {
        if self.told_resume.is_some() {
            return;
        }
        // Of an earlier one.
        if image_files::read(START_KIND).is_ok_and(|told| told == RESUMED) {
            self.told_resume = Some(false);
            return;
        }
        let told =
            image_files::write(Path::new(START_KIND), RESUMED.as_bytes(), image_files::Mode::Kept);
        self.told_resume = told.is_ok().then_some(true);
        self.warn(told);
    }

    /// Programs that were to go on do.
    fn go_on(&mut self) {
        if let Some((id, _)) = self.thawing.take() {
            self.freezer.thaw();
            self.answer(id, Ok(()));
        }
    }

    fn ask_time(&mut self) {
        let id = self.sync.ask();
        self.port.send(&GuestMessage::AskTime { id }, b"");
    }

    fn warn(&mut self, outcome: Result<(), String>) {
        if let Err(warning) = outcome {
            let record = Record { text: format!("{warning}\n").into_bytes(), partial: false };
            self.logs.push(LogSource::Init, record);
        }
    }

    fn refuse(&mut self, message: impl Into<String>) {
        self.port.send(&GuestMessage::Error { message: message.into() }, b"");
    }

    fn configure(&mut self, spec: MachineSpec) {
        if self.status != GuestState::Waiting {
            if self.spec.as_ref().is_none_or(|known| known.machine_id != spec.machine_id) {
                self.refuse("this VM is another machine already");
            }
            return;
        }
        self.timing.step("wait");
        self.status = GuestState::Preparing;
        if let Err(message) = self.start(&spec) {
            self.end(GuestState::Failed { message });
        }
        self.spec = Some(spec);
    }

    /// Notes that programs that were started run, or why they never will.
    fn settle(&mut self, now: Instant) {
        match self.programs.settle(now) {
            None => {}
            Some(Err(message)) => self.end(GuestState::Failed { message }),
            Some(Ok(pid)) => {
                self.timing.step("spawn");
                self.status = GuestState::Running { pid };
                self.port.send(&GuestMessage::Started { pid, steps: self.timing.steps() }, b"");
                // From here on it is the program's machine.
                kernel::hurry(false);
                // On a busy host the time that came with the configuration may have been under way
                // for long.
                self.sync.begin();
                self.ask_time();
            }
        }
    }

    fn start(&mut self, spec: &MachineSpec) -> Result<(), String> {
        let mut prepared = configure::prepare(spec, &mut self.timing)?;
        for warning in std::mem::take(&mut prepared.warnings) {
            self.warn(Err(warning));
        }
        match Victims::begin() {
            Ok(victims) => {
                let watched =
                    victims.file().map_or(Ok(()), |log| watch_as(&self.epoll, log, KERNEL_LOG));
                self.victims = victims;
                self.warn(watched);
            }
            Err(error) => self.warn(Err(error)),
        }
        let started = self
            .programs
            .start(spec, &prepared, self.launcher.take(), |file| watch(&self.epoll, file));
        self.prepared = Some(prepared);
        started
    }

    fn signal(&mut self, number: i32, is_default: bool) {
        match number {
            // Its own programs have ended: what is told to end is what holds it.
            1..=LAST_SIGNAL if self.held_end.is_some() => self.hang_up(|exec| exec.holds_machine),
            1..=LAST_SIGNAL => {
                let told = self.programs.tell(number, is_default);
                self.warn(told);
            }
            _ => self.refuse(format!("there is no signal {number}")),
        }
    }

    fn exec(&mut self, request: &ExecRequest) {
        let started = match (&self.prepared, &self.spec) {
            _ if request.holds_machine && self.ended_at.is_some() => {
                Err("the machine's program has ended".to_owned())
            }
            (Some(prepared), Some(spec)) => {
                Exec::start(request, prepared, &spec.working_dir, self.programs.namespaces())
            }
            _ => Err("the machine's program has not been started".to_owned()),
        };
        let watched = started.and_then(|exec| {
            let (outputs, input) = exec.files();
            outputs
                .into_iter()
                .chain(input)
                .try_for_each(|file| watch(&self.epoll, file))
                .map(|()| exec)
        });
        match watched {
            Ok(exec) => {
                self.held |= exec.holds_machine;
                self.execs.push(exec);
            }
            Err(message) => self
                .port
                .send(&GuestMessage::ExecFailed { id: request.id, message, code: None }, b""),
        }
    }

    fn with_exec(&mut self, id: u32, act: impl FnOnce(&mut Exec)) {
        if let Some(exec) = self.execs.iter_mut().find(|exec| exec.id == id) {
            act(exec);
        }
    }
}
