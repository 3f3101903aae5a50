//! Pretended programs of exec.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{Semaphore, mpsc},
    task::AbortHandle,
};

use crate::{
    GuestMessage, HostMessage, MachineSpec, STREAM_WINDOW_BYTES,
    message::{ExecRequest, LogSource},
};

/// What a terminal sends when its user types Ctrl-D.
const CTRL_D: &[u8] = b"\x04";

type Replies = mpsc::UnboundedSender<(GuestMessage, Bytes)>;

/// The execs of one connection.
pub(super) struct Execs {
    replies: Replies,
    running: HashMap<u32, Running>,
    hung_up: Arc<AtomicUsize>,
}

struct Running {
    task: AbortHandle,
    kind: Kind,
    /// Bytes of output that it may send.
    credit: Arc<Semaphore>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Gives back what it is given.
    Cat,
    /// Tells what it hears.
    Session,
    Other,
}

impl Drop for Execs {
    fn drop(&mut self) {
        for running in self.running.values() {
            running.task.abort();
        }
    }
}

impl Execs {
    pub(super) fn new(replies: Replies, hung_up: Arc<AtomicUsize>) -> Self {
        Self { replies, running: HashMap::new(), hung_up }
    }

    fn kind(&self, id: u32) -> Option<Kind> {
        self.running.get(&id).map(|running| running.kind)
    }

    pub(super) fn handle(&mut self, message: HostMessage, payload: Bytes, spec: &MachineSpec) {
        let session = |id| self.kind(id) == Some(Kind::Session);
        match message {
            HostMessage::Exec(request) => self.start(request, spec),
            HostMessage::Input { id } if session(id) && *payload == *CTRL_D => self.finish(id),
            HostMessage::Input { id }
                if matches!(self.kind(id), Some(Kind::Cat | Kind::Session)) =>
            {
                let bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                self.reply(GuestMessage::Credit { id, bytes }, Bytes::new());
                self.reply(GuestMessage::Output { id, source: LogSource::Stdout }, payload);
            }
            HostMessage::Resize { id, columns, rows } if session(id) => {
                self.say(id, format!("[{columns}x{rows}]"))
            }
            HostMessage::SignalExec { id, signal } if session(id) => {
                self.say(id, format!("[signal {signal}]"))
            }
            HostMessage::Credit { id, bytes } => {
                if let Some(running) = self.running.get(&id) {
                    running.credit.add_permits(bytes as usize);
                }
            }
            HostMessage::CloseInput { id }
                if matches!(self.kind(id), Some(Kind::Cat | Kind::Session)) =>
            {
                self.finish(id);
            }
            HostMessage::CancelExec { id } => {
                if let Some(running) = self.running.remove(&id) {
                    running.task.abort();
                    self.hung_up.fetch_add(1, Ordering::Relaxed);
                }
            }
            _ => {}
        }
    }

    fn finish(&mut self, id: u32) {
        self.running.remove(&id);
        self.reply(finished(id, 0), Bytes::new());
    }

    fn say(&self, id: u32, text: String) {
        self.reply(GuestMessage::Output { id, source: LogSource::Stdout }, text.into());
    }

    fn reply(&self, message: GuestMessage, payload: Bytes) {
        // Nobody listens once the connection is over.
        let _ = self.replies.send((message, payload));
    }

    fn start(&mut self, request: ExecRequest, spec: &MachineSpec) {
        let id = request.id;
        let program = request.argv.first().cloned().unwrap_or_else(|| "session".to_owned());
        let argument = request.argv.get(1).cloned().unwrap_or_default();
        let environment = spec.env.iter().chain(&request.env);
        let environment =
            environment.map(|(key, value)| format!("{key}={value}\n")).collect::<String>();
        let replies = self.replies.clone();
        let kind = match program.as_str() {
            "cat" if request.has_input => Kind::Cat,
            "session" => Kind::Session,
            _ => Kind::Other,
        };
        let credit = Arc::new(Semaphore::new(STREAM_WINDOW_BYTES));
        let allowed = credit.clone();
        let work = async move {
            let say = |text: String| {
                let _ = replies
                    .send((GuestMessage::Output { id, source: LogSource::Stdout }, text.into()));
            };
            let mut code = 0;
            match program.as_str() {
                "echo" => say(request.argv[1..].join(" ") + "\n"),
                "env" => say(environment),
                "exit" => code = argument.parse().unwrap_or(0),
                "sleep" => {
                    let time = super::seconds(&argument);
                    let limit = if request.timeout_ms == 0 { u64::MAX } else { request.timeout_ms };
                    if tokio::time::timeout(Duration::from_millis(limit), tokio::time::sleep(time))
                        .await
                        .is_err()
                    {
                        let killed = GuestMessage::ExecFinished {
                            id,
                            code: 137,
                            signal: Some(9),
                            timed_out: true,
                        };
                        let _ = replies.send((killed, Bytes::new()));
                        return;
                    }
                }
                "yes" => loop {
                    let Ok(permit) = allowed.acquire_many(1024).await else { return };
                    permit.forget();
                    say("y\n".repeat(512));
                },
                "session" => {
                    let on =
                        request.terminal.map_or("no terminal".to_owned(), |(columns, rows)| {
                            format!("{columns}x{rows}")
                        });
                    return say(format!(
                        "session of {} on {on}\n",
                        request.user.as_deref().unwrap_or("?")
                    ));
                }
                "cat" if request.has_input => return,
                "cat" => {}
                other => {
                    let message = format!("{other}: no such program");
                    let _ = replies.send((
                        GuestMessage::ExecFailed { id, message, code: Some(127) },
                        Bytes::new(),
                    ));
                    return;
                }
            }
            let _ = replies.send((finished(id, code), Bytes::new()));
        };
        self.running.insert(id, Running { task: tokio::spawn(work).abort_handle(), kind, credit });
    }
}

fn finished(id: u32, code: i32) -> GuestMessage {
    GuestMessage::ExecFinished { id, code, signal: None, timed_out: false }
}
