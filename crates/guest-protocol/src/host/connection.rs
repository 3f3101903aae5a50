//! Keeps a session's connection.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use rand::Rng as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf},
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior},
};

use super::{
    AgentStream, Answer, Command, Connector, ExecEvent, GuestEvent, Inner, SessionError,
    exec::ExecRoute,
    hearing::{Due, Hearing},
};
use crate::{
    GuestMessage, GuestState, HostMessage, LOG_WINDOW_BYTES, OLDEST_SUPPORTED_VERSION,
    PROTOCOL_VERSION,
    frame::{self, Decoder, Frame, MAX_GUEST_CONTROL},
};

/// Waits between attempts to connect: from, to.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));
/// A hello without answer is repeated: it may have been lost with an earlier connection's bytes.
const HELLO_AGAIN: Duration = Duration::from_secs(2);
/// Bytes that may wait to be written before no more commands are taken.
const OUTGOING_LIMIT: usize = 256 * 1024;
/// What a guest may have sent unacknowledged before it counts as broken: its window, and room for
/// what was under way.
const LOG_LIMIT: usize = 2 * LOG_WINDOW_BYTES;

/// What is kept of a guest's words, which may be anybody's: a name, bytes.
const LONGEST_NAME: usize = 64;
/// Why something failed, bytes.
const LONGEST_REASON: usize = 8192;
/// Steps of a start.
const MOST_STEPS: usize = 64;
/// Volumes of a machine.
const MOST_VOLUMES: usize = 16;

/// Cuts a text, between characters.
fn shorten(text: &mut String, longest: usize) {
    let cut = text.len().min(longest);
    text.truncate(crate::text::whole(&text.as_bytes()[..cut]));
}

fn shorten_reason(status: &mut GuestState) {
    if let GuestState::Failed { message } = status {
        shorten(message, LONGEST_REASON);
    }
}

/// Nanoseconds since the Unix epoch.
pub(super) fn now_ns() -> u64 {
    let since =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Connects, and connects again, until closed.
pub(super) async fn keep(
    connector: Arc<dyn Connector>,
    inner: Arc<Inner>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<GuestEvent>,
    mut closed: watch::Receiver<bool>,
) {
    let mut back_off = BACK_OFF.0;
    let mut hearing = Hearing::new(inner.pace);
    let mut renewed = inner.renewed.subscribe();
    let work = async {
        loop {
            if renewed.has_changed().unwrap_or(false) {
                // Who had it renewed takes the guest for silent until it is told otherwise.
                renewed.mark_unchanged();
                hearing.silence();
            }
            // That it can't be reached is found out as its silence is.
            hearing.asked();
            if hearing.due().is_some_and(|due| due == Due::Tell) {
                // It is told again.
                let _ = events.try_send(GuestEvent::Silent);
            }
            let reason = match connector.connect().await {
                Ok(stream) => {
                    let mut connection = Connection::new(stream, &inner, &events, &mut hearing);
                    let end = connection.run(&mut commands).await;
                    if connection.welcomed {
                        back_off = BACK_OFF.0;
                    }
                    end
                }
                Err(e) => e.to_string(),
            };
            if events.try_send(GuestEvent::Disconnected { reason }).is_err() && events.is_closed() {
                return;
            }
            tokio::time::sleep(back_off).await;
            back_off = (back_off * 2).min(BACK_OFF.1);
        }
    };
    tokio::select! {
        () = work => {}
        // Also when the sender is gone: all clones of the session are.
        _ = closed.wait_for(|closed| *closed) => {}
    }
}

/// Who waits to hear that a message was sent.
type Sent = oneshot::Sender<Result<(), SessionError>>;

/// Frames that wait to be written, each with who wants to know when it is. Writing never keeps from
/// reading: two ends that each wait for the other to read would wait for ever.
#[derive(Default)]
struct Outgoing {
    frames: VecDeque<(Bytes, Option<Sent>)>,
    bytes: usize,
}

impl Outgoing {
    fn push(&mut self, frame: Bytes, sent: Option<Sent>) {
        self.bytes += frame.len();
        self.frames.push_back((frame, sent));
    }

    fn front(&self) -> &[u8] {
        self.frames.front().map_or(&[], |(frame, _)| frame)
    }

    fn written(&mut self, count: usize) {
        self.bytes = self.bytes.saturating_sub(count);
        let Some((frame, _)) = self.frames.front_mut() else { return };
        frame.advance(count.min(frame.len()));
        if frame.is_empty()
            && let Some((_, Some(sent))) = self.frames.pop_front()
        {
            // Who no longer waits has no use for the answer.
            let _ = sent.send(Ok(()));
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        for sent in self.frames.drain(..).filter_map(|(_, sent)| sent) {
            let _ = sent.send(Err(SessionError::Broken));
        }
    }
}

struct Connection<'a> {
    reader: ReadHalf<Box<dyn AgentStream>>,
    writer: WriteHalf<Box<dyn AgentStream>>,
    inner: &'a Inner,
    events: &'a mpsc::Sender<GuestEvent>,
    epoch: u32,
    decoder: Decoder,
    welcomed: bool,
    outgoing: Outgoing,
    execs: HashMap<u32, ExecRoute>,
    answers: HashMap<u32, oneshot::Sender<Answer>>,
    hearing: &'a mut Hearing,
}

impl<'a> Connection<'a> {
    fn new(
        stream: Box<dyn AgentStream>,
        inner: &'a Inner,
        events: &'a mpsc::Sender<GuestEvent>,
        hearing: &'a mut Hearing,
    ) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader,
            writer,
            inner,
            events,
            epoch: rand::rng().random(),
            decoder: Decoder::new(MAX_GUEST_CONTROL),
            welcomed: false,
            outgoing: Outgoing::default(),
            execs: HashMap::new(),
            answers: HashMap::new(),
            hearing,
        }
    }

    /// Works until the connection breaks; says why it did.
    async fn run(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> String {
        match self.work(commands).await {
            Ok(never) => match never {},
            Err(reason) => reason,
        }
    }

    async fn work(
        &mut self,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> Result<std::convert::Infallible, String> {
        self.hello()?;
        let mut hello_again = tokio::time::interval_at(Instant::now() + HELLO_AGAIN, HELLO_AGAIN);
        let question = self.inner.pace.question;
        let mut time = tokio::time::interval_at(Instant::now() + question, question);
        time.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renewed = self.inner.renewed.subscribe();
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let unanswered = self.hearing.at();
            // Nothing is sent before the welcome but the hello: the guest would not know whether it
            // is still meant.
            tokio::select! {
                read = self.reader.read(&mut buffer) => {
                    let count = read.map_err(|e| format!("can't read: {e}"))?;
                    if count == 0 {
                        return Err("the other end closed".to_owned());
                    }
                    self.decoder.push(&buffer[..count]);
                    while let Some(frame) = self.decoder.next_frame() {
                        self.receive(frame)?;
                    }
                }
                written = self.writer.write(self.outgoing.front()), if self.outgoing.bytes > 0 => {
                    self.outgoing.written(written.map_err(|e| format!("can't write: {e}"))?);
                }
                command = commands.recv(),
                    if self.welcomed && self.outgoing.bytes < OUTGOING_LIMIT =>
                {
                    match command {
                        Some(command) => self.carry_out(command)?,
                        None => std::future::pending().await,
                    }
                }
                // What the other end does not even take needs no repetition.
                _ = hello_again.tick(), if !self.welcomed && self.outgoing.bytes == 0 => {
                    self.hello()?;
                }
                _ = time.tick(), if self.welcomed => {
                    self.hearing.asked();
                    self.tell_time(None)?;
                }
                () = tokio::time::sleep_until(unanswered.unwrap_or_else(Instant::now)),
                    if unanswered.is_some() =>
                {
                    self.miss()?;
                }
                Ok(()) = renewed.changed() => return Err("the guest does not answer".to_owned()),
            }
        }
    }

    /// The guest has left something unanswered for some time.
    fn miss(&mut self) -> Result<(), String> {
        match self.hearing.due() {
            // Every guest answers this one.
            Some(Due::Ask) if self.welcomed => self.hello(),
            Some(Due::Tell) => {
                // It is told again.
                let _ = self.events.try_send(GuestEvent::Silent);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn hello(&mut self) -> Result<(), String> {
        let acknowledged_logs = self.inner.standing().acknowledged_logs;
        self.send(&HostMessage::Hello {
            protocol: PROTOCOL_VERSION,
            acknowledged_logs,
            time_ns: now_ns(),
        })
    }

    fn tell_time(&mut self, answers: Option<u64>) -> Result<(), String> {
        self.send(&HostMessage::Time { time_ns: now_ns(), answers })
    }

    fn send(&mut self, message: &HostMessage) -> Result<(), String> {
        self.queue(message, b"", None)
    }

    fn queue(
        &mut self,
        message: &HostMessage,
        payload: &[u8],
        sent: Option<Sent>,
    ) -> Result<(), String> {
        let frame = frame::encode(self.epoch, message, payload).map_err(|e| e.to_string())?;
        self.outgoing.push(frame, sent);
        Ok(())
    }

    fn carry_out(&mut self, command: Command) -> Result<(), String> {
        match command {
            Command::Send { message, payload, sent } => self.queue(&message, &payload, sent),
            Command::Exec { request, route, sent } => {
                self.execs.insert(request.id, route);
                self.hearing.asked();
                self.queue(&HostMessage::Exec(request), b"", Some(sent))
            }
            Command::Cancel { id } => match self.execs.remove(&id) {
                Some(_) => self.send(&HostMessage::CancelExec { id }),
                None => Ok(()),
            },
            Command::Ask { id, message, answer } => {
                self.answers.insert(id, answer);
                self.hearing.asked();
                self.send(&message)
            }
        }
    }

    fn receive(&mut self, frame: Frame<GuestMessage>) -> Result<(), String> {
        if frame.epoch != self.epoch {
            return Ok(());
        }
        if self.hearing.is_silent() {
            // First, so that it is told again should there be no room for it now.
            self.tell(GuestEvent::Heard)?;
        }
        self.hearing.heard();
        match frame.message {
            GuestMessage::Welcome { protocol, mut init_version, mut status, machine_id } => {
                shorten(&mut init_version, LONGEST_NAME);
                shorten_reason(&mut status);
                self.welcome(protocol, init_version, status, machine_id)
            }
            GuestMessage::Started { pid, mut steps } => {
                steps.truncate(MOST_STEPS);
                steps.iter_mut().for_each(|(name, _)| shorten(name, LONGEST_NAME));
                self.tell(GuestEvent::Started { pid, steps })
            }
            GuestMessage::Log { sequence, source, time_ns, dropped_before, partial } => {
                if !self.is_new_log(sequence, frame.payload.len())? {
                    return Ok(());
                }
                let text = Bytes::copy_from_slice(&frame.payload);
                self.tell(GuestEvent::Log {
                    sequence,
                    source,
                    time_ns,
                    dropped_before,
                    partial,
                    text,
                })
            }
            GuestMessage::OutOfMemory { pid, mut name } => {
                shorten(&mut name, LONGEST_NAME);
                self.tell(GuestEvent::OutOfMemory { pid, name })
            }
            GuestMessage::Finished(mut status) => {
                shorten_reason(&mut status);
                self.tell(GuestEvent::Finished(status))
            }
            GuestMessage::Output { id, source } => {
                self.pass_to_exec(id, ExecEvent::Output { source, bytes: frame.payload })
            }
            GuestMessage::ExecFinished { id, code, signal, timed_out } => {
                let told = self.pass_to_exec(id, ExecEvent::Finished { code, signal, timed_out });
                self.execs.remove(&id);
                told
            }
            GuestMessage::ExecFailed { id, message, code } => {
                let told = self.pass_to_exec(id, ExecEvent::Failed { message, code });
                self.execs.remove(&id);
                told
            }
            GuestMessage::Credit { id, bytes } => {
                self.pass_to_exec(id, ExecEvent::Credit { bytes })
            }
            GuestMessage::Processes { id, processes } => {
                self.pass_on(id, Answer::Processes(processes))
            }
            GuestMessage::Memory { id, memory } => self.pass_on(id, Answer::Memory(memory)),
            GuestMessage::VolumeUsage { id, mut volumes } => {
                volumes.truncate(MOST_VOLUMES);
                self.pass_on(id, Answer::Volumes(volumes))
            }
            GuestMessage::Answer { id, failure, still_us } => {
                self.pass_on(id, Answer::Outcome { failure, still_us })
            }
            GuestMessage::Hold { id, ttl_seconds } => {
                self.tell(GuestEvent::Hold { id, ttl_seconds })
            }
            GuestMessage::AskTime { id } => self.tell_time(Some(id)),
            GuestMessage::Error { message } => {
                tracing::warn!(message, "the guest reported an error");
                Ok(())
            }
        }
    }

    fn pass_on(&mut self, id: u32, answer: Answer) -> Result<(), String> {
        if let Some(waiting) = self.answers.remove(&id) {
            // Who no longer waits has no use for it.
            let _ = waiting.send(answer);
        }
        Ok(())
    }

    fn welcome(
        &mut self,
        protocol: u32,
        init_version: String,
        status: GuestState,
        machine_id: Option<String>,
    ) -> Result<(), String> {
        if !(OLDEST_SUPPORTED_VERSION..=PROTOCOL_VERSION).contains(&protocol) {
            return Err(format!(
                "the guest uses protocol version {protocol}, which this server does not support"
            ));
        }
        self.inner.protocol.store(protocol, std::sync::atomic::Ordering::Relaxed);
        let again = std::mem::replace(&mut self.welcomed, true);
        let (spec, exit_acknowledged) = {
            let standing = self.inner.standing();
            (standing.spec.clone(), standing.exit_acknowledged)
        };
        let finished = matches!(status, GuestState::Exited(_) | GuestState::Failed { .. });
        let waiting = status == GuestState::Waiting;
        self.tell(GuestEvent::Welcome { status, init_version, machine_id })?;
        if again {
            return Ok(());
        }
        if let Some(spec) = spec.filter(|_| waiting) {
            self.send(&HostMessage::Configure(Box::new(spec)))?;
        }
        if finished && exit_acknowledged {
            self.send(&HostMessage::AcknowledgeExit)?;
        }
        Ok(())
    }

    /// Whether a log record was not heard before. Refuses a guest that sends more than it may.
    fn is_new_log(&self, sequence: u64, bytes: usize) -> Result<bool, String> {
        let mut standing = self.inner.standing();
        let newest = standing
            .unacknowledged
            .last_key_value()
            .map_or(standing.acknowledged_logs, |(last, _)| *last);
        if sequence <= newest {
            return Ok(false);
        }
        // Each record counts for something, so that empty ones are bounded too.
        standing.unacknowledged.insert(sequence, bytes + 64);
        let held: usize = standing.unacknowledged.values().sum();
        if held > LOG_LIMIT {
            Err("the guest sends logs beyond its window".to_owned())
        } else {
            Ok(true)
        }
    }

    fn tell(&self, event: GuestEvent) -> Result<(), String> {
        self.events.try_send(event).map_err(|e| format!("too many unprocessed events: {e}"))
    }

    fn pass_to_exec(&mut self, id: u32, event: ExecEvent) -> Result<(), String> {
        // An exec that nobody follows any more was cancelled; what it still says does not matter.
        // It stays known until the command to hang up on it is carried out, which would take it for
        // one that has ended.
        match self.execs.get(&id) {
            Some(route) => route.bring(event),
            None => Ok(()),
        }
    }
}
