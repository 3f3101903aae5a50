//! `caddis machine clone`.

mod mounts;

use caddis_api::{Machine, requests::CreateMachineRequest};
use clap::Args;
use serde_json::{Map, Value, json};

use super::{choice, health, launch};
use crate::{
    CliError, Printer,
    render::machine::full_image,
    session::Session,
    spec::{self, VmFlags},
    volumes,
    waiting::{self, Outcome},
};

#[derive(Debug, Args)]
pub struct Clone {
    #[command(flatten)]
    which: choice::One,
    /// Region of the new machine [default: the source's, or that of the attached volume].
    #[arg(short, long)]
    region: Option<String>,
    /// Name of the new machine [default: generated].
    #[arg(long)]
    name: Option<String>,
    /// Fill its volume from a snapshot: an ID, or 'last' for the last of the source's volume.
    #[arg(long, value_name = "ID", conflicts_with = "attach_volume")]
    from_snapshot: Option<String>,
    /// Attach this volume instead of creating one: ID[:/PATH].
    #[arg(long, value_name = "VOLUME[:PATH]")]
    attach_volume: Option<String>,
    /// Command to run instead, split into words as a shell does.
    #[arg(long, value_name = "COMMAND")]
    override_cmd: Option<String>,
    /// Use the image's command.
    #[arg(long)]
    clear_cmd: bool,
    /// Keep the machine when its program exits.
    #[arg(long)]
    clear_auto_destroy: bool,
    /// Make it a standby for these machines, comma-separated IDs; 'source' for the cloned one.
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    standby_for: Option<Vec<String>>,
    /// Create its volumes on other hosts than those of the same name [default: true where there
    /// are several hosts].
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    volume_requires_unique_zone: Option<bool>,
    /// Don't wait for the machine to start.
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    vm: VmFlags,
}

/// Makes a machine like another.
pub async fn run(clone: Clone, session: &Session) -> Result<(), CliError> {
    let printer = &session.printer;
    let (client, app, source) = clone.which.find(session).await?;
    choice::reachable(&source)?;
    let mut config = config(&clone, &source)?;
    let wanted = mounts::Wanted::new(&clone, &source, &client, &app).await?;
    let region = wanted.region();
    printer.out(format_args!("Cloning Machine {} into region {region}", source.id))?;
    let auto_destroy = config.get("auto_destroy").and_then(Value::as_bool) == Some(true);
    if auto_destroy {
        printer.out(
            "Auto destroy enabled and will destroy Machine on exit. Use --clear-auto-destroy to \
             remove this setting.",
        )?;
    }
    let made = wanted.set(&mut config, session, &client, &app).await?;
    let image = source.config.as_ref().and_then(|config| config.field("image"));
    let image = image.as_ref().and_then(Value::as_str).unwrap_or_default();
    printer.out(format_args!("Provisioning a new Machine with image {image}..."))?;
    let standby = spec::is_standby(&config);
    let request = CreateMachineRequest {
        config: Some(config.into()),
        name: clone.name.clone(),
        region: Some(region),
        skip_launch: standby,
        ..CreateMachineRequest::default()
    };
    let created = launch::attempt(session, &client, &app, &request).await;
    let (created, mut unfinished) = created.map_err(|error| {
        volumes::remain(session, &app, &made);
        launch::failed(session, &format!("could not clone machine {}", source.id), image, error)
    })?;
    let id = &created.id;
    printer.out(format_args!("  Machine {id} has been created..."))?;
    if clone.detach {
        unfinished.over = true;
        return introduce(printer, &created);
    }
    if !standby {
        printer.out(format_args!("  Waiting for Machine {id} to start..."))?;
        let outcome = waiting::until_it_runs(printer, &client, &app, id, None).await;
        // One that goes with its program is gone when that has failed.
        unfinished.over = auto_destroy && matches!(outcome, Err(CliError::Failed { .. }));
        if outcome? == Outcome::Runs {
            let machine = choice::get(&client, &app, id.as_str()).await?;
            health::follow_new(printer, &client, &app, &machine).await?;
        }
    }
    unfinished.over = true;
    printer.out("Machine has been successfully cloned!")?;
    introduce(printer, &created)
}

/// Prints what the new machine is called and where it answers.
fn introduce(printer: &Printer, created: &Machine) -> Result<(), CliError> {
    printer.out(format_args!("  Name: {}", created.name))?;
    Ok(printer.out(format_args!("  Private IP: {}", created.private_ip))?)
}

fn config(clone: &Clone, source: &Machine) -> Result<Map<String, Value>, CliError> {
    let mut config = source.config.clone().unwrap_or_default().fields();
    // The same image, wherever its tag leads by now.
    config.insert("image".to_owned(), json!(full_image(&source.image_ref)));
    if clone.clear_cmd {
        spec::set_command(&mut config, "")?;
    }
    if let Some(command) = &clone.override_cmd {
        spec::set_command(&mut config, command)?;
    }
    if clone.clear_auto_destroy {
        config.insert("auto_destroy".to_owned(), json!(false));
    }
    if let Some(ids) = &clone.standby_for {
        let id = |id: &String| if id == "source" { source.id.to_string() } else { id.clone() };
        spec::set_standbys(&mut config, &ids.iter().map(id).collect::<Vec<_>>());
    }
    spec::set_vm(&mut config, &clone.vm)?;
    Ok(config)
}
