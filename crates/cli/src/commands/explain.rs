//! `caddis explain`: what the codes of errors, and the exit codes of this program, mean and what to
//! do about them.

use caddis_api::ErrorCode;
use clap::Args;
use serde_json::{Value, json};

use crate::{CliError, complete, session::Session};

/// `caddis explain`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis explain\n  caddis explain insufficient_capacity\n  caddis explain 126"
)]
pub struct Explain {
    /// Code of an error, as the API's error bodies have it, or exit code of this program [default:
    /// a list of all].
    #[arg(add = complete::words(CODES.into_iter().map(name).collect()))]
    code: Option<String>,
    /// Print it as JSON.
    #[arg(short, long)]
    json: bool,
}

/// What is said of a code.
struct Meaning {
    code: String,
    /// HTTP status, and whether the same request may succeed later.
    status: Option<(u16, bool)>,
    means: &'static str,
    remedy: &'static str,
}

/// All there are; `meaning` knows each, and a test holds them against the API's document.
const CODES: [ErrorCode; 17] = [
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
    ErrorCode::ImageUnavailable,
    ErrorCode::RateLimited,
    ErrorCode::Internal,
    ErrorCode::Unavailable,
    ErrorCode::DiskFull,
];

const EXIT_CODES: [(&str, &str, &str); 4] = [
    ("0", "All went well, or you were asked and said no.", "Nothing."),
    (
        "1",
        "Something went wrong; standard error says what.",
        "See the message, and 'caddis explain CODE' for its code.",
    ),
    (
        "126",
        "Time ran out before what was waited for came about. It may still come: nothing was called off.",
        "Look with 'caddis machine status', or wait longer with --wait-timeout.",
    ),
    (
        "127",
        "The command was interrupted, by Ctrl-C. What the server had taken on goes on.",
        "Look with 'caddis machine list' what there is, and destroy what you don't want.",
    ),
];

fn meaning(code: ErrorCode) -> (&'static str, &'static str) {
    match code {
        ErrorCode::InvalidArgument => (
            "A parameter, the body or the configuration is not what it should be.",
            "The message names the field: correct it. The same request will fail again.",
        ),
        ErrorCode::Unprocessable => (
            "A value is well-formed but not acceptable: a name that is not allowed, or a number beyond a limit.",
            "Choose another value; the message says which are allowed.",
        ),
        ErrorCode::NameTaken => (
            "The name is in use already, by an app or by a machine of the app.",
            "Choose another name, or leave it out to have one made up.",
        ),
        ErrorCode::Unauthenticated => (
            "The request had no access token, or one that the server does not know.",
            "Give one with --access-token or CADDIS_API_TOKEN, or store it with 'caddis auth login'. A server's first \
             token is in the file root.token of its data directory.",
        ),
        ErrorCode::PermissionDenied => (
            "The access token is good, but does not reach this far.",
            "Use a token of the organization that owns the app.",
        ),
        ErrorCode::NotFound => (
            "There is no such app, machine, image or version, or it was destroyed.",
            "Look with 'caddis apps list' and 'caddis machine list'; is it the right server ('caddis auth whoami')?",
        ),
        ErrorCode::DeadlineExceeded => (
            "What was waited for did not come about in time. It may still come: nothing was called off.",
            "Look with 'caddis machine status', then wait again or longer.",
        ),
        ErrorCode::Aborted => (
            "Someone else holds the machine's lease, or changed the machine at the same time and won.",
            "Wait until the other is done, look at the machine anew, and try again.",
        ),
        ErrorCode::AlreadyExists => {
            ("What was to be made is there already.", "Use it, or destroy it first.")
        }
        ErrorCode::FailedPrecondition => (
            "The state of the machine, or of what it needs, does not allow it now.",
            "Bring it into the state that the message names: start it, stop it, or wait for what is under way with \
             'caddis machine wait'.",
        ),
        ErrorCode::TooLarge => (
            "The body of the request is larger than the server takes.",
            "Send less: files in a configuration are better put into the image.",
        ),
        ErrorCode::RateLimited => (
            "More requests came than the server's limit allows.",
            "Wait as long as the reply's header Retry-After says. 'caddis serve --rate-limit' sets the limit.",
        ),
        ErrorCode::InsufficientCapacity => (
            "No host has room: processors, memory or disk are promised to other machines, resting ones among them.",
            "The message says what is free and what would fit. Ask for less, destroy machines, or use another region.",
        ),
        ErrorCode::ImageUnavailable => (
            "The image does not exist, may not be pulled, or its registry does not answer.",
            "Check name and tag, and credentials ('docker login' on the server). A registry without HTTPS is allowed \
             with 'caddis serve --insecure-registry'; 'caddis image import' needs no registry.",
        ),
        ErrorCode::Unavailable => (
            "Something the server depends on did not answer. Whether the request was carried out is not known.",
            "Look at what became of it, then try again. The server's log has more.",
        ),
        ErrorCode::DiskFull => (
            "The disk of the host that holds the server's data directory is full. Nothing was changed.",
            "Free space on it, or stop or destroy machines: a reserve is kept for that. 'caddis platform status' shows \
             what is free.",
        ),
        ErrorCode::Internal => (
            "The server failed. That is its fault, not yours.",
            "Its log has the cause under the request ID of the message; please report it.",
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
            status: Some((code.http_status(), code.is_retryable())),
            means,
            remedy,
        }
    });
    let of_program = EXIT_CODES.into_iter();
    of_api
        .chain(of_program.map(|(code, means, remedy)| Meaning {
            code: code.to_owned(),
            status: None,
            means,
            remedy,
        }))
        .collect()
}

fn as_json(meaning: &Meaning) -> Value {
    json!({
        "code": meaning.code,
        "status": meaning.status.map(|status| status.0),
        "retryable": meaning.status.map(|status| status.1),
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
            let status = meaning
                .status
                .map_or_else(|| "exit code".to_owned(), |(status, _)| format!("HTTP {status}"));
            vec![meaning.code.clone(), status, meaning.means.to_owned()]
        };
        let rows: Vec<_> = all.iter().map(row).collect();
        printer.table("", &["Code", "Status", "Meaning"], &rows)?;
        return Ok(());
    };
    let asked = wanted.to_ascii_lowercase().replace('-', "_");
    let Some(found) = all.iter().find(|meaning| meaning.code == asked) else {
        let hint = "'caddis explain' lists all there are.".to_owned();
        return Err(CliError::with_hint(format!("there is no code '{wanted}'"), hint));
    };
    if explain.json {
        printer.json(&as_json(found))?;
        return Ok(());
    }
    match found.status {
        Some((status, retryable)) => {
            let again = if retryable {
                "the same request may succeed later"
            } else {
                "trying again won't help"
            };
            printer.out(format_args!("{} (HTTP {status}; {again})\n", found.code))?;
        }
        None => printer.out(format_args!("Exit code {}\n", found.code))?,
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
