//! `caddis machine run --shell`: an interactive shell in a fresh machine that is gone afterwards.
//!
//! It is gone also when this process is killed: the machine lives no longer than the session (its
//! init sees to that), ends after [`TIMEOUT_SECONDS`] when no session comes, and is destroyed when
//! it ends. An app that was made for it, or for an earlier one, is deleted by the server at the end
//! of the session, and by us.

use caddis_api::{MachineState, app::CreateAppRequest, requests::CreateMachineRequest};
use caddis_client::{Client, ListMachines};
use clap::Args;
use rand::Rng as _;
use serde_json::json;

use super::launch;
use crate::{
    CliError,
    app_name::{SHELLS, is_for_shells},
    attach,
    globals::AppArgs,
    organization,
    render::size,
    session::Session,
    spec::{self, MachineFlags, Program},
    terminal, volumes, waiting, words,
};

/// Image unless another is named.
const IMAGE: &str = "ubuntu";
/// Time in which the session must come.
const TIMEOUT_SECONDS: &str = "60";
/// Stands for the image's shell where it has no bash.
const DEFAULT_COMMAND: &str = "/bin/bash";

/// Flags of `run`.
#[derive(Debug, Args)]
pub struct ShellFlags {
    /// Open a shell in the machine; it is destroyed afterwards.
    #[arg(long)]
    pub shell: bool,
    /// With --shell: user to run as.
    #[arg(long, default_value = "root")]
    user: String,
    /// With --shell: command to run; without bash, another shell of the image.
    #[arg(
        id = "shell_command",
        long = "command",
        value_name = "COMMAND",
        default_value = DEFAULT_COMMAND
    )]
    command: String,
}

/// The machine to make.
pub struct Fresh<'a> {
    pub app: &'a AppArgs,
    pub program: Program,
    pub flags: &'a MachineFlags,
    /// Mounts, as on the command line.
    pub volumes: &'a [String],
    pub region: Option<String>,
    /// Whose an app is that is made for it.
    pub org: Option<String>,
}

pub async fn run(shell: &ShellFlags, fresh: Fresh<'_>, session: &Session) -> Result<(), CliError> {
    let (client, printer) = (session.client()?, &session.printer);
    let command = if shell.command == DEFAULT_COMMAND {
        Vec::new()
    } else {
        words::split("command", &shell.command)?
    };
    let mut program = fresh.program;
    program.image.get_or_insert_with(|| IMAGE.to_owned());
    let waits = program.command.is_empty();
    let mut config =
        spec::build(fresh.flags, &program, &session.environment.current_directory)?.fields();
    spec::add_mounts(&mut config, fresh.volumes)?;
    launch::warn(printer, &config, fresh.flags)?;
    if waits {
        // Until the session comes, which then is what the machine lives for.
        config.insert("init".to_owned(), json!({ "exec": ["sleep", TIMEOUT_SECONDS] }));
    }
    config.insert("restart".to_owned(), json!({ "policy": "no" }));

    let named = fresh.app.find(&session.environment)?;
    let remove_app = named.is_none();
    let app = match named {
        Some(app) => app,
        None => {
            let org = organization::choose(session, &client, fresh.org.as_deref()).await?;
            app_for_shells(&client, &org).await?
        }
    };
    if remove_app {
        let (client, app) = (client.clone(), app.clone());
        session.at_end(async move { remove_unless_used(&client, &app).await });
    }
    let wanted = (None, fresh.region.as_deref());
    let made = volumes::make_missing(session, &client, &app, &config, wanted).await?;
    let request = CreateMachineRequest {
        config: Some(config.into()),
        region: fresh.region,
        ..Default::default()
    };
    let created = launch::create(session, &client, &app, request).await;
    let (created, mut unfinished) = made.settle(created).await?;
    // From here on it is removed at the end, whatever that is.
    unfinished.over = true;
    let id = created.id.clone();
    {
        let (client, app, id, printer) = (client.clone(), app.clone(), id.clone(), printer.clone());
        session.at_end(async move {
            // It may have ended by itself by now.
            if let Err(error) = client.destroy_machine(&app, &id, true, None).await
                && !error.is_not_found()
            {
                let _ = printer
                    .note(format_args!("could not destroy machine {id} of app {app}: {error}"));
            }
        });
    }
    if let Some(bytes) = created.image_size {
        printer.note(format_args!("Image size: {}\n", size::decimal(bytes)))?;
    }
    printer.note(format_args!("Success! A Machine has been successfully launched in app {app}"))?;
    printer.note(format_args!(" Machine ID: {id}"))?;
    let state = waiting::until_started(printer, &client, &app, &id).await?;
    if state != MachineState::Started {
        return Err(CliError::new(format!(
            "machine {id} exited before a shell could be opened, it is {state}"
        )));
    }
    printer.note(format_args!("Connecting to {}... complete", created.private_ip))?;
    let pty = terminal::is_on_terminal();
    let user = Some(shell.user.clone());
    let program =
        attach::Program { command, user, pty, stdin: true, holds_machine: true, remove_app };
    attach::attach(session, &client, &app, &id, program).await
}

/// The app that shells live in: one that is there, or a new one.
async fn app_for_shells(client: &Client, org: &str) -> Result<String, CliError> {
    let apps = client.list_apps(Some(org)).await?;
    if let Some(app) = apps.into_iter().find(|app| is_for_shells(&app.name)) {
        return Ok(app.name.to_string());
    }
    let name = shells_app(org, rand::rng().random_range(0..1_000_000));
    let request = CreateAppRequest {
        name: Some(name.clone()),
        org_slug: Some(org.to_owned()),
        ..Default::default()
    };
    let made = client.create_app(&request).await;
    made.map_err(|error| CliError::attempted("could not create an app for the shell", error))?;
    Ok(name)
}

/// The name of such an app: cut to what a name may have.
fn shells_app(org: &str, number: u32) -> String {
    let name = format!("{SHELLS}{}-{number}", org.to_lowercase());
    name.chars().take(63).collect::<String>().trim_end_matches('-').to_owned()
}

/// Deletes the app, unless another shell lives in it.
async fn remove_unless_used(client: &Client, app: &str) {
    // What can't be removed now, the next shell finds and removes.
    if let Ok(machines) = client.list_machines(app, &ListMachines::default()).await
        && machines.iter().all(|machine| {
            matches!(machine.state, MachineState::Destroying | MachineState::Destroyed)
        })
    {
        let _ = client.delete_app(app).await;
    }
}
