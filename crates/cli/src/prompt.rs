//! Questions to the user.

use std::io::{BufRead as _, stdin};

use crate::{CliError, Printer};

/// There is nobody to ask, and no `--yes`.
pub const NO_YES: &str = "yes flag must be specified when not running interactively";

/// Asks for yes or no; no by default. `unasked` is the error when there is nobody to ask.
pub async fn confirm(printer: &Printer, question: &str, unasked: &str) -> Result<(), CliError> {
    match ask(printer, &format!("{question} (y/N) "), unasked).await?.to_ascii_lowercase().as_str()
    {
        "y" | "yes" => Ok(()),
        _ => Err(CliError::Declined),
    }
}

/// Asks for one of several things, in a menu: arrow keys, then Enter.
pub async fn choose(
    printer: &Printer,
    question: &str,
    options: &[String],
    unasked: &str,
) -> Result<usize, CliError> {
    let (theme, question, options) = (theme(printer), question.to_owned(), shown(options));
    let menu = move || {
        dialoguer::Select::with_theme(&*theme)
            .with_prompt(question)
            .items(&options)
            .default(0)
            .interact_opt()
    };
    ask_menu(printer, unasked, menu).await?.ok_or(CliError::Declined)
}

/// Asks for some of several things, in a menu: arrow keys, Space for each, then Enter. None are
/// chosen by Escape.
pub async fn choose_some(
    printer: &Printer,
    question: &str,
    options: &[String],
    unasked: &str,
) -> Result<Vec<usize>, CliError> {
    let (theme, question, options) =
        (theme(printer), format!("{question} (space to select, enter to confirm)"), shown(options));
    let menu = move || {
        dialoguer::MultiSelect::with_theme(&*theme)
            .with_prompt(question)
            .items(&options)
            .interact_opt()
    };
    Ok(ask_menu(printer, unasked, menu).await?.unwrap_or_default())
}

fn theme(printer: &Printer) -> Box<dyn dialoguer::theme::Theme + Send> {
    match printer.has_colour() {
        true => Box::new(dialoguer::theme::ColorfulTheme::default()),
        false => Box::new(dialoguer::theme::SimpleTheme),
    }
}

/// A name with control characters must not draw the menu.
fn shown(options: &[String]) -> Vec<String> {
    options.iter().map(|option| option.chars().filter(|c| !c.is_control()).collect()).collect()
}

async fn ask_menu<T: Send + 'static>(
    printer: &Printer,
    unasked: &str,
    menu: impl FnOnce() -> dialoguer::Result<Option<T>> + Send + 'static,
) -> Result<Option<T>, CliError> {
    /// A menu hides the cursor, and Ctrl-C ends it in the middle.
    struct Cursor;
    impl Drop for Cursor {
        fn drop(&mut self) {
            // Nothing can be done when the terminal is gone.
            let _ = dialoguer::console::Term::stderr().show_cursor();
        }
    }
    if !printer.is_interactive() {
        return Err(CliError::new(unasked));
    }
    let _cursor = Cursor;
    let chosen = tokio::task::spawn_blocking(menu).await.map_err(std::io::Error::other)?;
    match chosen {
        Ok(chosen) => Ok(chosen),
        // It has raised the signal, which ends the command.
        Err(dialoguer::Error::IO(error)) if error.kind() == std::io::ErrorKind::Interrupted => {
            Err(CliError::Interrupted)
        }
        Err(dialoguer::Error::IO(error)) => Err(error.into()),
    }
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
