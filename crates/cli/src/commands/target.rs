//! Which started machine `ssh` and `sftp` are about.

use caddis_api::{Machine, MachineState};
use caddis_client::{Client, ListMachines};
use clap::Args;

use super::machine::choice;
use crate::{CliError, complete, globals::AppArgs, prompt, render::machine as cell, session::Session};

/// Flags that choose it. Without any it is the first that runs.
#[derive(Debug, Args)]
pub struct Target {
    #[command(flatten)]
    pub app: AppArgs,
    /// Id or name of the machine.
    #[arg(long, value_name = "MACHINE", add = complete::machines())]
    machine: Option<String>,
    /// Choose from a menu of the machines that run.
    #[arg(short, long)]
    select: bool,
    /// Private address, id or name of the machine.
    #[arg(short = 'A', long, value_name = "ADDRESS")]
    address: Option<String>,
    /// Of those in this region.
    #[arg(short, long)]
    region: Option<String>,
    /// Of those in this process group.
    #[arg(short = 'g', long, visible_alias = "group", value_name = "GROUP")]
    process_group: Option<String>,
    /// Organisation; without meaning here, where the token tells it.
    #[arg(short, long, hide = true)]
    org: Option<String>,
    /// Container of the machine; there are none yet.
    #[arg(long, hide = true, conflicts_with = "no_container")]
    container: Option<String>,
    /// The machine itself and no container, as always here.
    #[arg(long, hide = true)]
    no_container: bool,
    /// Don't tell which machine it is.
    #[arg(short, long)]
    pub quiet: bool,
}

impl Target {
    /// Finds it.
    pub async fn find(&self, session: &Session, client: &Client) -> Result<(String, Machine), CliError> {
        let app = session.app(&self.app)?;
        choice::no_container(self.container.as_deref())?;
        if let Some(id) = &self.machine {
            let machine = choice::get(client, &app, id).await?;
            if machine.state != MachineState::Started {
                return Err(CliError::with_hint(
                    format!("machine {id} is not running, it is {}", machine.state),
                    format!("Start it with 'caddis machine start {id} -a {app}'."),
                ));
            }
            return Ok((app, machine));
        }
        let mut machines = client.list_machines(&app, &ListMachines::default()).await?;
        machines.retain(|machine| machine.state == MachineState::Started && self.fits(machine));
        machines.sort_by(|a, b| a.id.cmp(&b.id));
        if machines.is_empty() {
            let chosen = self.region.is_some() || self.process_group.is_some() || self.address.is_some();
            let which = if chosen { " that fits the flags" } else { "" };
            return Err(CliError::with_hint(
                format!("app {app} has no started machine{which}"),
                format!("See 'caddis machine list -a {app}', and start one with 'caddis machine start'."),
            ));
        }
        let mut at = 0;
        if self.select {
            let options: Vec<_> = machines
                .iter()
                .map(|machine| format!("{}: {} {} {}", machine.region, machine.id, machine.private_ip, machine.name))
                .collect();
            let unasked = "a machine must be named with --machine when not running interactively";
            at = prompt::choose(&session.printer, "Select VM:", &options, unasked).await?;
        }
        Ok((app, machines.swap_remove(at)))
    }

    fn fits(&self, machine: &Machine) -> bool {
        let group = cell::metadata(machine, "fly_process_group");
        let is_at = |address: &String| {
            let names = [machine.private_ip.as_str(), machine.id.as_str(), machine.name.as_str()];
            names.contains(&address.as_str()) || machine.private_ipv4.as_ref() == Some(address)
        };
        self.region.as_ref().is_none_or(|region| *region == machine.region)
            && self.process_group.as_deref().is_none_or(|wanted| group.as_deref().unwrap_or("app") == wanted)
            && self.address.as_ref().is_none_or(is_at)
    }
}
