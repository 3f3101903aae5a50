//! Tells of an error.

use std::io;

use caddis_client::ClientError;

use crate::{CliError, Printer, error::hint};

/// Exit code after Ctrl-C.
pub(crate) const INTERRUPTED: u8 = 127;

/// Prints an error and returns the exit code.
pub(crate) fn report(error: &CliError, printer: &Printer) -> u8 {
    let (text, hint, request_id) = match error {
        CliError::Declined => return 0,
        CliError::ExitCode(code) => return *code,
        CliError::Interrupted => return INTERRUPTED,
        // Whoever reads our output has had enough, as `head` does.
        CliError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return 0,
        CliError::Failed { message, hint, request_id, .. } => {
            (message.clone(), hint.clone(), request_id.clone())
        }
        CliError::Client(error) => {
            (error.to_string(), hint(error), error.request_id().map(str::to_owned))
        }
        CliError::DeadlineExceeded(_) | CliError::Output(_) => (error.to_string(), None, None),
    };
    let request_id = request_id.map(|id| format!(" (Request ID: {id})")).unwrap_or_default();
    // When standard error is gone too, the exit code is all that is left.
    let _ = printer.note(format_args!("{} {text}{request_id}", printer.paint_error("Error:")));
    if let Some(hint) = hint {
        let _ = printer.note(hint);
    }
    match error {
        CliError::DeadlineExceeded(_) | CliError::Client(ClientError::TimedOut { .. }) => 126,
        _ => 1,
    }
}
