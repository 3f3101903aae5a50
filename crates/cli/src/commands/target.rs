//! Which started machine `ssh` and `sftp` are about.

use caddis_api::{Machine, MachineState};
use caddis_client::{Client, ListMachines};
use clap::Args;

use super::machine::choice;
use crate::{
    CliError, complete, globals::AppArgs, prompt, render::machine as cell, session::Session,
};

/// How an error names machines that would all do, at most.
const NAMED: usize = 5;

/// Flags that choose it. Where they leave several, the user is asked.
#[derive(Debug, Args)]
pub struct Target {
    #[command(flatten)]
    pub app: AppArgs,
    /// ID or name of the machine.
    #[arg(long, value_name = "MACHINE", add = complete::machines())]
    machine: Option<String>,
    /// Choose from a menu of the running machines.
    #[arg(short, long)]
    select: bool,
    /// Private address, ID or name of the machine.
    #[arg(short = 'A', long, value_name = "ADDRESS")]
    address: Option<String>,
    /// Only machines in this region.
    #[arg(short, long)]
    region: Option<String>,
    /// Only machines in this process group.
    #[arg(short = 'g', long, visible_alias = "group", value_name = "GROUP")]
    process_group: Option<String>,
    /// No effect: the token determines the organization.
    #[arg(short, long, hide = true)]
    org: Option<String>,
    /// Container of the machine; not supported yet.
    #[arg(long, hide = true, conflicts_with = "no_container")]
    container: Option<String>,
    /// No effect: commands always run in the machine itself.
    #[arg(long, hide = true)]
    no_container: bool,
    /// Don't print which machine is used.
    #[arg(short, long)]
    pub quiet: bool,
}

impl Target {
    /// Finds it.
    pub async fn find(
        &self,
        session: &Session,
        client: &Client,
    ) -> Result<(String, Machine), CliError> {
        let app = session.app(&self.app)?;
        choice::no_container(self.container.as_deref())?;
        if let Some(id) = &self.machine {
            let machine = choice::get(client, &app, id).await?;
            if machine.state != MachineState::Started {
                return Err(not_running(&app, id, &machine));
            }
            return Ok((app, machine));
        }
        let mut machines = client.list_machines(&app, &ListMachines::default()).await?;
        let any = !machines.is_empty();
        machines.retain(|machine| machine.state == MachineState::Started && self.fits(machine));
        machines.sort_by(|a, b| a.id.cmp(&b.id));
        if machines.is_empty() {
            let chosen =
                self.region.is_some() || self.process_group.is_some() || self.address.is_some();
            let which = if chosen { " that fits the flags" } else { "" };
            let hint = match any {
                true => format!(
                    "See 'caddis machine list -a {app}', and start one with 'caddis machine start'."
                ),
                false => format!(
                    "The app has no machines; create one with 'caddis machine run IMAGE -a {app}'."
                ),
            };
            return Err(CliError::with_hint(
                format!("app {app} has no started machine{which}"),
                hint,
            ));
        }
        let several = machines.len() > 1;
        if several && !self.select && !session.printer.is_interactive() {
            return Err(undecided(&app, &machines));
        }
        let mut at = 0;
        if several || self.select {
            let options: Vec<_> = machines
                .iter()
                .map(|machine| {
                    format!(
                        "{}: {} {} {}",
                        machine.region, machine.id, machine.private_ip, machine.name
                    )
                })
                .collect();
            let unasked = "a machine must be named with --machine when not running interactively";
            at = prompt::choose(&session.printer, "Select VM:", &options, unasked).await?;
        }
        Ok((app, machines.swap_remove(at)))
    }

    /// Prints which machine it is, where nobody has named it.
    pub fn tell(&self, session: &Session, machine: &Machine) -> Result<(), CliError> {
        if !self.quiet && self.machine.is_none() {
            session
                .printer
                .note(format_args!("Using machine {} ({})", machine.id, machine.name))?;
        }
        Ok(())
    }

    fn fits(&self, machine: &Machine) -> bool {
        let group = cell::metadata(machine, "fly_process_group");
        let is_at = |address: &String| {
            let names = [machine.private_ip.as_str(), machine.id.as_str(), machine.name.as_str()];
            names.contains(&address.as_str()) || machine.private_ipv4.as_ref() == Some(address)
        };
        self.region.as_ref().is_none_or(|region| machine.region == region.as_str())
            && self
                .process_group
                .as_deref()
                .is_none_or(|wanted| group.as_deref().unwrap_or("app") == wanted)
            && self.address.as_ref().is_none_or(is_at)
    }
}

/// The machine that is named does not run: what can be done about it depends on why.
fn not_running(app: &str, name: &str, machine: &Machine) -> CliError {
    let (id, state) = (&machine.id, machine.state);
    let text = format!("machine {name} is not running, it is {state}");
    match state {
        MachineState::Destroyed | MachineState::Destroying => {
            CliError::with_hint(text, format!("'caddis machine list -a {app}' lists its machines."))
        }
        MachineState::Failed => CliError::with_hint(
            text,
            format!("'caddis machine status {id} -a {app}' shows why it failed."),
        ),
        MachineState::Created | MachineState::Stopped | MachineState::Suspended => {
            CliError::with_hint(
                text,
                format!("Start it with 'caddis machine start {name} -a {app}'."),
            )
        }
        _ => CliError::with_hint(
            text,
            format!("'caddis machine wait {name} -a {app}' waits until that is done."),
        ),
    }
}

/// Several machines would do, and there is nobody to ask.
fn undecided(app: &str, machines: &[Machine]) -> CliError {
    let mut sorted: Vec<_> = machines.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut names: Vec<_> = sorted
        .iter()
        .take(NAMED)
        .map(|machine| format!("{} ({})", machine.id, machine.name))
        .collect();
    if machines.len() > NAMED {
        names.push("…".to_owned());
    }
    CliError::with_hint(
        format!("app {app} has {} started machines: {}", machines.len(), names.join(", ")),
        "Name one with --machine.",
    )
}
