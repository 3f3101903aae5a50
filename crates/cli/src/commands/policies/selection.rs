//! Which machines a policy is for.

use caddis_api::policies::{PolicySelector, SelectedMachine};
use caddis_client::Client;
use clap::Args;

use crate::{CliError, commands::machine::choice, complete};

/// Flags that select machines.
#[derive(Debug, Args)]
pub struct SelectionFlags {
    /// Select all machines of the app.
    #[arg(long)]
    all: bool,
    /// Select the machine of this ID or name; may be repeated.
    #[arg(long = "machine", value_name = "MACHINE", add = complete::machines())]
    machines: Vec<String>,
    /// Select machines with this in their metadata; all of it where repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<String>,
}

impl SelectionFlags {
    /// What they select of an app; `None` where none is given.
    pub async fn selector(
        &self,
        client: &Client,
        app: &str,
    ) -> Result<Option<PolicySelector>, CliError> {
        if !self.all && self.machines.is_empty() && self.metadata.is_empty() {
            return Ok(None);
        }
        let pair = |text: &String| {
            let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
            let pair = pair.map(|(key, value)| (key.to_owned(), value.to_owned()));
            pair.ok_or_else(|| CliError::new(format!("invalid metadata '{text}': use KEY=VALUE")))
        };
        let metadata = self.metadata.iter().map(pair).collect::<Result<_, _>>()?;
        let mut machines = Vec::new();
        for name in &self.machines {
            machines.push(SelectedMachine { id: choice::get(client, app, name).await?.id });
        }
        Ok(Some(PolicySelector {
            all: self.all.then_some(true),
            machines: (!machines.is_empty()).then_some(machines),
            metadata: (!self.metadata.is_empty()).then_some(metadata),
        }))
    }
}

/// A selector for people.
pub fn text(selector: &PolicySelector) -> String {
    let PolicySelector { machines, metadata, .. } = selector;
    let machines = machines.iter().map(|machines| {
        machines.iter().map(|machine| machine.id.to_string()).collect::<Vec<_>>().join(" or ")
    });
    let pairs = metadata.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let parts: Vec<_> = machines.chain(pairs).collect();
    if parts.is_empty() { "all".to_owned() } else { parts.join(", ") }
}
