//! Interactive sessions over a WebSocket, `GET …/exec/ws`. Caddis extension.
//!
//! ```text
//! client                                        server
//!  │ text   {"type":"start", …} ────────────────▶ │   first, once
//!  │ binary 0 + standard input ─────────────────▶ │   at most [`WINDOW_BYTES`] beyond the credit
//!  │ text   resize, signal, eof ────────────────▶ │
//!  │ ◀──────── binary 1 + standard output, 2 + standard error
//!  │ ◀──────── text {"type":"credit","bytes":n}   │   so much more input may be sent
//!  │ ◀──────── text {"type":"exit", …} or error   │   last, then it closes
//! ```

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ErrorCode, Signal};

/// First byte of a binary message with standard input.
pub const STDIN: u8 = 0;
/// First byte of a binary message with standard output, or what a terminal shows.
pub const STDOUT: u8 = 1;
/// First byte of a binary message with standard error.
pub const STDERR: u8 = 2;

/// Bytes of input that may be under way before the server credits more.
pub const WINDOW_BYTES: usize = 256 * 1024;

/// Largest message of a client, bytes.
pub const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// A terminal's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TerminalSize {
    /// Characters per line.
    #[schema(minimum = 1)]
    pub columns: u16,
    /// Lines.
    #[schema(minimum = 1)]
    pub rows: u16,
}

/// What a session runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({
    "command": ["sh"], "terminal": { "columns": 80, "rows": 24 }, "stdin": true
}))]
pub struct StartSession {
    /// Program and arguments; none is the user's shell.
    pub command: Vec<String>,
    /// `user[:group]`, the machine's own by default.
    pub user: Option<String>,
    /// Added to the machine's environment.
    pub env: std::collections::BTreeMap<String, String>,
    /// The machine's by default.
    pub working_dir: Option<String>,
    /// Run it on a terminal of this size.
    pub terminal: Option<TerminalSize>,
    /// Standard input will be sent; otherwise it is empty. A terminal always has some.
    pub stdin: bool,
    /// `command` is for the server's own program in the machine, which copies files and needs
    /// nothing of the image: `get [-R] PATH`, `put PATH NAME`, `find PATH`.
    pub files: bool,
    /// The machine runs as long as this session, even when its own program ends, and ends with it.
    pub holds_machine: bool,
}

/// Text messages of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    /// The first message: what to run.
    Start(StartSession),
    /// The terminal has a new size.
    Resize(TerminalSize),
    /// Send a signal to what runs in the terminal's foreground.
    Signal {
        /// Name or number.
        signal: Signal,
    },
    /// No more input follows.
    Eof,
}

/// Text messages of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    /// More input may be sent.
    Credit {
        /// Number of bytes.
        bytes: u32,
    },
    /// The program has ended, after all its output.
    Exit {
        /// Exit status, or 128 + signal number.
        exit_code: i32,
        /// The signal that ended it, 0 for none.
        exit_signal: i32,
    },
    /// It could not be run, or the session is broken.
    Error {
        /// Stable reason.
        code: ErrorCode,
        /// Human-readable text.
        error: String,
    },
}
