//! What goes on, on standard error: one line that is overwritten on a terminal, lines of their own
//! elsewhere.

use std::io::{IsTerminal as _, Write as _, stderr};

/// Says what is being done now.
pub fn progress(text: &str) {
    // Whoever closed standard error does not want to know.
    let _ = if stderr().is_terminal() {
        write!(stderr(), "\r\x1b[K{text}").and_then(|()| stderr().flush())
    } else {
        writeln!(stderr(), "{text}")
    };
}

/// Says which of so many runs of something this is, counted from 0.
pub fn run(what: &str, run: usize, runs: usize) {
    if stderr().is_terminal() || run.is_multiple_of(5) {
        progress(&format!("{what}: {} of {runs}", run + 1));
    }
}

/// Leaves the line free for what comes next.
pub fn clear() {
    if stderr().is_terminal() {
        let _ = write!(stderr(), "\r\x1b[K");
    }
}
