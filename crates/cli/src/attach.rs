//! A session in a machine that is attached to this process's terminal.

use std::{io, time::Duration};

use bytes::{Buf as _, Bytes};
use caddis_api::{MachineId, terminal::StartSession};
use caddis_client::{Client, FromSession, SessionReader, SessionWriter};
use tokio::{
    signal::unix::Signal,
    time::{Instant, interval_at},
};

use crate::{
    CliError,
    session::Session,
    terminal::{DEFAULT_SIZE, Mode, Signals, ended_by, is_on_terminal, read_stdin, size},
};

/// How often the server is told that we are there, though we may not be able to read.
const STILL_HERE: Duration = Duration::from_secs(20);

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
