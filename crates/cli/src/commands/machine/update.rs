//! `caddis machine update`.

use std::time::Duration;

use caddis_api::{Machine, MachineState, RawConfig, requests::CreateMachineRequest};
use caddis_client::WaitFor;
use clap::Args;
use serde_json::{Map, Value, json};

use super::{choice, health, launch};
use crate::{
    CliError,
    durations::whole_seconds,
    progress::looking_up,
    prompt,
    render::{diff, machine::full_image},
    session::Session,
    spec::{self, MachineFlags},
    waiting,
};

#[derive(Debug, Args)]
pub struct Update {
    #[command(flatten)]
    which: choice::One,
    /// New image [default: the current one, by digest, even if its tag has moved].
    #[arg(short, long)]
    image: Option<String>,
    /// Don't ask for confirmation.
    #[arg(short, long, alias = "auto-confirm")]
    yes: bool,
    /// Don't start the machine if it is not running.
    #[arg(long)]
    skip_start: bool,
    /// Don't wait for health checks.
    #[arg(long)]
    skip_health_checks: bool,
    /// Don't watch health checks.
    #[arg(long)]
    detach: bool,
    /// Command to run, split into words as a shell does; '' for the image's.
    #[arg(short = 'C', long)]
    command: Option<String>,
    /// Mount path of its only volume.
    #[arg(long, value_name = "PATH")]
    mount_point: Option<String>,
    /// Seconds to wait for the new version.
    #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = whole_seconds)]
    wait_timeout: u64,
    #[command(flatten)]
    flags: MachineFlags,
}

/// Changes a machine's configuration.
pub async fn run(update: Update, session: &Session) -> Result<(), CliError> {
    let printer = &session.printer;
    let (client, app, machine) = update.which.find(session).await?;
    choice::reachable(&machine)?;
    let nonce = session.lease(&client, &app, &machine).await?;
    // Another may have changed it until the lease was ours.
    let machine = choice::get(&client, &app, machine.id.as_str()).await?;
    let id = &machine.id;
    let old = machine.config.clone().unwrap_or_default();
    let mut new = changed(&update, &old, session)?;
    launch::warn(printer, &new, &update.flags)?;
    if new != old.fields() {
        printer.note(format_args!(
            "Configuration changes to be applied to machine: {id} ({})\n",
            machine.name
        ))?;
        printer.raw_note(&diff::json(
            printer.paint(),
            &Value::Object(old.fields()),
            &Value::Object(new.clone()),
        ))?;
        printer.note("")?;
    } else if update.yes {
        // As the reference does: who says yes may want no more than the restart.
        printer.note("No config changes found; use --yes to update the machine anyway.")?;
    } else {
        return Err(CliError::new("no config changes found"));
    }
    if !update.yes {
        match prompt::confirm(printer, "Apply changes?", prompt::NO_YES).await {
            Err(CliError::Declined) => return Ok(printer.out("No changes to apply")?),
            answer => answer?,
        }
    }
    if update.image.is_none()
        && !spec::names_image(&update.flags, &session.environment.current_directory)?
    {
        // The same image by another name, which is no change to ask about.
        keep_image(&mut new, &machine);
    }
    printer.out(format_args!("Updating machine {id}"))?;
    let skip_launch = update.skip_start || spec::is_standby(&new);
    let request = CreateMachineRequest {
        config: Some(new.into()),
        skip_launch,
        ..CreateMachineRequest::default()
    };
    let updating = client.update_machine(&app, id, &request, Some(&nonce));
    let updated = match &update.image {
        Some(image) => {
            launch::searching(printer, image)?;
            looking_up(printer, updating).await
        }
        None => updating.await,
    };
    let image = update.image.as_deref().unwrap_or_default();
    let updated = updated.map_err(|error| {
        launch::failed(session, &format!("could not update machine {id}"), image, error)
    })?;
    for warning in &updated.warnings {
        printer.note(format_args!("Warning: {warning}"))?;
    }
    let budget = Duration::from_secs(update.wait_timeout);
    let settled = waiting::wait(printer, &client, &app, id, &WaitFor::Settled, budget).await;
    settled.map_err(|error| match error {
        CliError::DeadlineExceeded(text) => {
            CliError::DeadlineExceeded(format!("{text}\nTry increasing the --wait-timeout"))
        }
        error => error,
    })?;
    let machine = choice::get(&client, &app, id.as_str()).await?;
    if machine.state == MachineState::Failed {
        return Err(CliError::with_hint(
            format!("machine {id} update failed: machine entered \"failed\" state"),
            format!("See 'caddis machine status {id} -a {app}' for the reason."),
        ));
    }
    if !update.skip_health_checks && !update.detach && machine.state == MachineState::Started {
        health::follow(printer, &client, &app, &machine).await?;
    }
    printer.out(format_args!("Machine {id} updated successfully!\n"))?;
    printer.out("Monitor machine status here:")?;
    printer.out(format_args!("  caddis machine status {id} -a {app}"))?;
    Ok(())
}

/// Names the very image that the machine runs, as flyctl does: a tag would be looked up again, and
/// by now be another image, or gone with its registry.
fn keep_image(new: &mut Map<String, Value>, machine: &Machine) {
    if !machine.image_ref.digest.is_empty() {
        new.insert("image".to_owned(), json!(full_image(&machine.image_ref)));
    }
}

fn changed(
    update: &Update,
    old: &RawConfig,
    session: &Session,
) -> Result<Map<String, Value>, CliError> {
    let mut new = spec::change(old, &update.flags, &session.environment.current_directory)?;
    if let Some(image) = &update.image {
        spec::set_image(&mut new, image)?;
    }
    if let Some(command) = &update.command {
        spec::set_command(&mut new, command)?;
    }
    if let Some(path) = &update.mount_point {
        match new.get_mut("mounts").and_then(Value::as_array_mut).map(Vec::as_mut_slice) {
            Some([mount]) => mount["path"] = json!(path),
            Some([_, _, ..]) => {
                return Err(CliError::new(
                    "Can't use --mount-point for Machines with more than 1 volume: set the paths \
                     with --machine-config",
                ));
            }
            _ => return Err(CliError::new("Machine doesn't have a volume attached")),
        }
    }
    spec::check_guest(&new)?;
    Ok(new)
}
