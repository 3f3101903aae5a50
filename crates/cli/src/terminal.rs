//! This process's terminal: its size, keys without Enter, raw mode, and a session in a machine that
//! is attached to it.

use std::{
    io::{self, IsTerminal as _, Read as _},
    sync::{Mutex, Once, PoisonError},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use caddis_api::{
    MachineId,
    terminal::{StartSession, TerminalSize},
};
use caddis_client::{Client, FromSession, SessionReader, SessionWriter};
use rustix::{
    process::getpgrp,
    termios::{
        LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr,
    },
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Instant, interval_at},
};

use crate::{CliError, session::Session};

/// Bytes of standard input read at once.
const CHUNK: usize = 16 * 1024;
/// Chunks of standard input read ahead.
const AHEAD: usize = 4;
/// How often the server is told that we are there, though we may not be able to read.
const STILL_HERE: Duration = Duration::from_secs(20);
/// Where nothing tells.
const DEFAULT_SIZE: TerminalSize = TerminalSize { columns: 80, rows: 24 };

/// The terminal's settings before they were changed, for whoever puts them back.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal on standard input with other settings, until this is dropped; also when the process
/// panics.
struct Mode;

impl Mode {
    /// All keys are the program's own.
    fn raw() -> io::Result<Self> {
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
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
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
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
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

fn ended_by(code: i32) -> CliError {
    CliError::ExitCode(u8::try_from(code & 0xff).unwrap_or(1))
}

fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdin()).or_else(|_| tcgetwinsize(io::stdout())).ok()?;
    (size.ws_col > 0 && size.ws_row > 0)
        .then_some(TerminalSize { columns: size.ws_col, rows: size.ws_row })
}

/// What to run, and how.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// Program and arguments; none is the user's shell.
    pub command: Vec<String>,
    /// As whom; the machine's own user by default.
    pub user: Option<String>,
    /// Run it on a terminal.
    pub pty: bool,
    /// Pass on standard input.
    pub stdin: bool,
    /// The machine lives as long as the session, at least and at most.
    pub holds_machine: bool,
    /// The server deletes the app at the end.
    pub remove_app: bool,
}

/// Runs a program in a machine with this process's standard streams. Its exit code is ours.
pub async fn attach(
    session: &Session,
    client: &Client,
    app: &str,
    machine: &MachineId,
    program: Program,
) -> Result<(), CliError> {
    let term = session.environment.get("TERM").filter(|_| program.pty);
    let start = StartSession {
        command: program.command,
        user: program.user,
        env: term.map(|term| ("TERM".to_owned(), term.to_owned())).into_iter().collect(),
        terminal: program.pty.then(|| size().unwrap_or(DEFAULT_SIZE)),
        stdin: program.stdin,
        holds_machine: program.holds_machine,
        ..StartSession::default()
    };
    let signals = Signals::watch()?;
    let opened = client.session(app, machine, start, None, program.remove_app).await;
    let (reader, writer) =
        opened.map_err(|e| CliError::attempted("could not open a session in the machine", e))?;
    let raw = if program.pty && is_on_terminal() { Some(Mode::raw()?) } else { None };
    let outcome = run(session, reader, writer, program.stdin, signals, program.pty).await;
    drop(raw);
    match outcome? {
        0 => Ok(()),
        code => Err(ended_by(code)),
    }
}

/// Signals that would end this process without putting the terminal back, and the one that tells of
/// a new size.
struct Signals {
    resized: Signal,
    ending: [(Signal, i32); 3],
}

impl Signals {
    fn watch() -> io::Result<Self> {
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

async fn run(
    session: &Session,
    mut reader: SessionReader,
    mut writer: SessionWriter,
    stdin: bool,
    Signals { mut resized, ending }: Signals,
    pty: bool,
) -> Result<i32, CliError> {
    let [(mut terminate, terminated), (mut hang_up, hung_up), (mut quit, has_quit)] = ending;
    let hear = async {
        loop {
            let (bytes, is_error) = match reader.next().await? {
                FromSession::Stdout(bytes) => (bytes, false),
                FromSession::Stderr(bytes) => (bytes, true),
                FromSession::Exit(code) => return Ok(code),
            };
            let printer = session.printer.clone();
            // A reader of ours that takes its time must not hold up what is typed.
            let written = tokio::task::spawn_blocking(move || printer.bytes(&bytes, is_error));
            written.await.map_err(io::Error::other)??;
        }
    };
    let talk = async {
        // Nothing can be said any more: whoever listens hears why.
        let _ = talk(&mut writer, stdin, &mut resized, pty).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        code = hear => code,
        () = talk => unreachable!("it never ends"),
        _ = terminate.recv() => Ok(terminated),
        _ = hang_up.recv() => Ok(hung_up),
        _ = quit.recv(), if pty => Ok(has_quit),
    }
}

async fn talk(
    writer: &mut SessionWriter,
    stdin: bool,
    resized: &mut Signal,
    pty: bool,
) -> Result<(), caddis_client::ClientError> {
    let (mut chunks, mut pending, mut open) = (stdin.then(read_stdin), Bytes::new(), stdin);
    let mut still_here = interval_at(Instant::now() + STILL_HERE, STILL_HERE);
    loop {
        let next = async {
            match &mut chunks {
                Some(chunks) => chunks.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            chunk = next, if open && pending.is_empty() => match chunk {
                Some(chunk) => pending = chunk,
                None => {
                    open = false;
                    writer.end_input().await?;
                }
            },
            () = writer.until_room(), if !pending.is_empty() => {
                let count = writer.input(&pending).await?;
                pending.advance(count);
            }
            _ = resized.recv(), if pty => {
                if let Some(size) = size() {
                    writer.resize(size).await?;
                }
            }
            _ = still_here.tick() => writer.still_here().await?,
        }
    }
}

/// Reads on a thread of its own: one that waits for a key must not hold up the end of the process.
fn read_stdin() -> mpsc::Receiver<Bytes> {
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
