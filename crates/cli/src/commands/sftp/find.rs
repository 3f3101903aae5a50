//! `caddis sftp find`.

use caddis_client::FromSession;
use clap::Args;
use serde_json::Value;

use super::transfer::{self, Words};
use crate::{CliError, commands::target::Target, session::Session};

/// `caddis sftp find`.
#[derive(Debug, Args)]
pub struct Find {
    /// Path to start from.
    #[arg(default_value = "/")]
    path: String,
    #[command(flatten)]
    target: Target,
    /// Print path, kind, size, mode and time of each file as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(find: Find, session: &Session) -> Result<(), CliError> {
    let (client, printer) = (session.client()?, &session.printer);
    let (app, machine) = find.target.find(session, &client).await?;
    find.target.tell(session, &machine)?;
    let (mut reader, _writer) =
        transfer::open(&client, &app, &machine.id, &["find", &find.path], false).await?;
    let (mut words, mut text, mut all) = (Words::default(), Vec::new(), Vec::new());
    let code = loop {
        match reader.next().await? {
            FromSession::Stdout(bytes) => text.extend_from_slice(&bytes),
            FromSession::Stderr(bytes) => words.add(&bytes),
            FromSession::Exit(code) => break code,
        }
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let entry: Value = serde_json::from_slice(&line)
                .map_err(|e| CliError::new(format!("can't parse the machine's file list: {e}")))?;
            if find.json {
                all.push(entry);
            } else if let Some(path) = entry["path"].as_str() {
                printer.out(path)?;
            }
        }
    };
    words.judge(code, printer)?;
    if find.json {
        printer.json(&all)?;
    }
    Ok(())
}
