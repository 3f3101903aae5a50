//! Questions to the user.

use std::io::{BufRead as _, stdin};

use crate::{CliError, Printer};

/// There is nobody to ask, and no `--yes`.
pub const NO_YES: &str = "yes flag must be specified when not running interactively";

/// Asks for yes or no; no by default. `unasked` is the error when there is nobody to ask.
pub async fn confirm(printer: &Printer, question: &str, unasked: &str) -> Result<(), CliError> {
    match ask(printer, &format!("{question} (y/N) "), unasked).await?.to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(CliError::Declined),
    }
}

/// Asks for one of several things, shown with numbers.
pub async fn choose(printer: &Printer, question: &str, options: &[String], unasked: &str) -> Result<usize, CliError> {
    if !printer.is_interactive() {
        return Err(CliError::new(unasked));
    }
    for (number, option) in options.iter().enumerate() {
        printer.note(format_args!("{:>3}  {option}", number + 1))?;
    }
    let answer = ask(printer, &format!("{question} [1-{}] ", options.len()), unasked).await?;
    let number = answer.parse::<usize>().ok().filter(|number| (1..=options.len()).contains(number));
    number.map(|number| number - 1).ok_or_else(|| CliError::new(format!("'{answer}' is none of the numbers shown")))
}

/// Asks for a line of text.
pub async fn ask(printer: &Printer, question: &str, unasked: &str) -> Result<String, CliError> {
    if !printer.is_interactive() {
        return Err(CliError::new(unasked));
    }
    printer.raw_note(question)?;
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        stdin().lock().read_line(&mut line).map(|_| line)
    });
    let line = read.await.map_err(std::io::Error::other)??;
    Ok(line.trim().to_owned())
}
