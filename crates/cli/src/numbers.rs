//! Flags that take a number, a size or a time. What follows one is its value, as with the
//! reference, also where it begins with a dash: else `--count -1` would be told as a flag `-1` that
//! there is not.

use std::{any::TypeId, ffi::OsString};

use clap::{
    Arg, Command, Parser,
    builder::ValueParser,
    error::{ContextKind, ContextValue, ErrorKind},
};

/// What help calls values that are text for clap, and read as numbers by the commands.
const READ_LATER: [&str; 4] = ["SIZE", "GB", "DURATION", "TIME"];

/// Parses a command line.
///
/// # Errors
/// Those of clap, of which [`crate::Usage`] says what is to be said; also for help and versions.
pub fn parse<P: Parser>(
    words: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<P, clap::Error> {
    let mut command = with_values(P::command());
    let mut matches = command.try_get_matches_from_mut(words)?;
    P::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// The command, with all below it, where what follows such a flag is its value.
fn with_values(command: Command) -> Command {
    command.mut_args(with_value).mut_subcommands(with_values)
}

fn with_value(argument: Arg) -> Arg {
    if is_read_later(&argument) {
        argument.allow_hyphen_values(true).value_parser(ValueParser::from(not_negative))
    } else if is_number(&argument) {
        argument.allow_hyphen_values(true)
    } else {
        argument
    }
}

fn is_number(argument: &Arg) -> bool {
    let parsed = argument.get_value_parser().type_id();
    argument.get_action().takes_values()
        && [
            TypeId::of::<u16>(),
            TypeId::of::<u32>(),
            TypeId::of::<u64>(),
            TypeId::of::<usize>(),
            TypeId::of::<i64>(),
            TypeId::of::<f64>(),
        ]
        .iter()
        .any(|number| parsed == *number)
}

fn is_read_later(argument: &Arg) -> bool {
    let is_text = argument.get_value_parser().type_id() == TypeId::of::<String>();
    let names = argument.get_value_names().unwrap_or_default();
    is_text && names.iter().any(|name| READ_LATER.contains(&name.as_str()))
}

fn not_negative(text: &str) -> Result<String, &'static str> {
    if text.starts_with('-') { Err("not a number") } else { Ok(text.to_owned()) }
}

/// The error for a value that begins with a dash, in the reference's words: it is negative, or the
/// next flag, and the value is missing.
pub fn refused(error: &clap::Error) -> Option<clap::Error> {
    let get = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    if error.kind() != ErrorKind::ValueValidation {
        return None;
    }
    let (argument, value) = (get(ContextKind::InvalidArg)?, get(ContextKind::InvalidValue)?);
    let rest = value.strip_prefix('-')?;
    let text = if rest.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        let flag = argument.split(' ').next().unwrap_or(argument);
        format!("{flag} must not be negative, got: {value}")
    } else {
        format!("a value is required for '{argument}' but none was supplied")
    };
    let text = format!("{text}\n\nFor more information, try '--help'.\n");
    Some(clap::Error::raw(ErrorKind::ValueValidation, text))
}
