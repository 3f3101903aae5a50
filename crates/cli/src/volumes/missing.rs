//! Volumes that are made for a machine because there is none of the name that a mount has.

use caddis_api::{MachineState, RawConfig, Volume, validate, volume::CreateVolumeRequest};
use caddis_client::{Client, ListMachines};
use serde_json::{Map, Value};

use super::make_as;
use crate::{CliError, session::Session};

/// Those that were made for a machine which is not there yet. Where its making is broken off they
/// remain, which is said.
pub struct Made<'a> {
    session: &'a Session,
    client: &'a Client,
    app: &'a str,
    volumes: Vec<Volume>,
}

impl Made<'_> {
    /// Keeps them where the machine was made. Where the server refused it they are removed again:
    /// nothing is on them.
    pub async fn settle<T>(mut self, machine: Result<T, CliError>) -> Result<T, CliError> {
        match &machine {
            Ok(_) => self.volumes.clear(),
            Err(error) if is_refusal(error) => self.remove().await,
            // The machine may be there, and have them.
            Err(_) => {}
        }
        machine
    }

    async fn remove(&mut self) {
        let printer = &self.session.printer;
        while let Some(Volume { id, .. }) = self.volumes.last() {
            if self.client.purge_volume(self.app, id.as_str()).await.is_err() {
                return;
            }
            // The error is what matters.
            let _ = printer.note(format_args!("Removed volume {id} again."));
            self.volumes.pop();
        }
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        remain(self.session, self.app, &self.volumes);
    }
}

/// Whether it is certain that a request which failed so has made nothing.
fn is_refusal(error: &CliError) -> bool {
    match error {
        CliError::Failed { is_refusal, .. } => *is_refusal,
        CliError::Client(error) => error.is_certain(),
        CliError::Declined => true,
        _ => false,
    }
}

/// Says which volumes there are of a machine that was not made.
pub fn remain(session: &Session, app: &str, made: &[Volume]) {
    for Volume { id, .. } in made {
        // The error is what matters.
        let _ = session.printer.note(format_args!(
            "Volume {id} was created and remains; 'caddis volumes destroy {id} -a {app}' removes \
             it."
        ));
    }
}

/// Makes the volumes of a machine's mounts that are given by a name which no volume has that could
/// be meant: of the smallest size, where the machine will fit. What can be known to be wrong with
/// the machine, which is to have this name and region, is refused before.
pub async fn make_missing<'a>(
    session: &'a Session,
    client: &'a Client,
    app: &'a str,
    config: &Map<String, Value>,
    (name, region): (Option<&str>, Option<&str>),
) -> Result<Made<'a>, CliError> {
    let mut made = Made { session, client, app, volumes: Vec::new() };
    let missing = missing(client, app, config, region).await?;
    if missing.is_empty() {
        return Ok(made);
    }
    check(client, app, config, name).await?;
    let compute = config.get("guest").cloned().and_then(|guest| serde_json::from_value(guest).ok());
    for name in missing {
        let request = CreateVolumeRequest {
            name: name.to_owned(),
            region: region.map(str::to_owned),
            size_gb: Some(1),
            compute: compute.clone(),
            ..CreateVolumeRequest::default()
        };
        let place = region.map(|region| format!(" in region {region}")).unwrap_or_default();
        let what = format!("could not create volume '{name}', since there is none{place}");
        match make_as(session, client, app, (&request, what.as_str())).await {
            Ok(volume) => {
                let Volume { id, size_gb, region, .. } = &volume;
                session.printer.note(format_args!(
                    "Created volume {id} ({name}, {size_gb} GB, region {region}), since there was \
                     none of this name."
                ))?;
                made.volumes.push(volume);
            }
            Err(error) => {
                made.remove().await;
                return Err(error);
            }
        }
    }
    Ok(made)
}

/// The names of mounts that no volume has.
async fn missing<'a>(
    client: &Client,
    app: &str,
    config: &'a Map<String, Value>,
    region: Option<&str>,
) -> Result<Vec<&'a str>, CliError> {
    let mounts = config.get("mounts").and_then(Value::as_array);
    let given = mounts.into_iter().flatten().filter_map(|mount| mount["volume"].as_str());
    let mut names: Vec<_> = given.filter(|given| !given.starts_with("vol_")).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return Ok(names);
    }
    let mut known = client.list_volumes(app).await?;
    known.retain(|volume| {
        !volume.state.is_deleted() && region.is_none_or(|region| volume.region.as_str() == region)
    });
    names.retain(|name| known.iter().all(|volume| volume.name != *name));
    Ok(names)
}

/// Refuses a machine that the server would refuse, as far as that is known here.
async fn check(
    client: &Client,
    app: &str,
    config: &Map<String, Value>,
    name: Option<&str>,
) -> Result<(), CliError> {
    let what = "could not launch machine";
    validate::normalise(RawConfig::from(config.clone()))
        .map_err(|error| CliError::new(format!("{what}: {}", error.message)))?;
    let Some(name) = name else { return Ok(()) };
    let machines = client.list_machines(app, &ListMachines::default()).await?;
    let is_there = |machine: &caddis_api::Machine| machine.state != MachineState::Destroyed;
    match machines.iter().find(|machine| machine.name == name && is_there(machine)) {
        Some(machine) => Err(CliError::with_hint(
            format!(
                "{what}: already_exists: unique machine name violation, machine ID {} already \
                 exists with name \"{name}\"",
                machine.id
            ),
            "The name is already in use, choose another one.",
        )),
        None => Ok(()),
    }
}
