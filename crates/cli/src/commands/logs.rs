//! `caddis logs`.
//!
//! The server holds an answer back until there is something to tell, so that lines come as they are
//! written. Each page says where it ended; whatever happens in between, the next one is asked for
//! from there, so that every line comes exactly once.

use std::time::Duration;

use caddis_api::{MachineId, logs::LogsReply};
use caddis_client::{Client, ClientError, LogsQuery};
use clap::Args;
use jiff::Timestamp;
use tokio::time::Instant;

use super::machine::choice;
use crate::{
    CliError, Printer, complete,
    globals::AppArgs,
    render::{log, time},
    session::Session,
};

/// How long the server holds back an empty answer, seconds.
const WAIT_SECONDS: u64 = 30;
/// How long a server that does not answer is waited for: it may be in the middle of an upgrade.
const TIMEOUT: Duration = Duration::from_secs(300);
/// First and longest pause before it is asked again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// `caddis logs`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis logs -a hello\n  caddis logs -a hello -m 148ed193b95389 \
                  --no-tail\n  \
                        caddis logs -a hello --since 10m --until 2026-08-21T10:00:00Z"
)]
pub struct Logs {
    #[command(flatten)]
    app: AppArgs,
    /// Only logs of this machine, by ID or name.
    #[arg(
        short,
        long,
        visible_alias = "instance",
        visible_short_alias = 'i',
        value_name = "MACHINE",
        add = complete::machines()
    )]
    machine: Option<String>,
    /// Choose the machine from a menu.
    #[arg(short, long)]
    select: bool,
    /// Only logs of this region.
    #[arg(short, long, value_name = "REGION")]
    region: Option<String>,
    /// Show logs from this time on: a time such as 2026-08-21T10:00:00Z, or an age such as 10m or
    /// 1h30m [default: the last 100 lines].
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Show logs up to this time, then exit; same formats as --since.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Print the logs so far and exit.
    #[arg(short, long)]
    no_tail: bool,
    /// Print entries as a sequence of JSON objects.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(logs: Logs, session: &Session) -> Result<(), CliError> {
    if logs.select && logs.machine.is_some() {
        return Err(CliError::new("machine IDs can't be used with --select"));
    }
    let now = Timestamp::now();
    let read = |name: &str, text: &Option<String>| {
        text.as_deref().map(|text| moment(name, text, now)).transpose()
    };
    let (since, until) = (read("since", &logs.since)?, read("until", &logs.until)?);
    let app = session.app(&logs.app)?;
    let client = session.client()?;
    let machine = match logs.machine.as_deref() {
        None if !logs.select => None,
        name => match choice::one(session, &logs.app, name, logs.select).await {
            Ok((_, _, machine)) => Some(machine.id.to_string()),
            // One that is long gone may have left lines; where there never was one, the server says
            // so.
            Err(CliError::Failed { hint: None, .. })
                if name.is_some_and(|id| id.parse::<MachineId>().is_ok()) =>
            {
                name.map(str::to_owned)
            }
            Err(error) => return Err(error),
        },
    };
    let region = if machine.is_some() { None } else { logs.region.clone() };
    let mut query = LogsQuery {
        instance: machine,
        region,
        since: since.map(|time| time.to_string()),
        until: until.map(|time| time.to_string()),
        ..LogsQuery::default()
    };
    // A first page without times is the newest: there is no more of it.
    let one_page = logs.no_tail && query.since.is_none() && query.until.is_none();
    // The end of what there is, for who wants no more than that: a machine may write on and on.
    let mut end = None;
    loop {
        let left = until.map(|until| until.duration_since(Timestamp::now()).as_secs());
        let over = logs.no_tail || left.is_some_and(|left| left < 0);
        let wait = left
            .map_or(WAIT_SECONDS, |left| WAIT_SECONDS.min(u64::try_from(left).unwrap_or(0) + 1));
        if over && !one_page && end.is_none() {
            let newest = LogsQuery {
                limit: Some(1),
                instance: query.instance.clone(),
                region: query.region.clone(),
                ..LogsQuery::default()
            };
            let newest = page(&client, &app, &newest, over, &session.printer).await;
            end = Some(newest.map_err(|error| explain(error, &app, &query))?.meta.next_token);
            query.until_token.clone_from(&end);
        }
        query.wait_seconds = if over || query.next_token.is_none() { 0 } else { wait };
        let page = page(&client, &app, &query, over, &session.printer).await;
        let page = page.map_err(|error| explain(error, &app, &query))?;
        for entry in &page.data {
            if logs.json {
                session.printer.json(&entry.attributes)?;
            } else {
                session.printer.out(log::line(&entry.attributes, session.printer.paint()))?;
            }
        }
        if over && (one_page || page.data.is_empty()) {
            return Ok(());
        }
        query.next_token = Some(page.meta.next_token);
    }
}

/// The next page. A follower outlasts a server that is restarted, and says so; who wants what there
/// is wants it now.
async fn page(
    client: &Client,
    app: &str,
    query: &LogsQuery,
    at_once: bool,
    printer: &Printer,
) -> Result<LogsReply, ClientError> {
    let mut deadline: Option<Instant> = None;
    let mut pause = BACKOFF.0;
    loop {
        let error = match client.logs(app, query).await {
            Ok(page) => {
                if deadline.is_some() {
                    let _ = printer.note("Connected to the server again.");
                }
                return Ok(page);
            }
            // With no page yet it is the way to the server that is wrong, rather than the server's
            // rest.
            Err(error) if at_once || query.next_token.is_none() || !error.is_transient() => {
                return Err(error);
            }
            Err(error) => error,
        };
        match deadline {
            Some(end) if Instant::now() >= end => return Err(error),
            Some(_) => {}
            None => {
                deadline = Some(Instant::now() + TIMEOUT);
                // Standard error may be gone; the log goes on without.
                let _ =
                    printer.note(format_args!("The server does not answer ({error}), retrying..."));
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
}

fn explain(error: ClientError, app: &str, query: &LogsQuery) -> CliError {
    match &query.instance {
        Some(id) if error.is_not_found() && error.to_string().contains("machine not found") => {
            CliError::new(format!("machine ID {id} was not found in app '{app}'"))
        }
        _ => error.into(),
    }
}

fn moment(name: &str, text: &str, now: Timestamp) -> Result<Timestamp, CliError> {
    time::moment(text, now).ok_or_else(|| {
        CliError::new(format!(
            "invalid --{name} '{text}', use a time such as 2026-08-21T10:00:00Z, or an age such as \
             10m"
        ))
    })
}
