//! What the binary's own commands print. The others have the printer of `caddis-cli`.
//!
//! `println!` panics where the reader has gone, as `head` does once it has its lines. Here that is
//! no error: the command goes on, and its exit code says how it ended.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

/// A line of data.
///
/// # Errors
/// When it can't be written although somebody reads.
pub fn line(text: impl Display) -> io::Result<()> {
    heard(writeln!(io::stdout(), "{text}"))
}

/// Data as it is.
///
/// # Errors
/// Likewise.
pub fn bytes(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout();
    heard(stdout.write_all(bytes).and_then(|()| stdout.flush()))
}

/// An error, for standard error. Where that is gone too, the exit code is all that is left.
pub fn error(text: impl Display) {
    let _ = writeln!(io::stderr(), "Error: {text}");
}

fn heard(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}
