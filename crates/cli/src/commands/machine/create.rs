//! `caddis machine run` and `create`.

use caddis_api::{Machine, app::CreateAppRequest, requests::CreateMachineRequest};
use caddis_client::Client;
use clap::Args;

use super::{choice, health, launch, shell};
use crate::{
    CliError,
    globals::AppArgs,
    organization, prompt,
    render::{machine, places, size},
    session::Session,
    spec::{self, MachineFlags, Program},
    volumes,
    waiting::{self, Outcome},
};

/// Arguments of both.
#[derive(Debug, Args)]
pub struct Create {
    /// Image to run: registry/repository:tag, or the name of an imported image.
    image: Option<String>,
    /// Command to run instead of the image's; put -- before one with dashes.
    command: Vec<String>,
    #[command(flatten)]
    app: AppArgs,
    /// Name of the machine [default: generated].
    #[arg(short, long)]
    name: Option<String>,
    #[command(flatten)]
    shell: shell::ShellFlags,
    /// Region to create the machine in.
    #[arg(short, long, env = "FLY_REGION")]
    region: Option<String>,
    /// Destroy the machine when its program exits.
    #[arg(long)]
    rm: bool,
    /// Don't wait for the machine to start.
    #[arg(long)]
    detach: bool,
    /// Mount a volume: ID:/PATH, or NAME:/PATH for any unattached one of that name; where there is
    /// none of that name, one of 1 GB is created.
    #[arg(short, long, value_name = "VOLUME:PATH", value_delimiter = ',')]
    volume: Vec<String>,
    /// Organization for an app that is created for it.
    #[arg(long, value_name = "SLUG")]
    org: Option<String>,
    /// Always an error: a machine gets its id from the server.
    #[arg(long, value_name = "ID", hide = true)]
    id: Option<String>,
    /// No effect: no image is built.
    #[arg(long, hide = true)]
    use_zstd: bool,
    /// No effect: there is no remote builder.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, value_name = "BOOL")]
    wg: Option<Option<String>>,
    #[command(flatten)]
    flags: MachineFlags,
}

pub async fn run(create: Create, launched: bool, session: &Session) -> Result<(), CliError> {
    if create.shell.shell {
        let program = Program { image: create.image, command: create.command, auto_destroy: true };
        let fresh = shell::Fresh {
            app: &create.app,
            program,
            flags: &create.flags,
            volumes: &create.volume,
            region: create.region,
            org: create.org,
        };
        return shell::run(&create.shell, fresh, session).await;
    }
    if create.id.is_some() {
        return Err(CliError::new("to update an existing machine, use 'caddis machine update'"));
    }
    let (client, printer) = (session.client()?, &session.printer);
    let program = Program { image: create.image, command: create.command, auto_destroy: create.rm };
    let mut config =
        spec::build(&create.flags, &program, &session.environment.current_directory)?.fields();
    spec::add_mounts(&mut config, &create.volume)?;
    launch::warn(printer, &config, &create.flags)?;
    let app = choose_app(&create.app, create.org.as_deref(), &client, session).await?;
    let wanted = (create.name.as_deref(), create.region.as_deref());
    let made = volumes::make_missing(session, &client, &app, &config, wanted).await?;
    let standby = spec::is_standby(&config);
    let request = CreateMachineRequest {
        config: Some(config.into()),
        name: create.name,
        region: create.region,
        skip_launch: !launched || standby,
        ..CreateMachineRequest::default()
    };
    let created = launch::create(session, &client, &app, request).await;
    let (created, mut unfinished) = made.settle(created).await?;
    printer.out(format_args!("Image: {}", machine::full_image(&created.image_ref)))?;
    if let Some(bytes) = created.image_size {
        printer.out(format_args!("Image size: {}", size::decimal(bytes)))?;
    }
    printer.out("")?;
    let verb = if launched { "launched" } else { "created" };
    printer.out(format_args!("Success! A Machine has been successfully {verb} in app {app}"))?;
    printer.out(format_args!(" Machine ID: {}", created.id))?;
    printer.out(format_args!(" Instance ID: {}", created.instance_id))?;
    printer.out(format_args!(" State: {}", created.state))?;
    if !launched || standby {
        unfinished.over = true;
        return print_places(session, &client, &app, &created).await;
    }
    printer.out(" Attempting to start machine...\n")?;
    if create.detach {
        unfinished.over = true;
        return print_places(session, &client, &app, &created).await;
    }
    let outcome = waiting::until_it_runs(printer, &client, &app, &created.id, None).await;
    // One that goes with its program is gone when that has failed.
    unfinished.over = create.rm && matches!(outcome, Err(CliError::Failed { .. }));
    if let Outcome::Done(state) = outcome? {
        printer.out(format_args!(
            "The machine ran and is now {state}; see 'caddis machine status {} -a {app}'",
            created.id
        ))?;
        unfinished.over = true;
        return Ok(());
    }
    printer.out("==> Monitoring health checks")?;
    let machine = choice::get(&client, &app, created.id.as_str()).await?;
    health::follow_new(printer, &client, &app, &machine).await?;
    unfinished.over = true;
    printer.out("\nMachine started, you can connect via the following private ip")?;
    printer.out(format_args!("  {}", created.private_ip))?;
    print_places(session, &client, &app, &created).await
}

/// Prints where the machine's services answer, if it has any. It is there whatever becomes of this.
async fn print_places(
    session: &Session,
    client: &Client,
    app: &str,
    created: &Machine,
) -> Result<(), CliError> {
    let services = machine::config(created).services.unwrap_or_default();
    if services.is_empty() {
        return Ok(());
    }
    let (found, addresses) = tokio::join!(client.get_app(app), client.list_addresses(app));
    let Ok(found) = found else { return Ok(()) };
    let places = places::all(&found, &services, &addresses.unwrap_or_default());
    if places.is_empty() {
        return Ok(());
    }
    session.printer.out("\nIts services answer at")?;
    places.iter().try_for_each(|place| session.printer.out(format_args!("  {place}")))?;
    Ok(())
}

/// The app that is named, made when the user wants that, or a new one.
async fn choose_app(
    arguments: &AppArgs,
    org: Option<&str>,
    client: &Client,
    session: &Session,
) -> Result<String, CliError> {
    let printer = &session.printer;
    let (name, org_slug) = match arguments.find(&session.environment)? {
        Some(name) => match client.get_app(&name).await {
            Err(error) if error.is_not_found() && printer.is_interactive() => {
                let question = format!("App '{name}' does not exist, would you like to create it?");
                prompt::confirm(printer, &question, "prompt: non interactive").await?;
                (name, organization::choose(session, client, org).await?)
            }
            Ok(_) => return Ok(name),
            Err(error) => return Err(CliError::attempted("could not launch machine", error)),
        },
        None if printer.is_interactive() => {
            let question = "Running a Machine without specifying an app will create one for you, \
                            is this what you want?";
            prompt::confirm(printer, question, "prompt: non interactive").await?;
            let org_slug = organization::choose(session, client, org).await?;
            let unasked = "name argument or flag must be specified when not running interactively";
            (prompt::ask(printer, "App Name: ", unasked).await?, org_slug)
        }
        None => return session.app(arguments),
    };
    let request = CreateAppRequest {
        name: Some(name),
        org_slug: Some(org_slug),
        ..CreateAppRequest::default()
    };
    let created = client.create_app(&request).await;
    let name = created
        .map_err(|e| CliError::attempted("could not create the app", e))?
        .app
        .name
        .to_string();
    printer.note(format_args!("New app created: {name}"))?;
    Ok(name)
}
