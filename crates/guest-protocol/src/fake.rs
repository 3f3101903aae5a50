//! A guest without a VM: speaks the real protocol over any stream, and pretends to run programs.
//!
//! | `argv[0]` | what it does |
//! |---|---|
//! | `sleep [seconds\|inf]` | ends with 0 after that time, or by SIGINT, SIGTERM, SIGKILL |
//! | `exit CODE` | ends at once |
//! | `ignore-signals` | ends by SIGKILL only |
//! | `echo WORDS` | one line of log, then 0 |
//! | `flood` | logs as fast as it may |
//! | `crash` | ends by SIGSEGV |
//! | `oom` | is killed for want of memory |
//! | `oom-child` | a child of it is killed for want of memory; else `sleep inf` |
//! | `fail-to-prepare` | can't be started |
//! | anything else | `sleep inf` |
//!
//! Programs for exec: `echo`, `exit`, `cat`, `sleep`, `env`, `yes` (output without end, within its
//! window), and `session`, which tells what it hears: its input up to Ctrl-D, sizes, signals. No
//! program at all is a `session`.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, watch},
};

use crate::{
    GuestMessage, GuestState, HostMessage, LOG_WINDOW_BYTES, MachineSpec, PROTOCOL_VERSION,
    frame::{self, Decoder, Frame, MAX_HOST_CONTROL},
    message::{ExitReport, LogSource, MemoryInfo},
};

mod exec;
mod hold;
mod program;
mod volumes;

pub use self::volumes::STILL_US;

/// How a fake guest misbehaves. The default is a guest that does as it should.
#[derive(Debug, Clone, Default)]
pub struct Behaviour {
    /// Time until it answers.
    pub boot_delay: Duration,
    /// Never answers.
    pub silent: bool,
    /// Takes its configuration and then does nothing.
    pub hang_after_configure: bool,
    /// Sends this before its first frame on each connection.
    pub garbage: Vec<u8>,
    /// Its programs can't be held still.
    pub refuses_to_freeze: bool,
    /// Says of its log that nothing more will come, when its program ends.
    pub completes_logs: bool,
    /// Breaks each connection after so many frames of its own.
    pub frames_per_connection: Option<usize>,
    /// Its volumes can be neither grown nor held still.
    pub refuses_volumes: bool,
}

/// A fake guest. Clones are the same guest.
#[derive(Clone)]
pub struct FakeGuest {
    behaviour: Behaviour,
    state: Arc<Mutex<State>>,
    /// Rises whenever there is something new to send.
    news: watch::Sender<u64>,
    powered_off: watch::Sender<bool>,
    hung_up: Arc<AtomicUsize>,
    /// Neither hears nor says anything.
    mute: watch::Sender<bool>,
}

struct State {
    status: GuestState,
    spec: Option<MachineSpec>,
    logs: VecDeque<(u64, Bytes)>,
    next_log: u64,
    signals: Option<mpsc::UnboundedSender<i32>>,
    /// Children that were killed for want of memory and not told of.
    victims: Vec<i32>,
    connection: u64,
    frozen: bool,
    holds: hold::Holds,
    volumes: volumes::Volumes,
}

impl FakeGuest {
    /// A guest that has just booted.
    pub fn new(behaviour: Behaviour) -> Self {
        let state = State {
            status: GuestState::Waiting,
            spec: None,
            logs: VecDeque::new(),
            next_log: 1,
            signals: None,
            victims: Vec::new(),
            connection: 0,
            frozen: false,
            holds: hold::Holds::default(),
            volumes: volumes::Volumes::default(),
        };
        let state = Arc::new(Mutex::new(state));
        let (news, powered_off) = (watch::Sender::new(0), watch::Sender::new(false));
        Self {
            behaviour,
            state,
            news,
            powered_off,
            hung_up: Arc::default(),
            mute: watch::Sender::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn announce(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    /// The configuration it got.
    pub fn spec(&self) -> Option<MachineSpec> {
        self.state().spec.clone()
    }

    /// The guest as it goes on after it was saved and its VM ended: its program runs again.
    pub fn restored(&self) -> Self {
        let (state, news) = (self.state.clone(), self.news.clone());
        let (behaviour, hung_up) = (self.behaviour.clone(), self.hung_up.clone());
        let (powered_off, mute) = (watch::Sender::new(false), watch::Sender::new(false));
        let restored = Self { behaviour, state, news, powered_off, hung_up, mute };
        let spec = restored
            .spec()
            .filter(|_| matches!(restored.state().status, GuestState::Running { .. }));
        if let Some(spec) = spec {
            let (signals, receiver) = mpsc::unbounded_channel();
            restored.state().signals = Some(signals);
            let guest = restored.clone();
            tokio::spawn(async move { guest.run_program(spec, receiver).await });
        }
        restored
    }

    /// Has it neither hear nor say anything, or do so again.
    pub fn set_mute(&self, mute: bool) {
        self.mute.send_replace(mute);
    }

    /// How many execs the host has hung up on.
    pub fn hung_up(&self) -> usize {
        self.hung_up.load(Ordering::Relaxed)
    }

    /// Whether its programs stand still.
    pub fn is_frozen(&self) -> bool {
        self.state().frozen
    }

    /// Waits until it has powered off.
    pub async fn powered_off(&self) {
        // The sender lives in self.
        let _ = self.powered_off.subscribe().wait_for(|off| *off).await;
    }

    /// Ends it from outside: as when its VM is killed.
    pub fn kill(&self) {
        self.powered_off.send_replace(true);
    }

    /// Serves one connection to its end; an earlier one stops working.
    pub async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin) {
        let number = {
            let mut state = self.state();
            state.connection += 1;
            state.connection
        };
        self.announce();
        let off = self.powered_off.subscribe();
        tokio::select! {
            () = Connection::new(self.clone(), stream, number).run() => {}
            () = ended(off) => {}
        }
    }

    /// Has its program write a line.
    pub fn log(&self, text: impl Into<Bytes>) {
        let mut state = self.state();
        let sequence = state.next_log;
        state.next_log += 1;
        state.logs.push_back((sequence, text.into()));
        drop(state);
        self.announce();
    }

    fn finish(&self, status: GuestState) {
        let mut state = self.state();
        state.status = status;
        state.signals = None;
        drop(state);
        self.announce();
    }

    fn exit(&self, code: i32, signal: Option<i32>, oom_killed: bool) {
        let since =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let exited_at_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let logs_complete = self.behaviour.completes_logs;
        self.finish(GuestState::Exited(ExitReport {
            code,
            signal,
            oom_killed,
            exited_at_ns,
            logs_complete,
        }));
    }
}

/// How long a connection that has said enough still listens.
const LAST_WORDS: Duration = Duration::from_millis(20);

async fn ended(mut off: watch::Receiver<bool>) {
    let _ = off.wait_for(|off| *off).await;
}

/// One connection of the host.
struct Connection<S> {
    guest: FakeGuest,
    stream: S,
    number: u64,
    epoch: Option<u32>,
    sent_logs: u64,
    told: Option<GuestState>,
    frames: usize,
    execs: exec::Execs,
    replies: mpsc::UnboundedReceiver<(GuestMessage, Bytes)>,
}

/// Why a connection ends.
struct Over;

impl From<std::io::Error> for Over {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection<S> {
    fn new(guest: FakeGuest, stream: S, number: u64) -> Self {
        let (sender, replies) = mpsc::unbounded_channel();
        let hung_up = guest.hung_up.clone();
        Self {
            guest,
            stream,
            number,
            epoch: None,
            sent_logs: 0,
            told: None,
            frames: 0,
            execs: exec::Execs::new(sender, hung_up),
            replies,
        }
    }

    async fn run(mut self) {
        let mut decoder = Decoder::new(MAX_HOST_CONTROL);
        let _ = self.work(&mut decoder).await;
        if self.may_send() {
            return;
        }
        // What the host has said meanwhile is still heard before the connection breaks.
        let mut buffer = vec![0; 16 * 1024];
        let read = tokio::time::timeout(LAST_WORDS, self.stream.read(&mut buffer)).await;
        if let Ok(Ok(count)) = read {
            decoder.push(&buffer[..count]);
            while let Some(frame) = decoder.next_frame() {
                // It can't be answered any more.
                let _ = self.receive(frame).await;
            }
        }
    }

    fn may_send(&self) -> bool {
        self.guest.behaviour.frames_per_connection.is_none_or(|limit| self.frames < limit)
    }

    async fn work(&mut self, decoder: &mut Decoder) -> Result<(), Over> {
        if self.guest.behaviour.silent {
            return std::future::pending().await;
        }
        tokio::time::sleep(self.guest.behaviour.boot_delay).await;
        self.stream.write_all(&self.guest.behaviour.garbage.clone()).await?;
        let mut news = self.guest.news.subscribe();
        let mut buffer = vec![0; 16 * 1024];
        let mut mute = self.guest.mute.subscribe();
        loop {
            if *mute.borrow_and_update() {
                // The sender lives in the guest.
                let _ = mute.wait_for(|mute| !mute).await;
            }
            if self.guest.state().connection != self.number {
                return Err(Over);
            }
            self.catch_up().await?;
            tokio::select! {
                read = self.stream.read(&mut buffer) => {
                    let count = read?;
                    if count == 0 {
                        return Err(Over);
                    }
                    // It may have become mute meanwhile. The sender lives in the guest.
                    let _ = mute.wait_for(|mute| !mute).await;
                    decoder.push(&buffer[..count]);
                    while let Some(frame) = decoder.next_frame() {
                        self.receive(frame).await?;
                    }
                }
                Ok(()) = news.changed() => {}
                Ok(()) = mute.changed() => {}
                Some((message, payload)) = self.replies.recv() => {
                    self.send(&message, &payload).await?;
                }
            }
        }
    }

    async fn send(&mut self, message: &GuestMessage, payload: &[u8]) -> Result<(), Over> {
        let Some(epoch) = self.epoch else { return Ok(()) };
        if !self.may_send() {
            return Err(Over);
        }
        self.frames += 1;
        let frame = frame::encode(epoch, message, payload).map_err(|_| Over)?;
        self.stream.write_all(&frame).await?;
        Ok(())
    }

    /// Sends what the host does not know yet: logs within its window, and what became of the
    /// program.
    async fn catch_up(&mut self) -> Result<(), Over> {
        if self.epoch.is_none() {
            return Ok(());
        }
        let status = self.guest.state().status.clone();
        let (pending, waiting) = self.pending_logs();
        for (sequence, text) in pending {
            let source = LogSource::Stdout;
            let message = GuestMessage::Log {
                sequence,
                source,
                time_ns: 1,
                dropped_before: 0,
                partial: false,
            };
            self.send(&message, &text).await?;
            self.sent_logs = sequence;
        }
        loop {
            let Some(hold) = self.guest.state().holds.next() else { break };
            self.send(&hold, b"").await?;
        }
        let victims = std::mem::take(&mut self.guest.state().victims);
        for pid in victims {
            self.send(&GuestMessage::OutOfMemory { pid, name: "child".to_owned() }, b"").await?;
        }
        if self.told.as_ref() == Some(&status) || waiting {
            return Ok(());
        }
        match &status {
            GuestState::Running { pid } => {
                let steps = vec![("fake".to_owned(), 1)];
                self.send(&GuestMessage::Started { pid: *pid, steps }, b"").await?;
            }
            GuestState::Exited(_) | GuestState::Failed { .. } => {
                if !matches!(self.told, Some(GuestState::Running { .. }))
                    && matches!(status, GuestState::Exited(_))
                {
                    self.send(&GuestMessage::Started { pid: 1, steps: Vec::new() }, b"").await?;
                }
                self.send(&GuestMessage::Finished(status.clone()), b"").await?;
            }
            GuestState::Waiting | GuestState::Preparing => {}
        }
        self.told = Some(status);
        Ok(())
    }

    fn pending_logs(&self) -> (Vec<(u64, Bytes)>, bool) {
        let state = self.guest.state();
        let (mut ahead, mut pending, mut waiting) = (0, Vec::new(), false);
        for (sequence, text) in &state.logs {
            ahead += text.len() + 64;
            if ahead > LOG_WINDOW_BYTES {
                waiting = true;
                break;
            }
            if *sequence > self.sent_logs {
                pending.push((*sequence, text.clone()));
            }
        }
        // Only the end of a program waits for its last words.
        let ends = matches!(state.status, GuestState::Exited(_) | GuestState::Failed { .. });
        (pending, waiting && ends)
    }

    async fn receive(&mut self, frame: Frame<HostMessage>) -> Result<(), Over> {
        if let HostMessage::Hello { acknowledged_logs, .. } = frame.message {
            self.epoch = Some(frame.epoch);
            self.sent_logs = acknowledged_logs;
            self.forget_logs(acknowledged_logs);
            let (status, machine_id) = {
                let state = self.guest.state();
                (state.status.clone(), state.spec.as_ref().map(|spec| spec.machine_id.clone()))
            };
            let init_version = "fake".to_owned();
            let protocol = PROTOCOL_VERSION;
            return self
                .send(&GuestMessage::Welcome { protocol, init_version, status, machine_id }, b"")
                .await;
        }
        if self.epoch != Some(frame.epoch) {
            return Ok(());
        }
        if let Some(answer) = self.guest.about_volumes(&frame.message) {
            return self.send(&answer, b"").await;
        }
        match frame.message {
            HostMessage::Configure(spec) => self.guest.configure(*spec),
            HostMessage::Signal { signal, .. } => self.guest.signal(signal),
            HostMessage::AcknowledgeLogs { sequence } => {
                self.forget_logs(sequence);
                self.guest.announce();
            }
            HostMessage::AcknowledgeExit => {
                let ended = matches!(
                    self.guest.state().status,
                    GuestState::Exited(_) | GuestState::Failed { .. }
                );
                if ended {
                    self.guest.kill();
                }
            }
            HostMessage::PowerOff => self.guest.kill(),
            HostMessage::Held { id, status, until, error } => {
                self.guest.state().holds.answered(id, (status, until.or(error)));
            }
            HostMessage::ListProcesses { id } => {
                let processes = self.guest.processes();
                self.send(&GuestMessage::Processes { id, processes }, b"").await?;
            }
            HostMessage::Memory { id, limit_mib, reclaim_mib } => {
                let memory = MemoryInfo {
                    limit_mib,
                    available_mib: 100,
                    reclaimed_mib: reclaim_mib.unwrap_or(0),
                };
                self.send(&GuestMessage::Memory { id, memory }, b"").await?;
            }
            HostMessage::Freeze { id } => {
                let failure =
                    self.guest.behaviour.refuses_to_freeze.then(|| "told to fail".to_owned());
                self.guest.state().frozen |= failure.is_none();
                self.send(&GuestMessage::Answer { id, failure, still_us: None }, b"").await?;
            }
            HostMessage::Thaw { id, .. } => {
                self.guest.state().frozen = false;
                self.send(&GuestMessage::Answer { id, failure: None, still_us: None }, b"").await?;
            }
            HostMessage::WarmUp { id, .. } => {
                self.send(&GuestMessage::Answer { id, failure: None, still_us: None }, b"").await?
            }
            HostMessage::Time { answers: None, .. } => {
                self.send(&GuestMessage::AskTime { id: 1 }, b"").await?
            }
            HostMessage::Hello { .. } | HostMessage::Time { .. } => {}
            exec => self.execs.handle(exec, frame.payload, &self.guest.spec().unwrap_or_default()),
        }
        Ok(())
    }

    fn forget_logs(&self, sequence: u64) {
        self.guest.state().logs.retain(|(number, _)| *number > sequence);
    }
}

/// What `sleep` understands; what isn't a number of seconds is for longer than any test runs.
fn seconds(argument: &str) -> Duration {
    let given = argument.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    given.unwrap_or(Duration::from_secs(1_000_000))
}
