//! The host's side of a session with init.
//!
//! One task per session keeps the connection: it connects, says hello, and after a break connects
//! again. What must not be lost is said again then: the configuration while the guest waits for
//! one, and the acknowledgement of its exit.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot},
};

use crate::{
    GuestState, HostMessage, MachineSpec,
    message::{ExecRequest, LogSource, MemoryInfo, ProcessInfo, VolumeUsage},
};

mod connection;
mod exec;
mod hearing;
mod volumes;

pub use exec::{ExecCommand, ExecEvent, ExecOutcome, ExecStream};

/// A byte stream to init.
pub trait AgentStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> AgentStream for T {}

/// Opens streams to init.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// A new stream; an earlier one stops working.
    async fn connect(&self) -> std::io::Result<Box<dyn AgentStream>>;
}

/// Time a message may wait for a connection.
const SEND_DEADLINE: Duration = Duration::from_secs(10);
/// Events that may wait to be taken.
const EVENTS: usize = 4096;

/// What a session hears.
#[derive(Debug, Clone, PartialEq)]
pub enum GuestEvent {
    /// A connection stands, and this is what the guest is doing.
    Welcome {
        /// What it is doing.
        status: GuestState,
        /// Version of its init.
        init_version: String,
        /// Machine it was configured as.
        machine_id: Option<String>,
    },
    /// The program was started.
    Started {
        /// Its process id.
        pid: i32,
        /// Where the guest's time went: name and microseconds.
        steps: Vec<(String, u64)>,
    },
    /// A record of log, each exactly once.
    Log {
        /// Its number.
        sequence: u64,
        /// Which stream.
        source: LogSource,
        /// Guest's clock, nanoseconds since the Unix epoch.
        time_ns: u64,
        /// Records lost before it.
        dropped_before: u64,
        /// Its last line goes on in the next record of the stream.
        partial: bool,
        /// Text.
        text: Bytes,
    },
    /// A process was killed for want of memory that is none of the machine's programs itself.
    OutOfMemory {
        /// Its process id.
        pid: i32,
        /// Its name.
        name: String,
    },
    /// A program asks that the machine stays awake, or no longer; see [`Session::answer_hold`].
    Hold {
        /// Of the request.
        id: u32,
        /// For so long; `None` ends it.
        ttl_seconds: Option<u64>,
    },
    /// The program ended or could not be started. May be heard more than once.
    Finished(GuestState),
    /// The connection broke; the session goes on to connect.
    Disconnected {
        /// Why.
        reason: String,
    },
    /// The guest has left a question unanswered, and a second one; told again as long as it says
    /// nothing.
    Silent,
    /// It has said something after all.
    Heard,
}

/// How often a guest is asked something, and how long it is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Time between two questions to a guest that says nothing by itself: it is told the time, and
    /// asks back.
    pub question: Duration,
    /// Time until it is asked once more, and after as much again it counts as silent.
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { question: Duration::from_secs(60), patience: Duration::from_secs(15) }
    }
}

/// Why a guest could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// No connection in time.
    #[error("no connection to the guest within {SEND_DEADLINE:?}")]
    NotConnected,
    /// The session was closed: the VM is gone.
    #[error("the VM is gone")]
    Closed,
    /// The connection broke before the answer came.
    #[error("the connection to the guest broke before it answered")]
    Broken,
    /// No answer in time.
    #[error("the guest did not answer within {0:?}")]
    NoAnswer(Duration),
    /// The guest refused.
    #[error("{0}")]
    Refused(String),
    /// The message is too large.
    #[error("the configuration is too large for the guest: {0}")]
    TooLarge(String),
}

enum Command {
    /// Send this, with these raw bytes.
    Send {
        message: HostMessage,
        payload: Bytes,
        sent: Option<oneshot::Sender<Result<(), SessionError>>>,
    },
    /// Start an exec and route its stream.
    Exec {
        request: ExecRequest,
        route: exec::ExecRoute,
        sent: oneshot::Sender<Result<(), SessionError>>,
    },
    /// Forget an exec, killing it in the guest.
    Cancel { id: u32 },
    /// Send this, and pass on the answer to it.
    Ask { id: u32, message: HostMessage, answer: oneshot::Sender<Answer> },
}

/// The guest's answer to a question.
enum Answer {
    /// It did what it was asked, and for how long its volumes stood still where it says so; or why
    /// not.
    Outcome { failure: Option<String>, still_us: Option<u64> },
    /// Its processes.
    Processes(Vec<ProcessInfo>),
    /// Its programs' memory.
    Memory(MemoryInfo),
    /// How full its volumes are.
    Volumes(Vec<VolumeUsage>),
}

/// What is said again after a reconnect.
#[derive(Default)]
struct Standing {
    spec: Option<MachineSpec>,
    exit_acknowledged: bool,
    acknowledged_logs: u64,
    /// Bytes received and not acknowledged, by sequence.
    unacknowledged: std::collections::BTreeMap<u64, usize>,
}

struct Inner {
    commands: mpsc::UnboundedSender<Command>,
    standing: Mutex<Standing>,
    next_id: AtomicU32,
    /// The version that both ends of the newest connection speak; 0 before there was one.
    protocol: AtomicU32,
    close: tokio::sync::watch::Sender<bool>,
    /// Rises when the connection is to be given up for a new one.
    renewed: tokio::sync::watch::Sender<u64>,
    pace: Pace,
    /// How many use the session.
    users: AtomicUsize,
}

impl Inner {
    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock()
    }
}

/// A session with a guest. Clones share it.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

/// A session that counts as in use until this is dropped.
pub struct SessionInUse(Session);

impl std::ops::Deref for SessionInUse {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.0
    }
}

impl Drop for SessionInUse {
    fn drop(&mut self) {
        self.0.inner.users.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Session {
    /// Begins a session: connects, and keeps connected until closed. `acknowledged_logs` is the
    /// last log record that an earlier session made safe.
    pub fn open(
        connector: Arc<dyn Connector>,
        acknowledged_logs: u64,
    ) -> (Self, mpsc::Receiver<GuestEvent>) {
        Self::open_at(connector, acknowledged_logs, Pace::default())
    }

    /// The same, at another pace.
    pub fn open_at(
        connector: Arc<dyn Connector>,
        acknowledged_logs: u64,
        pace: Pace,
    ) -> (Self, mpsc::Receiver<GuestEvent>) {
        let (commands, queue) = mpsc::unbounded_channel();
        let (events, receiver) = mpsc::channel(EVENTS);
        let (close, closed) = tokio::sync::watch::channel(false);
        let standing = Mutex::new(Standing { acknowledged_logs, ..Standing::default() });
        let (next_id, protocol) = (AtomicU32::new(1), AtomicU32::new(0));
        let renewed = tokio::sync::watch::Sender::new(0);
        let users = AtomicUsize::new(0);
        let inner = Inner { commands, standing, next_id, protocol, close, renewed, pace, users };
        let inner = Arc::new(inner);
        tokio::spawn(connection::keep(connector, inner.clone(), queue, events, closed));
        (Self { inner }, receiver)
    }

    async fn send(&self, message: HostMessage) -> Result<(), SessionError> {
        let (sent, answer) = oneshot::channel();
        self.command(Command::Send { message, payload: Bytes::new(), sent: Some(sent) })?;
        match tokio::time::timeout(SEND_DEADLINE, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(SessionError::Closed),
            Err(_) => Err(SessionError::NotConnected),
        }
    }

    fn command(&self, command: Command) -> Result<(), SessionError> {
        if *self.inner.close.borrow() {
            return Err(SessionError::Closed);
        }
        self.inner.commands.send(command).map_err(|_| SessionError::Closed)
    }

    fn post(&self, message: HostMessage) {
        // Best effort: what matters is said again after a reconnect.
        let _ = self.command(Command::Send { message, payload: Bytes::new(), sent: None });
    }

    /// Whether the guest's init is new enough for what came with protocol version `since`. An init
    /// stays what it was when its VM was started.
    pub fn speaks(&self, since: u32) -> bool {
        self.inner.protocol.load(Ordering::Relaxed) >= since
    }

    /// The same session, which counts as in use as long as this is there.
    pub fn in_use(&self) -> SessionInUse {
        self.inner.users.fetch_add(1, Ordering::Relaxed);
        SessionInUse(self.clone())
    }

    /// Whether anybody uses it: an exec, a shell, a question.
    pub fn is_in_use(&self) -> bool {
        self.inner.users.load(Ordering::Relaxed) > 0
    }

    /// Answers a program that asked for a hold: when the hold ends, if there is one now, or an HTTP
    /// status and why it was refused.
    pub fn answer_hold(&self, id: u32, outcome: Result<Option<String>, (u16, String)>) {
        let (status, until, error) = match outcome {
            Ok(until) => (200, until, None),
            Err((status, error)) => (status, None, Some(error)),
        };
        self.post(HostMessage::Held { id, status, until, error });
    }

    /// Makes the guest the machine; said again after a reconnect as long as the guest waits for it.
    ///
    /// # Errors
    /// When the guest can't be reached now; it is told once it can be.
    pub async fn configure(&self, spec: MachineSpec) -> Result<(), SessionError> {
        let message = HostMessage::Configure(Box::new(spec.clone()));
        let frame = crate::frame::encode(0, &message, b"");
        frame.map_err(|e| SessionError::TooLarge(e.to_string()))?;
        self.inner.standing().spec = Some(spec);
        self.send(message).await
    }

    /// Sends the program a signal.
    ///
    /// # Errors
    /// When the guest can't be reached.
    pub async fn signal(&self, signal: i32) -> Result<(), SessionError> {
        self.send(HostMessage::Signal { signal, is_default: false }).await
    }

    /// Tells the program to end, by this signal; where nobody has chosen it, init systems are told
    /// in their own way.
    ///
    /// # Errors
    /// When the guest can't be reached.
    pub async fn stop(&self, signal: i32, is_default: bool) -> Result<(), SessionError> {
        self.send(HostMessage::Signal { signal, is_default }).await
    }

    /// The processes of the guest.
    ///
    /// # Errors
    /// When the guest can't be reached or does not answer.
    pub async fn processes(&self) -> Result<Vec<ProcessInfo>, SessionError> {
        match self.ask(SEND_DEADLINE, |id| HostMessage::ListProcesses { id }).await? {
            Answer::Processes(list) => Ok(list),
            _ => Err(SessionError::Broken),
        }
    }

    /// The memory of the machine's programs, after a change where one is asked for: a new limit, or
    /// so much to take back that is not needed right now, MiB.
    ///
    /// # Errors
    /// When the guest can't, or does not answer: an init older than this message never does.
    pub async fn memory(
        &self,
        limit_mib: Option<u64>,
        reclaim_mib: Option<u64>,
    ) -> Result<MemoryInfo, SessionError> {
        match self
            .ask(SEND_DEADLINE, |id| HostMessage::Memory { id, limit_mib, reclaim_mib })
            .await?
        {
            Answer::Memory(memory) => Ok(memory),
            _ => Err(SessionError::Broken),
        }
    }

    /// While the guest waits: has it practise what [`Self::configure`] will ask for.
    ///
    /// # Errors
    /// When the guest can't, or does not answer within `deadline`.
    pub async fn warm_up(&self, spec: MachineSpec, deadline: Duration) -> Result<(), SessionError> {
        self.ask(deadline, |id| HostMessage::WarmUp { id, spec: Box::new(spec) }).await.map(drop)
    }

    /// Has all programs stand still, and what is not on the disks yet written out.
    ///
    /// # Errors
    /// When the guest can't, or does not answer within `deadline`: an init older than this message
    /// never does.
    pub async fn freeze(&self, deadline: Duration) -> Result<(), SessionError> {
        self.ask(deadline, |id| HostMessage::Freeze { id }).await.map(drop)
    }

    /// Lets programs go on, with `entropy` (base64) and the time mixed in first. `resumed`: after a
    /// restore.
    ///
    /// # Errors
    /// When the guest can't, or does not answer within `deadline`.
    pub async fn thaw(
        &self,
        entropy: String,
        resumed: bool,
        deadline: Duration,
    ) -> Result<(), SessionError> {
        let thaw = |id| HostMessage::Thaw { id, time_ns: connection::now_ns(), entropy, resumed };
        self.ask(deadline, thaw).await.map(drop)
    }

    async fn ask(
        &self,
        deadline: Duration,
        message: impl FnOnce(u32) -> HostMessage,
    ) -> Result<Answer, SessionError> {
        let (answer, answered) = oneshot::channel();
        let id = self.next_id();
        self.command(Command::Ask { id, message: message(id), answer })?;
        match tokio::time::timeout(deadline, answered).await {
            Ok(Ok(Answer::Outcome { failure: Some(failure), .. })) => {
                Err(SessionError::Refused(failure))
            }
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(SessionError::Broken),
            Err(_) => Err(SessionError::NoAnswer(deadline)),
        }
    }

    /// Log records up to this one are safe; the guest may drop them.
    pub fn acknowledge_logs(&self, sequence: u64) {
        {
            let mut standing = self.inner.standing();
            standing.acknowledged_logs = standing.acknowledged_logs.max(sequence);
            standing.unacknowledged = standing.unacknowledged.split_off(&(sequence + 1));
        }
        self.post(HostMessage::AcknowledgeLogs { sequence });
    }

    /// The exit report is safe: the guest unmounts and powers off. Said again after a reconnect.
    pub fn acknowledge_exit(&self) {
        self.inner.standing().exit_acknowledged = true;
        self.post(HostMessage::AcknowledgeExit);
    }

    /// Tells the guest the time.
    pub fn send_time(&self) {
        self.post(HostMessage::Time { time_ns: connection::now_ns(), answers: None });
    }

    /// Ends the VM from within, whatever runs.
    pub async fn power_off(&self) {
        // A guest that can't be reached is killed by its owner instead.
        let _ = self.send(HostMessage::PowerOff).await;
    }

    /// Gives the connection up for a new one: whoever waits for an answer on it is told that it
    /// broke.
    pub fn renew(&self) {
        self.inner.renewed.send_modify(|count| *count += 1);
    }

    /// Ends the session.
    pub fn close(&self) {
        self.inner.close.send_replace(true);
    }

    fn next_id(&self) -> u32 {
        // 0 is no stream.
        self.inner.next_id.fetch_add(1, Ordering::Relaxed).max(1)
    }
}
