//! What copying both ways has in common: how far it is, the other end's words, and archives read
//! from a channel.

use std::{
    io::{self, Read},
    time::{Duration, Instant},
};

use bytes::{Buf as _, Bytes};
use caddis_api::{MachineId, terminal::StartSession};
use caddis_client::{Client, SessionReader, SessionWriter};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;

use crate::{CliError, Printer};

/// Name of what is copied, in archives.
pub const CONTENT: &str = "content";
/// Name of an archive's last entry.
pub const COMPLETE: &str = "complete";
/// What takes less long is not worth a bar.
const SHORT: Duration = Duration::from_secs(1);
/// What is kept of the other end's errors, bytes.
const MOST_WORDS: usize = 16 * 1024;

/// Starts the program for files in a machine.
pub async fn open(
    client: &Client,
    app: &str,
    machine: &MachineId,
    arguments: &[&str],
    stdin: bool,
) -> Result<(SessionReader, SessionWriter), CliError> {
    let command = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let start = StartSession {
        command,
        files: true,
        stdin,
        user: Some("root".to_owned()),
        ..StartSession::default()
    };
    let opened = client.session(app, machine, start, None, false).await;
    opened.map_err(|e| CliError::attempted("could not reach the files of the machine", e))
}

/// How far it is.
pub struct Progress {
    printer: Printer,
    started: Instant,
    total: Option<u64>,
    pub done: u64,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub fn new(printer: &Printer, total: Option<u64>) -> Self {
        Self { printer: printer.clone(), started: Instant::now(), total, done: 0, bar: None }
    }

    pub fn add(&mut self, bytes: usize) {
        self.done += bytes as u64;
        if self.bar.is_none() && self.printer.draws_progress() && self.started.elapsed() > SHORT {
            let (bar, template) = match self.total {
                Some(total) => {
                    let template = "[{bar:30}] {decimal_bytes}/{decimal_total_bytes} \
                                    {decimal_bytes_per_sec} {eta}";
                    (ProgressBar::new(total), template)
                }
                None => (
                    ProgressBar::new_spinner(),
                    "{spinner} {decimal_bytes} {decimal_bytes_per_sec}",
                ),
            };
            bar.set_style(
                ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What the other end writes to its standard error.
#[derive(Default)]
pub struct Words(Vec<u8>);

impl Words {
    pub fn add(&mut self, bytes: &[u8]) {
        let room = MOST_WORDS.saturating_sub(self.0.len()).min(bytes.len());
        self.0.extend_from_slice(&bytes[..room]);
    }

    /// As an error when it failed, else as notes.
    pub fn judge(self, code: i32, printer: &Printer) -> Result<(), CliError> {
        // A machine is not trusted: its words must not steer our terminal.
        let text: String = String::from_utf8_lossy(&self.0)
            .chars()
            .map(|char| if char.is_control() && char != '\n' { '\u{fffd}' } else { char })
            .collect();
        let text = text.trim_end();
        if code != 0 {
            let text = if text.is_empty() {
                format!("the copying program exited with code {code}")
            } else {
                text.into()
            };
            return Err(CliError::new(text));
        }
        if !text.is_empty() {
            printer.note(text)?;
        }
        Ok(())
    }
}

/// Bytes that come over a channel, for code that reads and waits.
pub struct ChannelReader {
    channel: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl ChannelReader {
    pub fn new(channel: mpsc::Receiver<Bytes>) -> Self {
        Self { channel, rest: Bytes::new() }
    }
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.channel.blocking_recv() {
                Some(bytes) => self.rest = bytes,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// What went wrong locally, as people say it.
pub fn failed<'a>(what: &'a str, path: &'a std::path::Path) -> impl Fn(io::Error) -> CliError + 'a {
    move |error| {
        let reason = match error.kind() {
            io::ErrorKind::NotFound => "no such local file or directory".to_owned(),
            io::ErrorKind::StorageFull => "the disk is full".to_owned(),
            io::ErrorKind::AlreadyExists => "it exists already and is not overwritten".to_owned(),
            _ => error.to_string(),
        };
        CliError::new(format!("can't {what} {}: {reason}", path.display()))
    }
}
