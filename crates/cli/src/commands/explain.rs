//! `caddis explain`: what the codes of errors, and the exit codes of this program, mean and what to
//! do about them.

use caddis_api::ErrorCode;
use clap::Args;
use serde_json::{Value, json};

use crate::{CliError, complete, session::Session};

mod proxy;

/// `caddis explain`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis explain\n  caddis explain insufficient_capacity\n  caddis \
                  explain PM03\n  caddis explain 126"
)]
pub struct Explain {
    /// Error code, as in the API's error bodies or in answers of the proxy, or exit code of this
    /// program [default: list all].
    #[arg(add = complete::words(CODES.into_iter().map(name).collect()))]
    code: Option<String>,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

/// What is said of a code.
struct Meaning {
    code: String,
    status: Status,
    means: &'static str,
    remedy: &'static str,
}

/// What comes with a code.
#[derive(Clone, Copy)]
enum Status {
    /// HTTP status, and whether the same request may succeed later.
    Http(u16, bool),
    /// The connection is closed.
    NoAnswer,
    /// This program ends with it.
    Exit,
}

impl Status {
    fn http(self) -> Option<(u16, bool)> {
        match self {
            Self::Http(status, is_retryable) => Some((status, is_retryable)),
            Self::NoAnswer | Self::Exit => None,
        }
    }
}

/// All there are; `meaning` knows each, and a test holds them against the API's document.
const CODES: [ErrorCode; 18] = [
    ErrorCode::InvalidArgument,
    ErrorCode::Unauthenticated,
    ErrorCode::PermissionDenied,
    ErrorCode::NotFound,
    ErrorCode::DeadlineExceeded,
    ErrorCode::Aborted,
    ErrorCode::AlreadyExists,
    ErrorCode::FailedPrecondition,
    ErrorCode::TooLarge,
    ErrorCode::Unprocessable,
    ErrorCode::NameTaken,
    ErrorCode::InsufficientCapacity,
    ErrorCode::VolumePlacementCapacity,
    ErrorCode::ImageUnavailable,
    ErrorCode::RateLimited,
    ErrorCode::Internal,
    ErrorCode::Unavailable,
    ErrorCode::DiskFull,
];

const EXIT_CODES: [(&str, &str, &str); 4] = [
    ("0", "Success, or you declined a prompt.", "Nothing."),
    (
        "1",
        "An error; the message is on standard error.",
        "Read the message; 'caddis explain CODE' explains its error code.",
    ),
    (
        "126",
        "Timed out. The operation continues in the background.",
        "Check with 'caddis machine status', or wait longer with --wait-timeout.",
    ),
    (
        "127",
        "Interrupted by Ctrl-C. The server finishes what it had accepted.",
        "Check with 'caddis machine list', and destroy what you don't want.",
    ),
];

fn meaning(code: ErrorCode) -> (&'static str, &'static str) {
    match code {
        ErrorCode::InvalidArgument => (
            "A parameter, the body or the configuration is invalid.",
            "Correct the field that the message names. The same request will fail again.",
        ),
        ErrorCode::Unprocessable => (
            "A value is well-formed but not allowed: a reserved name, or a number beyond a limit.",
            "Choose another value; the message says which are allowed.",
        ),
        ErrorCode::NameTaken => (
            "The name is already in use, by an app or by a machine of the app.",
            "Choose another name, or omit it to get a generated one.",
        ),
        ErrorCode::Unauthenticated => (
            "The access token is missing or unknown to the server.",
            "Give one with --access-token or CADDIS_API_TOKEN, or store it with 'caddis auth \
             login'. A server's first token is in the file root.token of its data directory.",
        ),
        ErrorCode::PermissionDenied => (
            "The access token is valid, but does not allow this.",
            "Use a token of the organization that owns the app.",
        ),
        ErrorCode::NotFound => (
            "The app, machine, image or version does not exist, or was destroyed.",
            "Check with 'caddis apps list' and 'caddis machine list', and check the server with \
             'caddis auth whoami'.",
        ),
        ErrorCode::DeadlineExceeded => (
            "Timed out. The operation continues in the background.",
            "Check with 'caddis machine status', then wait again or longer.",
        ),
        ErrorCode::Aborted => (
            "Someone else holds the machine's lease, or changed the machine at the same time.",
            "Wait until they are done, check the machine again, and retry.",
        ),
        ErrorCode::AlreadyExists => ("It already exists.", "Use it, or destroy it first."),
        ErrorCode::FailedPrecondition => (
            "The current state of the machine, or of something it depends on, does not allow this.",
            "Bring it into the state that the message names: start it, stop it, or wait for it \
             with 'caddis machine wait'.",
        ),
        ErrorCode::TooLarge => (
            "The request body is larger than the server accepts.",
            "Send less: put large files into the image instead of the configuration.",
        ),
        ErrorCode::RateLimited => (
            "The request exceeds the server's rate limit.",
            "Wait as long as the response header Retry-After says. 'caddis serve --rate-limit' \
             sets the limit.",
        ),
        ErrorCode::InsufficientCapacity => (
            "No host has enough free CPUs, memory or disk; stopped and suspended machines keep \
             theirs reserved.",
            "The message says what is free and what would fit. Ask for less, destroy machines, or \
             use another region.",
        ),
        ErrorCode::VolumePlacementCapacity => (
            "A machine runs on the host of its volume, and that host has no room for this machine.",
            "Ask for a smaller machine, destroy others on that host, or use another volume.",
        ),
        ErrorCode::ImageUnavailable => (
            "The image does not exist, access to it was denied, or the server cannot use it.",
            "Check name and tag, and credentials ('docker login' on the server). Allow a registry \
             without HTTPS with 'caddis serve --insecure-registry'; 'caddis image import' needs no \
             registry.",
        ),
        ErrorCode::Unavailable => (
            "Something the server depends on did not answer. The request may or may not have been \
             carried out.",
            "Check the outcome, then try again. The server's log has details.",
        ),
        ErrorCode::DiskFull => (
            "The disk of the host that holds the server's data directory is full. Nothing was \
             changed.",
            "Free space on it, or stop or destroy machines; a reserve is kept for that. 'caddis \
             platform status' shows what is free.",
        ),
        ErrorCode::Internal => (
            "Server error.",
            "Please report it with the request ID; the server's log has the cause under it.",
        ),
    }
}

fn name(code: ErrorCode) -> String {
    json!(code).as_str().unwrap_or_default().to_owned()
}

fn all() -> Vec<Meaning> {
    let of_api = CODES.into_iter().map(|code| {
        let (means, remedy) = meaning(code);
        Meaning {
            code: name(code),
            status: Status::Http(code.http_status(), code.is_retryable()),
            means,
            remedy,
        }
    });
    let of_program = EXIT_CODES.into_iter();
    of_api
        .chain(proxy::all())
        .chain(of_program.map(|(code, means, remedy)| Meaning {
            code: code.to_owned(),
            status: Status::Exit,
            means,
            remedy,
        }))
        .collect()
}

fn as_json(meaning: &Meaning) -> Value {
    json!({
        "code": meaning.code,
        "status": meaning.status.http().map(|(status, _)| status),
        "retryable": meaning.status.http().map(|(_, is_retryable)| is_retryable),
        "means": meaning.means,
        "remedy": meaning.remedy,
    })
}

/// Runs it; needs no server.
pub fn run(explain: &Explain, session: &Session) -> Result<(), CliError> {
    let (printer, all) = (&session.printer, all());
    let Some(wanted) = &explain.code else {
        if explain.json {
            printer.json(&all.iter().map(as_json).collect::<Vec<_>>())?;
            return Ok(());
        }
        let row = |meaning: &Meaning| {
            let status = match meaning.status {
                Status::Http(status, _) => format!("HTTP {status}"),
                Status::NoAnswer => "no answer".to_owned(),
                Status::Exit => "exit code".to_owned(),
            };
            vec![meaning.code.clone(), status, meaning.means.to_owned()]
        };
        let rows: Vec<_> = all.iter().map(row).collect();
        printer.table("", &["Code", "Status", "Meaning"], &rows)?;
        return Ok(());
    };
    let asked = wanted.to_ascii_lowercase().replace('-', "_");
    let is_asked = |meaning: &&Meaning| meaning.code.eq_ignore_ascii_case(&asked);
    let Some(found) = all.iter().find(is_asked) else {
        let hint = "'caddis explain' lists all codes.".to_owned();
        return Err(CliError::with_hint(format!("unknown code '{wanted}'"), hint));
    };
    if explain.json {
        printer.json(&as_json(found))?;
        return Ok(());
    }
    match found.status {
        Status::Http(status, retryable) => {
            let again = if retryable {
                "the same request may succeed later"
            } else {
                "retrying won't help"
            };
            printer.out(format_args!("{} (HTTP {status}; {again})\n", found.code))?;
        }
        Status::NoAnswer => {
            printer.out(format_args!("{} (the connection is closed)\n", found.code))?;
        }
        Status::Exit => printer.out(format_args!("Exit code {}\n", found.code))?,
    }
    printer.out(format_args!("{}\n", found.means))?;
    printer.out(format_args!("What to do: {}", found.remedy))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_of_the_api_is_explained() {
        let document: Value =
            serde_json::from_str(include_str!("../../../../docs/openapi.json")).unwrap();
        let schema = document["components"]["schemas"]["ErrorCode"].to_string();
        let explained: BTreeSet<_> = CODES.into_iter().map(name).collect();
        assert_eq!(explained.len(), CODES.len(), "one is there twice");
        for code in &explained {
            assert!(schema.contains(&format!("\"{code}\"")), "{code} is no code of the API");
        }
        let documented = document["components"]["schemas"]["ErrorCode"]["enum"].as_array().unwrap();
        assert_eq!(documented.len(), CODES.len(), "{documented:?}");
    }
}
