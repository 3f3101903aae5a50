//! `/.fly/api`: a socket by which programs ask over HTTP that their machine is not put to sleep
//! when idle.
//!
//! | request | answer |
//! |---|---|
//! | `PUT /hold?ttl=SECONDS` | 200 `{"until": TIME}` |
//! | `DELETE /hold` | 200 `{"ok": true}` |
//! | anything else | `{"error": TEXT}` |
//!
//! The host decides ([`GuestMessage::Hold`](caddis_guest_protocol::GuestMessage::Hold)). Nothing
//! here waits for a client: each has little time and little room, and one request. No number of
//! clients keeps init from its other work: so many are taken within a time.

use std::{
    fs,
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

mod request;

use request::{Refused, parse};

/// Where the reference has it.
pub const DIRECTORY: &str = "/.fly";
/// Clients at once; more wait until one has its answer.
const MOST_CLIENTS: usize = 16;
/// Connections taken within a time; the others wait.
const MOST_TAKEN: (usize, Duration) = (64, Duration::from_millis(100));
/// Longest request line with headers, bytes.
const MAX_HEAD: usize = 8 * 1024;
/// Time for a request, its answer by the host, and its reading by the client.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// What a client has sent beyond its request is read before the connection is closed, else it may
/// be reset; at most so many bytes.
const SURPLUS: usize = 64 * 1024;

/// The socket and its clients.
pub struct Api {
    listener: UnixListener,
    clients: Vec<Client>,
    last_id: u32,
    /// Connections taken since a time.
    taken: (usize, Option<Instant>),
    /// More wait, perhaps, and are taken from then on.
    rests_until: Option<Instant>,
    /// Something may have happened to the socket or a client.
    ready: bool,
}

struct Client {
    stream: UnixStream,
    until: Instant,
    stage: Stage,
}

enum Stage {
    /// Sends its request: what there is of it.
    Asks(Vec<u8>),
    /// Waits for the host.
    Waits { id: u32 },
    /// Is answered: what is left of it.
    Answered(Vec<u8>),
}

/// What a client asks of the host.
#[derive(Debug, PartialEq, Eq)]
pub struct Ask {
    /// To be given back with the answer.
    pub id: u32,
    /// Keep the machine awake for so many seconds; `None` for no longer.
    pub ttl_seconds: Option<u64>,
}

/// Makes the socket in a directory, in place of what the image has there.
///
/// # Errors
/// What is in the way, or can't be done.
pub fn bind(directory: &Path) -> Result<UnixListener, String> {
    let path = directory.join("api");
    let failed = |error: io::Error| format!("no {}: {error}", path.display());
    match fs::create_dir(directory) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            if !fs::symlink_metadata(directory).map_err(failed)?.is_dir() {
                let there = directory.display();
                return Err(format!(
                    "no {}: the image has no directory at {there}",
                    path.display()
                ));
            }
        }
        made => made.map_err(failed)?,
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    // For programs of any user.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).map_err(failed)?;
    Ok(listener)
}

impl Api {
    /// Serves the clients of a socket.
    pub fn new(listener: UnixListener) -> Self {
        let (clients, taken) = (Vec::new(), (0, None));
        Self { listener, clients, last_id: 0, taken, rests_until: None, ready: true }
    }

    /// The socket.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Something may have happened to the socket or a client.
    pub fn wake(&mut self) {
        self.ready = true;
    }

    /// When a client's time is over, or more clients are taken.
    pub fn deadline(&self) -> Option<Instant> {
        self.clients.iter().map(|client| client.until).chain(self.rests_until).min()
    }

    /// Moves all that can be moved. Returns what the host is to be asked; `watch` has a new client
    /// be heard of.
    pub fn pump(
        &mut self,
        now: Instant,
        watch: impl Fn(&UnixStream) -> Result<(), String>,
    ) -> Vec<Ask> {
        let mut asks = Vec::new();
        if self.deadline().is_some_and(|at| at <= now) {
            self.ready = true;
        }
        while std::mem::take(&mut self.ready) {
            self.accept(now, &watch);
            let (last_id, before) = (&mut self.last_id, self.clients.len());
            self.clients.retain_mut(|client| client.pump(now, last_id, &mut asks));
            // There is room for who waits.
            self.ready = before == MOST_CLIENTS && self.clients.len() < before;
        }
        asks
    }

    fn accept(&mut self, now: Instant, watch: impl Fn(&UnixStream) -> Result<(), String>) {
        let (most, within) = MOST_TAKEN;
        let (count, since) = match self.taken {
            (count, Some(since)) if now < since + within => (count, since),
            _ => (0, now),
        };
        self.taken = (count, Some(since));
        self.rests_until = None;
        while self.clients.len() < MOST_CLIENTS {
            if self.taken.0 >= most {
                self.rests_until = Some(since + within);
                return;
            }
            // Who has hung up meanwhile is not there; anything else is told by the next event.
            let Ok((stream, _)) = self.listener.accept() else { return };
            self.taken.0 += 1;
            if stream.set_nonblocking(true).is_ok() && watch(&stream).is_ok() {
                let stage = Stage::Asks(Vec::new());
                self.clients.push(Client { stream, until: now + REQUEST_TIMEOUT, stage });
            }
        }
    }

    /// The host has answered: when the hold ends, or with which status it was refused and why.
    pub fn answer(&mut self, id: u32, outcome: Result<Option<String>, (u16, String)>) {
        let waits =
            |client: &&mut Client| matches!(client.stage, Stage::Waits { id: of } if of == id);
        let Some(client) = self.clients.iter_mut().find(waits) else { return };
        client.stage = Stage::Answered(match outcome {
            Ok(Some(until)) => response(200, &json!({ "until": until })),
            Ok(None) => response(200, &json!({ "ok": true })),
            Err((status, error)) => response(status, &json!({ "error": error })),
        });
        self.ready = true;
    }
}

impl Client {
    /// False when it is done with.
    fn pump(&mut self, now: Instant, last_id: &mut u32, asks: &mut Vec<Ask>) -> bool {
        if self.until <= now {
            return false;
        }
        if let Stage::Asks(head) = &mut self.stage {
            let ended = match read(&mut self.stream, head, MAX_HEAD) {
                Ok(ended) => ended,
                Err(_) => return false,
            };
            match parse(head, MAX_HEAD) {
                None if ended => return false,
                None => return true,
                Some(Ok(ttl_seconds)) => {
                    *last_id = last_id.wrapping_add(1);
                    asks.push(Ask { id: *last_id, ttl_seconds });
                    self.stage = Stage::Waits { id: *last_id };
                }
                Some(Err(Refused { status, error })) => {
                    self.stage = Stage::Answered(response(status, &json!({ "error": error })));
                }
            }
        }
        let Stage::Answered(rest) = &mut self.stage else { return true };
        loop {
            match self.stream.write(rest) {
                Ok(count) => drop(rest.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
            if rest.is_empty() {
                // Its answer is there; how the connection ends does not matter then.
                let _ = read(&mut self.stream, &mut Vec::new(), SURPLUS);
                return false;
            }
        }
    }
}

/// Reads what there is, up to a limit. True when the other end has said all.
fn read(stream: &mut UnixStream, bytes: &mut Vec<u8>, limit: usize) -> io::Result<bool> {
    let mut buffer = [0; 2048];
    while bytes.len() < limit {
        let room = buffer.len().min(limit - bytes.len());
        match stream.read(&mut buffer[..room]) {
            Ok(0) => return Ok(true),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn response(status: u16, body: &Value) -> Vec<u8> {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed\r\nAllow: PUT, DELETE",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        507 => "Insufficient Storage",
        _ => "Internal Server Error",
    };
    let body = format!("{body}\n");
    let length = body.len();
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests;
