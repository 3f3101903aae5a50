//! Interactive sessions: moves what a client types to a program in a machine, and back what that
//! says.
//!
//! Neither direction waits for the other. What goes to the guest is bounded by its window, of which
//! the client has one like it; what comes is taken from the guest as the client takes it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, Response},
    response::IntoResponse as _,
};
use bytes::{BufMut as _, Bytes, BytesMut};
use caddis_api::{
    ApiError, ErrorCode, LeaseNonce, MachineId,
    terminal::{ClientMessage, STDERR, STDIN, STDOUT, ServerMessage, StartSession, WINDOW_BYTES},
};
use caddis_bus::stream::frames::{self, Frame};
use caddis_guest_protocol::{
    SESSIONS_SINCE,
    host::{ExecEvent, ExecStream, Session, SessionError},
    message::{ExecRequest, LogSource},
};
use futures::{Stream, StreamExt as _};
use tokio::sync::mpsc;

use super::Failed;
use crate::{engine::Shared, requests};

/// Time until a client has said what to run.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Frames that wait for a slow client, beyond which nothing is taken from the guest.
const AHEAD: usize = 8;
/// Largest sum of arguments and environment, bytes: what Linux gives a program by default, halved.
const MAX_ARGUMENTS: usize = 1 << 20;

/// Opens a session. Errors of the machine are answered at once, all later ones within the session.
pub async fn session(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response<Body>, Failed> {
    let machine: MachineId = id.parse().map_err(|e| ApiError::invalid(format!("{e}")))?;
    let nonce = headers.get("fly-machine-lease-nonce").and_then(|value| value.to_str().ok());
    let guest =
        requests::session(&shared, &machine, Some(nonce.map(LeaseNonce::from_trusted))).await?;
    let (sender, mut receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        // Who has gone hears nothing more; the exec ends with the relay.
        let closed = sender.clone();
        tokio::select! {
            () = relay(&guest, frames::read(body), &sender) => {}
            () = closed.closed() => {}
        }
    });
    let frames = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
    let body = Body::from_stream(
        frames.map(|frame: Frame| Ok::<_, std::convert::Infallible>(frame.encode())),
    );
    Ok(body.into_response())
}

async fn relay(
    guest: &Session,
    mut client: impl Stream<Item = Result<Frame, String>> + Unpin,
    sender: &mpsc::Sender<Frame>,
) {
    let last = match start(guest, &mut client).await {
        Ok(Some((mut exec, line_end))) => run(&mut exec, &mut client, sender, line_end).await,
        Ok(None) => return,
        Err(error) => Err(error),
    };
    if let Err(ApiError { code, message, .. }) = last {
        // It may be gone.
        let _ = sender.send(text(&ServerMessage::Error { code, error: message })).await;
    }
}

fn text(message: &ServerMessage) -> Frame {
    // Plain data, for which serialisation has no way to fail.
    Frame::Text(serde_json::to_vec(message).unwrap_or_default().into())
}

fn parse(text: &[u8]) -> Result<ClientMessage, ApiError> {
    serde_json::from_slice(text).map_err(|e| ApiError::invalid(format!("invalid message: {e}")))
}

/// Starts what the client's first message asks for. `None` when it has gone.
async fn start(
    guest: &Session,
    client: &mut (impl Stream<Item = Result<Frame, String>> + Unpin),
) -> Result<Option<(ExecStream, &'static str)>, ApiError> {
    let first = tokio::time::timeout(START_TIMEOUT, client.next()).await;
    let first = first
        .map_err(|_| ApiError::invalid("invalid session: no start message arrived in time"))?;
    let Some(first) = first else { return Ok(None) };
    let wanted = match first.map_err(ApiError::invalid)? {
        Frame::Text(text) => parse(&text)?,
        Frame::Data(_) => {
            return Err(ApiError::invalid("invalid session: the first message must be a text"));
        }
    };
    let ClientMessage::Start(wanted) = wanted else {
        return Err(ApiError::invalid("invalid session: the first message must be of type start"));
    };
    check(&wanted)?;
    let needs_new = wanted.command.is_empty() || wanted.files || wanted.holds_machine;
    if needs_new && !guest.speaks(SESSIONS_SINCE) {
        return Err(ApiError::precondition(
            "the machine was started by an older version of the server and can't do this: restart \
             it, or name a program to run",
        ));
    }
    // What is written to a terminal in raw mode goes back to the line's begin by itself only.
    let line_end = if wanted.terminal.is_some() { "\r\n" } else { "\n" };
    let request = ExecRequest {
        argv: wanted.command,
        env: wanted.env.into_iter().collect(),
        user: wanted.user.filter(|user| !user.is_empty()),
        working_dir: wanted.working_dir.filter(|directory| !directory.is_empty()),
        terminal: wanted.terminal.map(|size| (size.columns, size.rows)),
        has_input: wanted.stdin || wanted.terminal.is_some(),
        files: wanted.files,
        holds_machine: wanted.holds_machine,
        ..ExecRequest::default()
    };
    let exec = guest.exec_stream(request).await.map_err(|e| broken(&e))?;
    Ok(Some((exec, line_end)))
}

fn check(wanted: &StartSession) -> Result<(), ApiError> {
    let words = || {
        let env = wanted.env.iter().flat_map(|(key, value)| [key, value]);
        wanted.command.iter().chain(env).chain(&wanted.user).chain(&wanted.working_dir)
    };
    if words().any(|word| word.contains('\0')) {
        return Err(ApiError::invalid("invalid session: a word contains a NUL"));
    }
    if words().map(|word| word.len() + 1).sum::<usize>() > MAX_ARGUMENTS {
        return Err(ApiError::invalid(format!(
            "invalid session: command and env are larger than {MAX_ARGUMENTS} bytes"
        )));
    }
    if wanted.command.first().is_some_and(String::is_empty) {
        return Err(ApiError::invalid("invalid command, the program has no name"));
    }
    if wanted.env.keys().any(|key| key.is_empty() || key.contains('=')) {
        return Err(ApiError::invalid("invalid env, a name is empty or contains a ="));
    }
    if wanted.files && (wanted.terminal.is_some() || wanted.command.is_empty()) {
        return Err(ApiError::invalid("invalid session: files takes a command and no terminal"));
    }
    Ok(())
}

fn broken(error: &SessionError) -> ApiError {
    ApiError::new(
        ErrorCode::Unavailable,
        format!("unavailable: the session was interrupted: {error}"),
    )
}

/// Moves everything until the program has ended, or the client has gone.
async fn run(
    exec: &mut ExecStream,
    client: &mut (impl Stream<Item = Result<Frame, String>> + Unpin),
    sender: &mpsc::Sender<Frame>,
    line_end: &str,
) -> Result<(), ApiError> {
    let (mut output, mut input) = (VecDeque::new(), Input::default());
    let mut over = false;
    while !over || !output.is_empty() {
        tokio::select! {
            permit = sender.reserve(), if !output.is_empty() => match (permit, output.pop_front()) {
                (Ok(permit), Some(frame)) => permit.send(frame),
                _ => return Ok(()),
            },
            event = exec.next(), if !over && output.len() < AHEAD => {
                let frame = match event {
                    None => return Err(broken(&SessionError::Broken)),
                    Some(ExecEvent::Failed { message, code: None }) => {
                        return Err(ApiError::invalid(message));
                    }
                    // As a shell tells it.
                    Some(ExecEvent::Failed { message, code: Some(exit_code) }) => {
                        over = true;
                        let line = format!("{message}{line_end}");
                        output.push_back(data(LogSource::Stderr, line.as_bytes()));
                        Some(text(&ServerMessage::Exit { exit_code, exit_signal: 0 }))
                    }
                    Some(ExecEvent::Credit { .. }) => None,
                    Some(ExecEvent::Output { source, bytes }) => Some(data(source, &bytes)),
                    Some(ExecEvent::Finished { code, signal, .. }) => {
                        over = true;
                        let exit_signal = signal.unwrap_or(0);
                        Some(text(&ServerMessage::Exit { exit_code: code, exit_signal }))
                    }
                };
                output.extend(frame);
            }
            frame = client.next() => match frame {
                Some(Ok(frame)) => input.take(exec, &frame)?,
                Some(Err(_)) | None => return Ok(()),
            },
        }
        let moved = input.pass_on(exec);
        if moved > 0 && !over {
            output.push_back(text(&ServerMessage::Credit { bytes: moved }));
        }
    }
    Ok(())
}

fn data(source: LogSource, bytes: &[u8]) -> Frame {
    let mut frame = BytesMut::with_capacity(1 + bytes.len());
    frame.put_u8(if source == LogSource::Stderr { STDERR } else { STDOUT });
    frame.put_slice(bytes);
    Frame::Data(frame.freeze())
}

/// What the client has sent and the guest does not take yet.
#[derive(Default)]
struct Input {
    waiting: VecDeque<Bytes>,
    bytes: usize,
    ends: bool,
}

impl Input {
    fn take(&mut self, exec: &ExecStream, frame: &Frame) -> Result<(), ApiError> {
        match frame {
            Frame::Data(data) => {
                let Some((&STDIN, _)) = data.split_first() else {
                    return Err(ApiError::invalid(
                        "invalid message: a client sends binary messages that begin with 0",
                    ));
                };
                self.bytes += data.len() - 1;
                if self.bytes > WINDOW_BYTES {
                    let text = format!(
                        "invalid message: more than {WINDOW_BYTES} bytes of input were not \
                         credited yet"
                    );
                    return Err(ApiError::invalid(text));
                }
                self.waiting.push_back(data.slice(1..));
            }
            Frame::Text(text) => match parse(text)? {
                ClientMessage::Resize(size) => exec.resize(size.columns, size.rows),
                ClientMessage::Signal { signal } => exec.signal(signal.number()),
                ClientMessage::Eof => self.ends = true,
                ClientMessage::Start(_) => {
                    return Err(ApiError::invalid("invalid message: the session has started"));
                }
            },
        }
        Ok(())
    }

    /// Gives the guest what it takes. Says how much that was, bytes.
    fn pass_on(&mut self, exec: &mut ExecStream) -> u32 {
        let mut moved = 0;
        while let Some(front) = self.waiting.front_mut() {
            let count = exec.send_input(front);
            moved += count;
            let rest = front.split_off(count);
            *front = rest;
            if front.is_empty() {
                self.waiting.pop_front();
            } else if count == 0 {
                break;
            }
        }
        self.bytes -= moved;
        if self.ends && self.waiting.is_empty() {
            self.ends = false;
            exec.close_input();
        }
        // At most a window.
        u32::try_from(moved).unwrap_or(u32::MAX)
    }
}
