//! Interactive sessions: a program in a machine, over a WebSocket.

use bytes::{BufMut as _, Bytes, BytesMut};
use caddis_api::{
    LeaseNonce, MachineId,
    error::{ApiError, ErrorBody},
    terminal::{
        ClientMessage, STDERR, STDIN, STDOUT, ServerMessage, StartSession, TerminalSize,
        WINDOW_BYTES,
    },
};
use futures::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use http::Method;
use reqwest::Upgraded;
use tokio::sync::watch;
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use crate::{Client, ClientError, machines::machine_request};

/// Largest piece of input in one message, bytes.
const PIECE: usize = 32 * 1024;
/// For error messages.
const NAME: &str = "the session";

type Socket = WebSocketStream<Upgraded>;

/// What a session says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromSession {
    /// Standard output, or what the terminal shows.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// The program has ended with this status, 128 + signal number where a signal ended it.
    Exit(i32),
}

/// Listens to a session. When it is dropped together with the writer, the program is hung up on.
pub struct SessionReader {
    source: SplitStream<Socket>,
    credit: watch::Sender<u64>,
}

/// Talks to a session.
pub struct SessionWriter {
    sink: SplitSink<Socket, Message>,
    credit: watch::Receiver<u64>,
    sent: u64,
}

impl Client {
    /// `GET …/exec/ws`: runs a program interactively. With `remove_app` the server deletes the app
    /// when the session is over, whatever becomes of this client.
    ///
    /// # Errors
    /// 412 when the machine does not run. What is wrong with the program comes as an error of the
    /// session.
    pub async fn session(
        &self,
        app: &str,
        machine: &MachineId,
        start: StartSession,
        nonce: Option<&LeaseNonce>,
        remove_app: bool,
    ) -> Result<(SessionReader, SessionWriter), ClientError> {
        let mut request =
            machine_request(Method::GET, app, machine, Some("exec")).nonce(nonce).timeout(None);
        request.path.push("ws");
        if remove_app {
            request = request.query("remove_app", true);
        }
        let (sink, source) = self.upgrade(&request).await?.split();
        let (sender, credit) = watch::channel(WINDOW_BYTES as u64);
        let mut writer = SessionWriter { sink, credit, sent: 0 };
        writer.say(&ClientMessage::Start(start)).await?;
        Ok((SessionReader { source, credit: sender }, writer))
    }
}

fn broken(reason: impl ToString) -> ClientError {
    ClientError::Interrupted { request: NAME.to_owned(), reason: reason.to_string() }
}

fn unreadable(reason: impl ToString) -> ClientError {
    ClientError::Unreadable { request: NAME.to_owned(), reason: reason.to_string() }
}

impl SessionReader {
    /// The next thing it says; the last is how it ended.
    ///
    /// # Errors
    /// When the program could not be run, or the connection broke.
    pub async fn next(&mut self) -> Result<FromSession, ClientError> {
        loop {
            let message = self
                .source
                .next()
                .await
                .ok_or_else(|| broken("the server ended it"))?
                .map_err(broken)?;
            match message {
                Message::Binary(data) => match data.first() {
                    Some(&STDOUT) => return Ok(FromSession::Stdout(data.slice(1..))),
                    Some(&STDERR) => return Ok(FromSession::Stderr(data.slice(1..))),
                    other => return Err(unreadable(format!("a message of channel {other:?}"))),
                },
                Message::Text(text) => match serde_json::from_str(&text).map_err(unreadable)? {
                    ServerMessage::Credit { bytes } => {
                        self.credit.send_modify(|credit| *credit += u64::from(bytes));
                    }
                    ServerMessage::Exit { exit_code, .. } => {
                        return Ok(FromSession::Exit(exit_code));
                    }
                    ServerMessage::Error { code, error } => {
                        let body: ErrorBody = ApiError::new(code, error).body(None);
                        let body = serde_json::to_vec(&body).map_err(unreadable)?;
                        return Err(ClientError::from_reply(code.http_status(), None, &body));
                    }
                },
                Message::Close(_) => return Err(broken("the server ended it")),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }
}

impl SessionWriter {
    async fn say(&mut self, message: &ClientMessage) -> Result<(), ClientError> {
        let text = serde_json::to_string(message).map_err(broken)?;
        self.sink.send(Message::Text(text.into())).await.map_err(broken)
    }

    /// How much input may be sent now, bytes.
    pub fn room(&self) -> usize {
        let room = self.credit.borrow().saturating_sub(self.sent);
        usize::try_from(room).unwrap_or(usize::MAX).min(PIECE)
    }

    /// Waits until there is room for input. Waits for ever when nobody reads the session any more.
    pub async fn until_room(&mut self) {
        let sent = self.sent;
        if self.credit.wait_for(|credit| *credit > sent).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Sends input, at most [`Self::room`] bytes of it. Says how many.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn input(&mut self, input: &[u8]) -> Result<usize, ClientError> {
        let count = input.len().min(self.room());
        if count > 0 {
            let mut data = BytesMut::with_capacity(1 + count);
            data.put_u8(STDIN);
            data.put_slice(&input[..count]);
            self.sent += count as u64;
            self.sink.send(Message::Binary(data.freeze())).await.map_err(broken)?;
        }
        Ok(count)
    }

    /// No more input follows.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn end_input(&mut self) -> Result<(), ClientError> {
        self.say(&ClientMessage::Eof).await
    }

    /// The terminal has a new size.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn resize(&mut self, size: TerminalSize) -> Result<(), ClientError> {
        self.say(&ClientMessage::Resize(size)).await
    }

    /// Says that this client is still there, though it may not be able to read.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn still_here(&mut self) -> Result<(), ClientError> {
        self.sink.send(Message::Ping(Bytes::new())).await.map_err(broken)
    }
}
