//! `caddis context list`.

use clap::Args;
use serde_json::json;

use crate::{
    CliError,
    session::Session,
    settings::{Context, Settings},
};

/// `caddis context list`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis context list")]
pub struct List {
    /// Print as JSON, without tokens.
    #[arg(short, long)]
    json: bool,
}

pub fn run(list: &List, session: &Session) -> Result<(), CliError> {
    let printer = &session.printer;
    let settings = Settings::load(Some(&session.settings_path()?))?;
    let current = |name: &String| settings.current_context.as_ref() == Some(name);
    if list.json {
        let row = |(name, context): (&String, &Context)| {
            let (api_url, current) = (&context.api_url, current(name));
            json!({ "name": name, "api_url": api_url, "current": current })
        };
        printer.json(&settings.contexts.iter().map(row).collect::<Vec<_>>())?;
    } else if settings.contexts.is_empty() {
        printer.out("No contexts")?;
    } else {
        let mark = |name: &String| if current(name) { "*" } else { "" };
        let row = |(name, context): (&String, &Context)| {
            vec![mark(name).to_owned(), name.clone(), context.api_url.clone()]
        };
        let rows: Vec<_> = settings.contexts.iter().map(row).collect();
        printer.table("", &["Current", "Name", "Server"], &rows)?;
    }
    Ok(())
}
