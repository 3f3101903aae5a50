//! Decides what goes where: data to standard output, everything else to standard error; colours and
//! bars on terminals only.

use std::{
    fmt::Display,
    io::{self, IsTerminal as _, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use serde::Serialize;

use crate::{
    render::{
        json,
        paint::Paint,
        table::{self, Screen},
    },
    terminal,
};

type Sink = Arc<Mutex<dyn Write + Send>>;

/// Where a command writes.
#[derive(Clone)]
pub struct Printer {
    stdout: Sink,
    stderr: Sink,
    /// Prompts are possible: standard input, output and error are terminals.
    interactive: bool,
    stdout_is_terminal: bool,
    stderr_is_terminal: bool,
    colour: bool,
    /// Progress is told: not while several things go on at once.
    tells_progress: Arc<AtomicBool>,
}

/// What a [`Printer`] for tests has written so far.
#[derive(Debug, Clone, Default)]
pub struct OutputTail(Arc<Mutex<Vec<u8>>>);

impl OutputTail {
    /// As text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

impl Write for OutputTail {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Printer {
    /// To the process's own output.
    pub fn standard() -> Self {
        let stdout_is_terminal = io::stdout().is_terminal();
        let stderr_is_terminal = io::stderr().is_terminal();
        Self {
            stdout: Arc::new(Mutex::new(io::stdout())),
            stderr: Arc::new(Mutex::new(io::stderr())),
            // Menus are drawn on standard error.
            interactive: io::stdin().is_terminal() && stdout_is_terminal && stderr_is_terminal,
            stdout_is_terminal,
            stderr_is_terminal,
            colour: stdout_is_terminal
                && stderr_is_terminal
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
            tells_progress: Arc::new(AtomicBool::new(true)),
        }
    }

    /// To memory, as if no terminal were there: for tests. Returns what goes to standard output and
    /// standard error.
    pub fn capturing() -> (Self, OutputTail, OutputTail) {
        let (stdout, stderr) = (OutputTail::default(), OutputTail::default());
        let printer = Self {
            stdout: Arc::new(Mutex::new(stdout.clone())),
            stderr: Arc::new(Mutex::new(stderr.clone())),
            interactive: false,
            stdout_is_terminal: false,
            stderr_is_terminal: false,
            colour: false,
            tells_progress: Arc::new(AtomicBool::new(true)),
        };
        (printer, stdout, stderr)
    }

    /// Whether the user can be asked.
    pub fn is_interactive(&self) -> bool {
        self.interactive
    }

    /// Whether bars can be drawn.
    pub fn draws_progress(&self) -> bool {
        self.stderr_is_terminal
    }

    /// Whether colours are wanted.
    pub fn has_colour(&self) -> bool {
        self.colour
    }

    /// What tables are drawn on.
    pub fn screen(&self) -> Screen {
        Screen {
            columns: self.stdout_is_terminal.then(|| terminal::screen_size().0),
            colour: self.colour,
        }
    }

    /// Whether it is told how far something is.
    pub fn tells_progress(&self) -> bool {
        self.tells_progress.load(Ordering::Relaxed)
    }

    /// Has it not told any more: several things go on at once from here on.
    pub fn leave_out_progress(&self) {
        self.tells_progress.store(false, Ordering::Relaxed);
    }

    /// A line of data.
    pub fn out(&self, line: impl Display) -> io::Result<()> {
        writeln!(self.stdout.lock(), "{line}")
    }

    /// A table with a column per header.
    pub fn table(&self, title: &str, headers: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
        self.raw_out(&table::horizontal(self.screen(), &self.title(title), headers, rows))
    }

    /// A table with a line per label.
    pub fn facts(&self, title: &str, rows: &[(&str, String)]) -> io::Result<()> {
        self.raw_out(&table::vertical(self.screen(), &self.title(title), rows))
    }

    /// Data as it is.
    pub fn raw_out(&self, text: &str) -> io::Result<()> {
        let mut stdout = self.stdout.lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }

    /// Bytes as they are, to standard output or standard error.
    pub fn bytes(&self, bytes: &[u8], is_error: bool) -> io::Result<()> {
        let mut sink = if is_error { self.stderr.lock() } else { self.stdout.lock() };
        sink.write_all(bytes)?;
        sink.flush()
    }

    /// A value as JSON: four spaces, and escaped as Go does.
    pub fn json(&self, value: &(impl Serialize + ?Sized)) -> io::Result<()> {
        self.out(json::to_string(value, "    "))
    }

    /// A line about what goes on.
    pub fn note(&self, line: impl Display) -> io::Result<()> {
        writeln!(self.stderr.lock(), "{line}")
    }

    /// Something about what goes on, as it is.
    pub fn raw_note(&self, text: &str) -> io::Result<()> {
        let mut stderr = self.stderr.lock();
        stderr.write_all(text.as_bytes())?;
        stderr.flush()
    }

    /// What words are painted with.
    pub fn paint(&self) -> Paint {
        Paint { colour: self.colour }
    }

    /// Red, where colours are wanted.
    pub fn paint_error(&self, text: &str) -> String {
        self.paint().error(text)
    }

    /// Bold, where colours are wanted.
    pub fn title(&self, text: &str) -> String {
        self.paint().title(text)
    }
}
