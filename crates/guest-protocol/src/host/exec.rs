//! Programs run beside the machine's own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::{Command, SEND_DEADLINE, Session, SessionError};
use crate::{
    HostMessage, STREAM_WINDOW_BYTES,
    frame::MAX_PAYLOAD,
    message::{ExecRequest, LogSource},
};

/// What an exec says.
#[derive(Debug, Clone, PartialEq)]
pub enum ExecEvent {
    /// Output.
    Output {
        /// Which stream.
        source: LogSource,
        /// Bytes.
        bytes: Bytes,
    },
    /// It took so many bytes of its input.
    Credit {
        /// How many.
        bytes: u32,
    },
    /// It ended; all its output came before.
    Finished {
        /// Exit status, or 128 + signal number.
        code: i32,
        /// The signal that ended it.
        signal: Option<i32>,
        /// It was killed at its timeout.
        timed_out: bool,
    },
    /// It could not be started.
    Failed {
        /// Why.
        message: String,
        /// Exit status that a shell would give, where it is about the program.
        code: Option<i32>,
    },
}

/// Where a connection brings what an exec says.
pub(super) struct ExecRoute {
    events: mpsc::UnboundedSender<ExecEvent>,
    /// Bytes of output that wait to be taken.
    held: Arc<AtomicUsize>,
}

impl ExecRoute {
    /// Brings it, if anybody still follows the exec.
    ///
    /// # Errors
    /// When the guest sends more than it may.
    pub(super) fn bring(&self, event: ExecEvent) -> Result<(), String> {
        if let ExecEvent::Output { bytes, .. } = &event {
            let held = self.held.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
            // Its window, and room for what was under way.
            if held > 2 * STREAM_WINDOW_BYTES || bytes.is_empty() {
                return Err("the guest sends output beyond its window".to_owned());
            }
        }
        // It fails when nobody follows it.
        let _ = self.events.send(event);
        Ok(())
    }
}

/// A program to run to its end.
#[derive(Debug, Clone, Default)]
pub struct ExecCommand {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the machine's environment.
    pub env: Vec<(String, String)>,
    /// `user[:group]`; default is the machine's.
    pub user: Option<String>,
    /// Default is the machine's.
    pub working_dir: Option<String>,
    /// Killed after it; zero means never.
    pub timeout: Duration,
    /// All of its standard input.
    pub stdin: Bytes,
    /// What is kept of each output stream, bytes.
    pub output_limit: usize,
}

/// How it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOutcome {
    /// Exit status, or 128 + signal number.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// It was killed at its timeout.
    pub timed_out: bool,
    /// Standard output, up to the limit.
    pub stdout: Vec<u8>,
    /// Standard error, up to the limit.
    pub stderr: Vec<u8>,
    /// Output beyond the limit was dropped.
    pub truncated: bool,
}

/// A running exec. Dropping it hangs up on the program.
pub struct ExecStream {
    session: Session,
    id: u32,
    events: mpsc::UnboundedReceiver<ExecEvent>,
    credit: usize,
    held: Arc<AtomicUsize>,
    over: bool,
}

impl ExecStream {
    /// The next thing it says; `None` when the connection broke before it ended.
    pub async fn next(&mut self) -> Option<ExecEvent> {
        let event = self.events.recv().await;
        match &event {
            Some(ExecEvent::Output { bytes, .. }) => {
                self.held.fetch_sub(bytes.len(), Ordering::Relaxed);
                let bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                self.session.post(HostMessage::Credit { id: self.id, bytes });
            }
            Some(ExecEvent::Credit { bytes }) => self.credit += *bytes as usize,
            Some(ExecEvent::Finished { .. } | ExecEvent::Failed { .. }) => self.over = true,
            None => {}
        }
        event
    }

    /// How many bytes of input may be sent now.
    pub fn credit(&self) -> usize {
        self.credit.min(MAX_PAYLOAD)
    }

    /// Sends input: at most [`ExecStream::credit`] bytes of it. Says how many.
    pub fn send_input(&mut self, input: &Bytes) -> usize {
        let count = input.len().min(self.credit());
        if count > 0 {
            self.credit -= count;
            let message = HostMessage::Input { id: self.id };
            let _ = self.session.command(Command::Send {
                message,
                payload: input.slice(..count),
                sent: None,
            });
        }
        count
    }

    /// No more input follows.
    pub fn close_input(&self) {
        self.session.post(HostMessage::CloseInput { id: self.id });
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        self.session.post(HostMessage::SignalExec { id: self.id, signal });
    }

    /// Its terminal has a new size.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.session.post(HostMessage::Resize { id: self.id, columns, rows });
    }
}

impl Drop for ExecStream {
    fn drop(&mut self) {
        if !self.over {
            let _ = self.session.command(Command::Cancel { id: self.id });
        }
    }
}

impl Session {
    /// Starts a program and gives its streams. The id in `request` is replaced.
    ///
    /// # Errors
    /// When the guest can't be reached.
    pub async fn exec_stream(&self, mut request: ExecRequest) -> Result<ExecStream, SessionError> {
        request.id = self.next_id();
        let (sender, events) = mpsc::unbounded_channel();
        let held = Arc::new(AtomicUsize::new(0));
        let stream = ExecStream {
            session: self.clone(),
            id: request.id,
            events,
            credit: STREAM_WINDOW_BYTES,
            held: held.clone(),
            over: false,
        };
        let (sent, answer) = oneshot::channel();
        self.command(Command::Exec { request, route: ExecRoute { events: sender, held }, sent })?;
        match tokio::time::timeout(SEND_DEADLINE, answer).await {
            Ok(Ok(result)) => result.map(|()| stream),
            Ok(Err(_)) => Err(SessionError::Closed),
            Err(_) => Err(SessionError::NotConnected),
        }
    }

    /// Runs a program to its end and collects its output. Dropping the future kills the program.
    ///
    /// # Errors
    /// When it could not be started, or the connection broke.
    pub async fn exec(&self, command: ExecCommand) -> Result<ExecOutcome, SessionError> {
        let mut stream = self
            .exec_stream(ExecRequest {
                id: 0,
                argv: command.argv,
                env: command.env,
                user: command.user,
                working_dir: command.working_dir,
                terminal: None,
                timeout_ms: u64::try_from(command.timeout.as_millis()).unwrap_or(u64::MAX),
                has_input: !command.stdin.is_empty(),
                ..ExecRequest::default()
            })
            .await?;
        let mut stdin = command.stdin;
        let mut outcome = ExecOutcome::default();
        let mut open = !stdin.is_empty();
        loop {
            while open && stream.credit() > 0 {
                let count = stream.send_input(&stdin);
                stdin = stdin.split_off(count);
                if stdin.is_empty() {
                    stream.close_input();
                    open = false;
                }
            }
            match stream.next().await.ok_or(SessionError::Broken)? {
                ExecEvent::Output { source, bytes } => {
                    let kept = if source == LogSource::Stderr {
                        &mut outcome.stderr
                    } else {
                        &mut outcome.stdout
                    };
                    let room = command.output_limit.saturating_sub(kept.len()).min(bytes.len());
                    kept.extend_from_slice(&bytes[..room]);
                    outcome.truncated |= room < bytes.len();
                }
                ExecEvent::Credit { .. } => {}
                ExecEvent::Finished { code, signal, timed_out } => {
                    for kept in [&mut outcome.stdout, &mut outcome.stderr] {
                        if outcome.truncated && kept.len() == command.output_limit {
                            // Not in the middle of a character.
                            kept.truncate(crate::text::whole(kept));
                        }
                    }
                    return Ok(ExecOutcome { code, signal, timed_out, ..outcome });
                }
                // As a shell tells it: the command has run as far as anybody can see.
                ExecEvent::Failed { message, code: Some(code) } => {
                    let stderr = format!("{message}\n").into_bytes();
                    return Ok(ExecOutcome { code, stderr, ..ExecOutcome::default() });
                }
                ExecEvent::Failed { message, code: None } => {
                    return Err(SessionError::Refused(message));
                }
            }
        }
    }
}
