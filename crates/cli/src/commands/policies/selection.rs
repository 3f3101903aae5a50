//! Which machines a policy is for.

use caddis_api::{
    MachineId,
    policies::{PolicySelector, SelectedMachine},
};
use clap::Args;

use crate::{CliError, complete};

/// Flags that select machines.
#[derive(Debug, Args)]
pub struct SelectionFlags {
    /// Select all machines of the app.
    #[arg(long)]
    all: bool,
    /// Select the machine of this ID; may be repeated.
    #[arg(long = "machine", value_name = "ID", add = complete::machines())]
    machines: Vec<String>,
    /// Select machines with this in their metadata; all of it where repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<String>,
}

impl SelectionFlags {
    /// What they select; `None` where none is given.
    pub fn selector(&self) -> Result<Option<PolicySelector>, CliError> {
        if !self.all && self.machines.is_empty() && self.metadata.is_empty() {
            return Ok(None);
        }
        let pair = |text: &String| {
            let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
            let pair = pair.map(|(key, value)| (key.to_owned(), value.to_owned()));
            pair.ok_or_else(|| CliError::new(format!("invalid metadata '{text}': use KEY=VALUE")))
        };
        let metadata = self.metadata.iter().map(pair).collect::<Result<_, _>>()?;
        let machine = |id: &String| SelectedMachine { id: MachineId::from_trusted(id) };
        Ok(Some(PolicySelector {
            all: self.all.then_some(true),
            machines: (!self.machines.is_empty())
                .then(|| self.machines.iter().map(machine).collect()),
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
