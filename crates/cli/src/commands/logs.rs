//! `caddis logs`.

use caddis_api::logs::LogEntry;
use caddis_client::LogsQuery;
use clap::Args;

use crate::{CliError, globals::AppArgs, session::Session};

/// How long the server holds back an empty answer, seconds.
const WAIT_SECONDS: u64 = 30;
/// Failures in a row that end the command.
const MOST_FAILURES: u32 = 9;

/// `caddis logs`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  caddis logs -a hello\n  caddis logs -a hello -m 148ed193b95389 --no-tail")]
pub struct Logs {
    #[command(flatten)]
    app: AppArgs,
    /// Only of this machine.
    #[arg(short, long, visible_alias = "instance", short_alias = 'i', value_name = "ID")]
    machine: Option<String>,
    /// Only of this region.
    #[arg(short, long, value_name = "REGION")]
    region: Option<String>,
    /// Print what there is and end.
    #[arg(short, long)]
    no_tail: bool,
    /// Print entries as JSON.
    #[arg(short, long)]
    json: bool,
}

/// Runs it.
pub async fn run(logs: Logs, session: &Session) -> Result<(), CliError> {
    let app = session.app(&logs.app)?;
    let client = session.client()?;
    let region = if logs.machine.is_some() { None } else { logs.region };
    let mut query = LogsQuery { instance: logs.machine, region, ..LogsQuery::default() };
    let mut failures = 0;
    loop {
        let page = match client.logs(&app, &query).await {
            Ok(page) => page,
            Err(error) if error.is_transient() && !logs.no_tail && failures < MOST_FAILURES => {
                failures += 1;
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        failures = 0;
        for entry in &page.data {
            if logs.json {
                session.printer.json(&entry.attributes)?;
            } else {
                session.printer.out(line(entry))?;
            }
        }
        if page.data.is_empty() && logs.no_tail {
            return Ok(());
        }
        query.next_token = Some(page.meta.next_token);
        query.wait_seconds = if logs.no_tail { 0 } else { WAIT_SECONDS };
    }
}

/// `2026-08-21T10:00:00Z app[ID] REGION [info]message`, as the field's command line writes it.
fn line(entry: &LogEntry) -> String {
    let attributes = &entry.attributes;
    let provider = &attributes.meta.event.provider;
    let source =
        if provider.is_empty() { attributes.instance.clone() } else { format!("{provider}[{}]", attributes.instance) };
    let time =
        attributes.timestamp.split_once('.').map_or(attributes.timestamp.clone(), |(time, _)| format!("{time}Z"));
    // What a program writes must not move the cursor of who reads it.
    let message: String =
        attributes.message.chars().filter(|c| !c.is_control() || *c == '\t' || *c == '\u{1b}').collect();
    format!("{time} {source} {} [{}]{message}", attributes.region, attributes.level)
}
