//! This process's terminal: its size, keys without Enter, raw mode, and what would end the process
//! without putting it back.

use std::{
    io::{self, IsTerminal as _, Read as _},
    sync::Once,
};

use bytes::Bytes;
use caddis_api::terminal::TerminalSize;
use parking_lot::Mutex;
use rustix::{
    process::getpgrp,
    termios::{
        LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr,
    },
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use crate::CliError;

/// Bytes of standard input read at once.
const CHUNK: usize = 16 * 1024;
/// Chunks of standard input read ahead.
const AHEAD: usize = 4;
/// Where nothing tells.
pub const DEFAULT_SIZE: TerminalSize = TerminalSize { columns: 80, rows: 24 };

/// The terminal's settings before they were changed, for whoever puts them back.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal on standard input with other settings, until this is dropped; also when the process
/// panics.
pub struct Mode;

impl Mode {
    /// All keys are the program's own.
    pub fn raw() -> io::Result<Self> {
        Self::enter(Termios::make_raw)
    }

    /// Keys come at once and are not shown; Ctrl-C and the like stay signals.
    fn keys() -> io::Result<Self> {
        Self::enter(|settings| settings.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO))
    }

    fn enter(change: impl FnOnce(&mut Termios)) -> io::Result<Self> {
        static HOOK: Once = Once::new();
        let before = tcgetattr(io::stdin())?;
        let mut changed = before.clone();
        change(&mut changed);
        *BEFORE.lock() = Some(before);
        HOOK.call_once(|| {
            let usual = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                usual(panic);
            }));
        });
        // From here on it is put back when this is dropped.
        let guard = Self;
        tcsetattr(io::stdin(), OptionalActions::Now, &changed)?;
        Ok(guard)
    }
}

impl Drop for Mode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Some(before) = BEFORE.lock().take() {
        // A terminal that has gone needs no settings.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

/// Whether standard input is a terminal.
pub fn is_on_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Columns and lines of the terminal on standard output. A serial console does not know.
pub fn screen_size() -> (usize, usize) {
    let size = tcgetwinsize(io::stdout()).ok().map(|size| (size.ws_col.into(), size.ws_row.into()));
    size.filter(|(columns, lines)| *columns > 0 && *lines > 0)
        .unwrap_or((DEFAULT_SIZE.columns.into(), DEFAULT_SIZE.rows.into()))
}

/// Waits until the user types `q`. Never ends where keys are not for us: input is no terminal, or
/// another job's, and to read would stop us.
///
/// # Errors
/// With the exit code of a signal that would have ended this process without putting the terminal
/// back.
pub async fn until_q() -> Result<(), CliError> {
    let foreground = tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp());
    if !foreground {
        return std::future::pending().await;
    }
    let Signals {
        ending: [(mut terminate, terminated), (mut hang_up, hung_up), (mut quit, has_quit)],
        ..
    } = Signals::watch()?;
    let _mode = Mode::keys()?;
    let (mut chunks, mut open) = (read_stdin(), true);
    loop {
        tokio::select! {
            chunk = chunks.recv(), if open => match chunk {
                Some(keys) if keys.contains(&b'q') => return Ok(()),
                chunk => open = chunk.is_some(),
            },
            _ = terminate.recv() => return Err(ended_by(terminated)),
            _ = hang_up.recv() => return Err(ended_by(hung_up)),
            _ = quit.recv() => return Err(ended_by(has_quit)),
        }
    }
}

/// An exit code that is ours from here on.
pub fn ended_by(code: i32) -> CliError {
    CliError::ExitCode(u8::try_from(code & 0xff).unwrap_or(1))
}

/// The size of the terminal that keys come from.
pub fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdin()).or_else(|_| tcgetwinsize(io::stdout())).ok()?;
    (size.ws_col > 0 && size.ws_row > 0)
        .then_some(TerminalSize { columns: size.ws_col, rows: size.ws_row })
}

/// Signals that would end this process without putting the terminal back, and the one that tells of
/// a new size.
pub struct Signals {
    pub resized: Signal,
    /// With the exit code of a process that they end.
    pub ending: [(Signal, i32); 3],
}

impl Signals {
    pub fn watch() -> io::Result<Self> {
        let ending =
            |kind: SignalKind| Ok::<_, io::Error>((signal(kind)?, 128 + kind.as_raw_value()));
        Ok(Self {
            resized: signal(SignalKind::window_change())?,
            ending: [
                ending(SignalKind::terminate())?,
                ending(SignalKind::hangup())?,
                ending(SignalKind::quit())?,
            ],
        })
    }
}

/// Reads on a thread of its own: one that waits for a key must not hold up the end of the process.
pub fn read_stdin() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    if sender.blocking_send(Bytes::copy_from_slice(&buffer[..count])).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receiver
}
