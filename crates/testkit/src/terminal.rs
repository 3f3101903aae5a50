//! The command line under a pseudo-terminal, as a person has it.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    num::NonZeroU16,
    os::fd::OwnedFd,
    process::{ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, anyhow};
use nix::pty::{Winsize, openpty};
use rustix::termios::{LocalModes, tcgetattr, tcsetwinsize};
use tokio::{
    process::{Child, Command},
    sync::watch,
};

use crate::DEADLINE;

/// A program on a terminal; it is killed when this is dropped.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    master: File,
    screen: watch::Receiver<Vec<u8>>,
    /// What was expected ends here.
    at: usize,
    /// Rows and columns that it began with.
    size: (u16, u16),
}

impl Terminal {
    /// Starts a program with the terminal as its standard streams and controlling terminal.
    ///
    /// # Errors
    /// When there is no terminal to be had, or the program can't be started.
    pub fn start(
        mut prepare: impl FnMut(&mut Command),
        binary: &std::path::Path,
        columns: u16,
        rows: u16,
    ) -> Result<Self> {
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).context("making a pseudo-terminal")?;
        let copy = |end: &OwnedFd| end.try_clone().context("copying an end of a pseudo-terminal");
        // Becomes the program itself, in a session of its own.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(binary);
        prepare(&mut command);
        command.stdin(Stdio::from(copy(&pair.slave)?)).stdout(Stdio::from(copy(&pair.slave)?));
        command.stderr(Stdio::from(pair.slave)).kill_on_drop(true);
        let child = command.spawn().context("no setsid: apt-get install util-linux")?;
        // Our ends of the other side live in the command.
        drop(command);
        let master = File::from(pair.master);
        let mut reader = master.try_clone().context("copying an end of a pseudo-terminal")?;
        let (sender, screen) = watch::channel(Vec::new());
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            // A terminal whose program is gone says EIO.
            while let Ok(count) = reader.read(&mut buffer) {
                sender.send_modify(|screen| screen.extend_from_slice(&buffer[..count]));
            }
        });
        Ok(Self { child, master, screen, at: 0, size: (rows, columns) })
    }

    /// Waits until a text appears after what was expected before, and gives what came up to its
    /// end.
    ///
    /// # Errors
    /// When it does not appear in time, or the program ends without it.
    pub async fn expect(&mut self, text: &str) -> Result<String> {
        let (at, wanted) = (self.at, text.as_bytes());
        let end = |screen: &Vec<u8>| {
            let found = screen[at..].windows(wanted.len()).position(|window| window == wanted);
            found.map(|found| at + found + wanted.len())
        };
        // Whether in time or not shows on the screen.
        let waited =
            tokio::time::timeout(DEADLINE, self.screen.wait_for(|screen| end(screen).is_some()))
                .await;
        drop(waited);
        let screen = self.screen.borrow().clone();
        let end = end(&screen).ok_or_else(|| {
            anyhow!(
                "{text:?} does not appear; since the last was expected came {:?}",
                String::from_utf8_lossy(&screen[at..])
            )
        })?;
        self.at = end;
        Ok(String::from_utf8_lossy(&screen[at..end]).into_owned())
    }

    /// Everything that appeared up to now.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.borrow()).into_owned()
    }

    /// The lines that a person sees on a terminal that is never resized, without blanks at their
    /// ends and without the empty ones at the end of all.
    pub fn lines(&self) -> Vec<String> {
        let [rows, columns] = [self.size.0, self.size.1]
            .map(|count| NonZeroU16::new(count).unwrap_or(NonZeroU16::MIN));
        let mut terminal = vt100::Parser::new(rows, columns, 0);
        terminal.process(&self.screen.borrow());
        let rows = terminal.screen().rows(0, self.size.1);
        let mut lines: Vec<_> = rows.map(|row| row.trim_end().to_owned()).collect();
        lines.truncate(lines.iter().rposition(|line| !line.is_empty()).map_or(0, |last| last + 1));
        lines
    }

    /// Types or pastes. Returns when all of it was taken.
    ///
    /// # Errors
    /// When the terminal is gone or takes nothing.
    pub async fn send(&self, text: impl AsRef<[u8]>) -> Result<()> {
        let mut master = self.master.try_clone().context("copying an end of a pseudo-terminal")?;
        let text = text.as_ref().to_vec();
        let writing = tokio::task::spawn_blocking(move || master.write_all(&text));
        tokio::time::timeout(DEADLINE, writing)
            .await
            .context("what is typed is not taken")??
            .context("typing")
    }

    /// Changes its size, of which the program is told.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let size =
            rustix::termios::Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).context("resizing a terminal")
    }

    /// Whether keys are its program's own affair: no lines, no echo, no signals.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn is_raw(&self) -> Result<bool> {
        let modes = tcgetattr(&self.master).context("looking at a terminal")?.local_modes;
        Ok(!modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG))
    }

    /// Whether keys are shown as they are typed, and come by lines.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn echoes(&self) -> Result<bool> {
        let modes = tcgetattr(&self.master).context("looking at a terminal")?.local_modes;
        Ok(modes.contains(LocalModes::ICANON | LocalModes::ECHO))
    }

    /// Waits for the program's end, and until all it has written is on the screen.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn end(&mut self) -> Result<ExitStatus> {
        let waited = tokio::time::timeout(DEADLINE, self.child.wait()).await;
        let status =
            waited.with_context(|| format!("it does not end; it shows {}", self.screen()))??;
        let rest = async { while self.screen.changed().await.is_ok() {} };
        tokio::time::timeout(DEADLINE, rest).await.context("something else holds its terminal")?;
        Ok(status)
    }

    /// Its process id, while it runs.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pid(&self) -> Result<i32> {
        Ok(self.child.id().context("the program has ended")?.cast_signed())
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it has ended already.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("killing the program of a terminal")
    }
}
