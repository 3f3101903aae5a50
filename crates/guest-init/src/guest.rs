//! The event loop.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use caddis_guest_protocol::{
    GuestMessage, GuestState, MachineSpec, OLDEST_SUPPORTED_VERSION, message::LogSource,
};
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

use crate::{
    api::Api,
    clock,
    configure::{self, Prepared},
    execs::Exec,
    freezer::Freezer,
    kernel,
    launcher::Launcher,
    lines::Record,
    logs::Backlog,
    oom::Victims,
    port::Port,
    program::Programs,
    sessions,
    timing::Timing,
};

mod exit;
mod requests;
mod thaw;
mod volumes;

/// Marks of what epoll tells about; everything else is some stream, and all of them are looked at.
const SIGNALS: u64 = 1;
const STREAMS: u64 = 2;
const KERNEL_LOG: u64 = 3;

/// How long an exit report waits for the log lines before it to be sent, and the end of the VM for
/// them to be safe.
const LOG_TIMEOUT: Duration = Duration::from_secs(2);
/// What is read of a program's streams before others get a turn, bytes.
const TURN: usize = 256 * 1024;

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
    /// Where programs ask for holds.
    api: Option<Api>,
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
    volumes: volumes::Volumes,
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
        api: None,
        hung_up: Vec::new(),
        held: false,
        held_end: None,
        told_end: false,
        ended_at: None,
        thawing: None,
        freezer: Freezer::default(),
        volumes: volumes::Volumes::default(),
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
                self.finish_thaw();
            }
            self.programs.check_deadline(now);
            for (session, _) in self.hung_up.extract_if(.., |(_, at)| *at <= now) {
                sessions::kill_all(session);
            }
            let busy = self.pump() | self.let_go(now);
            if self.power_off_at.is_some_and(|at| at <= now || self.logs.is_empty())
                || self.volumes.may_power_off()
            {
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
        self.api.iter_mut().for_each(Api::wake);
    }

    fn timeout(&self, busy: bool, now: Instant) -> EpollTimeout {
        if busy {
            return EpollTimeout::ZERO;
        }
        let ended = self.ended_at.filter(|_| !self.told_end).map(|at| at + LOG_TIMEOUT);
        let execs = self.execs.iter().filter_map(Exec::deadline);
        let thawing = self.thawing.map(|(_, at)| at);
        let hung_up = self.hung_up.iter().map(|(_, at)| *at);
        let programs = self.programs.deadline();
        let api = self.api.as_ref().and_then(Api::deadline);
        let next = programs
            .into_iter()
            .chain(execs)
            .chain(hung_up)
            .chain(ended)
            .chain(thawing)
            .chain(api)
            .chain(self.volumes.deadline())
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
        self.settle_volumes(now);
        self.settle(now);
        let mut busy = self.programs.read(TURN, now, &mut self.logs);
        self.execs.iter_mut().for_each(|exec| exec.check_deadline(now));
        self.ask_for_holds(now);
        loop {
            while self.port.has_room()
                && let Some((message, text)) = self.logs.next()
            {
                self.port.send(&message, &text);
            }
            let waited = self.ended_at.is_some_and(|at| now >= at + LOG_TIMEOUT);
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
            self.warn(Err("a program in the machine powered it off".to_owned()));
            match self.held_end {
                // Its own programs have ended: what ends now is what holds it.
                Some(_) => self.hang_up(|exec| exec.holds_machine),
                None => self.programs.switch_off(Instant::now()),
            }
        }
    }

    fn warn(&mut self, outcome: Result<(), String>) {
        if let Err(warning) = outcome {
            let record = Record { text: format!("{warning}\n").into_bytes(), partial: false };
            self.logs.push(LogSource::Init, record);
        }
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
}
