//! Pretended programs of exec.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use tokio::{sync::mpsc, task::AbortHandle};

use crate::{
    GuestMessage, HostMessage, MachineSpec,
    message::{ExecRequest, LogSource},
};

type Replies = mpsc::UnboundedSender<(GuestMessage, Bytes)>;

/// The execs of one connection.
pub(super) struct Execs {
    replies: Replies,
    running: HashMap<u32, Running>,
}

struct Running {
    task: AbortHandle,
    cat: bool,
}

impl Drop for Execs {
    fn drop(&mut self) {
        for running in self.running.values() {
            running.task.abort();
        }
    }
}

impl Execs {
    pub(super) fn new(replies: Replies) -> Self {
        Self { replies, running: HashMap::new() }
    }

    pub(super) fn handle(&mut self, message: HostMessage, payload: Bytes, spec: &MachineSpec) {
        match message {
            HostMessage::Exec(request) => self.start(request, spec),
            HostMessage::Input { id } if self.running.get(&id).is_some_and(|running| running.cat) => {
                let bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                self.reply(GuestMessage::Credit { id, bytes }, Bytes::new());
                self.reply(GuestMessage::Output { id, source: LogSource::Stdout }, payload);
            }
            HostMessage::CloseInput { id } if self.running.get(&id).is_some_and(|running| running.cat) => {
                self.running.remove(&id);
                self.reply(finished(id, 0), Bytes::new());
            }
            HostMessage::CancelExec { id } => {
                if let Some(running) = self.running.remove(&id) {
                    running.task.abort();
                }
            }
            _ => {}
        }
    }

    fn reply(&self, message: GuestMessage, payload: Bytes) {
        // Nobody listens once the connection is over.
        let _ = self.replies.send((message, payload));
    }

    fn start(&mut self, request: ExecRequest, spec: &MachineSpec) {
        let id = request.id;
        let program = request.argv.first().cloned().unwrap_or_default();
        let argument = request.argv.get(1).cloned().unwrap_or_default();
        let environment = spec.env.iter().map(|(key, value)| format!("{key}={value}\n")).collect::<String>();
        let replies = self.replies.clone();
        let cat = program == "cat" && request.has_input;
        let work = async move {
            let say = |text: String| {
                let _ = replies.send((GuestMessage::Output { id, source: LogSource::Stdout }, text.into()));
            };
            let mut code = 0;
            match program.as_str() {
                "echo" => say(request.argv[1..].join(" ") + "\n"),
                "env" => say(environment),
                "exit" => code = argument.parse().unwrap_or(0),
                "sleep" => {
                    let time = super::seconds(&argument);
                    let limit = if request.timeout_ms == 0 { u64::MAX } else { request.timeout_ms };
                    if tokio::time::timeout(Duration::from_millis(limit), tokio::time::sleep(time)).await.is_err() {
                        let killed = GuestMessage::ExecFinished { id, code: 137, signal: Some(9), timed_out: true };
                        let _ = replies.send((killed, Bytes::new()));
                        return;
                    }
                }
                "cat" if cat => return,
                "cat" => {}
                other => {
                    let message = format!("{other}: no such program");
                    let _ = replies.send((GuestMessage::ExecFailed { id, message }, Bytes::new()));
                    return;
                }
            }
            let _ = replies.send((finished(id, code), Bytes::new()));
        };
        self.running.insert(id, Running { task: tokio::spawn(work).abort_handle(), cat });
    }
}

fn finished(id: u32, code: i32) -> GuestMessage {
    GuestMessage::ExecFinished { id, code, signal: None, timed_out: false }
}
