//! `caddis machine run` and `create`.

use caddis_api::{MachineState, requests::CreateMachineRequest};
use clap::Args;

use super::shell;
use crate::{
    CliError,
    globals::AppArgs,
    render::machine,
    session::Session,
    spec::{self, MachineFlags, Program},
    waiting,
};

/// Arguments of both.
#[derive(Debug, Args)]
pub struct Create {
    /// Image to make it from, as registry/repository:tag or the name of an imported one.
    image: Option<String>,
    /// Replaces the image's command; put -- before one that has dashes.
    command: Vec<String>,
    #[command(flatten)]
    app: AppArgs,
    /// Name of the machine [default: generated].
    #[arg(short, long)]
    name: Option<String>,
    #[command(flatten)]
    shell: shell::ShellFlags,
    /// Region to create it in.
    #[arg(short, long, env = "FLY_REGION")]
    region: Option<String>,
    /// Destroy it when its program has ended.
    #[arg(long)]
    rm: bool,
    /// Don't wait until it runs.
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    flags: MachineFlags,
}

/// Runs it.
pub async fn run(create: Create, launch: bool, session: &Session) -> Result<(), CliError> {
    if create.shell.shell {
        let program = Program { image: create.image, command: create.command, auto_destroy: true };
        let fresh = shell::Fresh { app: &create.app, program, flags: &create.flags, region: create.region };
        return shell::run(&create.shell, fresh, session).await;
    }
    let app = session.app(&create.app)?;
    let (client, printer) = (session.client()?, &session.printer);
    let program = Program { image: create.image, command: create.command, auto_destroy: create.rm };
    let config = spec::build(&create.flags, &program, &session.environment.current_directory)?;
    let request = CreateMachineRequest {
        config: Some(config),
        name: create.name,
        region: create.region,
        skip_launch: !launch,
        ..CreateMachineRequest::default()
    };
    let created = client.create_machine(&app, &request).await;
    let created = created.map_err(|error| CliError::attempted("could not launch machine", error))?;
    for warning in &created.warnings {
        printer.note(format_args!("Warning: {warning}"))?;
    }
    printer.out(format_args!("Image: {}\n", machine::full_image(&created.image_ref)))?;
    let verb = if launch { "launched" } else { "created" };
    printer.out(format_args!("Success! A Machine has been successfully {verb} in app {app}"))?;
    printer.out(format_args!(" Machine ID: {}", created.id))?;
    printer.out(format_args!(" Instance ID: {}", created.instance_id))?;
    printer.out(format_args!(" State: {}", created.state))?;
    if !launch {
        return Ok(());
    }
    printer.out(" Attempting to start machine...\n")?;
    if create.detach {
        return Ok(());
    }
    let state = waiting::until_started(printer, &client, &app, &created.id).await?;
    if state != MachineState::Started {
        printer.out(format_args!(
            "The machine has run and is {state}; see 'caddis machine status {} -a {app}'",
            created.id
        ))?;
        return Ok(());
    }
    printer.out("==> Monitoring health checks")?;
    printer.out("No health checks found\n")?;
    printer.out("Machine started, you can connect via the following private ip")?;
    printer.out(format_args!("  {}", created.private_ip))?;
    Ok(())
}
