//! `caddis demo`: what a newcomer sees first. All steps are what other commands do.

use std::{
    io,
    time::{Duration, Instant},
};

use bytes::Bytes;
use caddis_api::{
    Machine, MachineId, MachineState, RawConfig,
    app::CreateAppRequest,
    exec::{CommandLine, ExecRequest},
    requests::{CreateMachineRequest, StopRequest},
};
use caddis_client::{ArchiveFormat, Client, LogsQuery, WaitFor, Which};
use clap::Args;
use futures::stream;
use rand::Rng as _;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{apps::destroy::until_gone, image::import::import};
use crate::{CliError, Printer, render::size, session::Session, waiting};

/// How long the first lines of the machine may take.
const LOGS_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  caddis demo\n  caddis demo --keep")]
pub struct Demo {
    /// Keep the machine running, and print the commands that inspect and remove it.
    #[arg(long)]
    keep: bool,
}

pub async fn run(demo: &Demo, session: &Session) -> Result<(), CliError> {
    let (client, printer) = (session.client()?, &session.printer);
    let title = |text: &str| printer.out(format_args!("\n{}", printer.title(text)));

    let number = unused_number(&client).await?;
    let (image, app) = (format!("caddis-demo:{number}"), format!("demo-{number}"));
    let mut kept = Kept { printer, image: &image, app: &app, told: !demo.keep };
    if !demo.keep {
        let (client, printer, image, app) =
            (client.clone(), printer.clone(), image.clone(), app.clone());
        // However it ends, and before anything is made that could be left.
        session.at_end(async move {
            let text = match remove(&client, &image, &app).await {
                Ok(()) => format!("\nRemoved the machine, app {app} and image {image}"),
                Err(error) => {
                    format!("\nApp {app} and image {image} could not be removed: {error}")
                }
            };
            // Nobody may be there to read it.
            let _ = printer.out(text);
        });
    }

    title("Import a tiny built-in image")?;
    let begun = Instant::now();
    let archive = archive(&image, caddis_guest_init_image::INIT)?;
    let length = archive.len() as u64;
    let archive = stream::iter([Ok(Bytes::from(archive))]);
    let which = Which { name: Some(&image), ..Which::default() };
    let imported =
        import(printer, &client, ArchiveFormat::Docker, which, archive, Some(length)).await?;
    printer.out(format_args!(
        "  {image}, {}, imported {}",
        size::decimal(imported.size),
        after(begun)
    ))?;

    title("Create an app")?;
    let org_slug = Some("personal".to_owned());
    let request = CreateAppRequest { name: Some(app.clone()), org_slug, ..Default::default() };
    client
        .create_app(&request)
        .await
        .map_err(|e| CliError::attempted("could not create an app", e))?;
    printer.out(format_args!("  {app}"))?;

    title("Run a machine")?;
    let begun = Instant::now();
    let config = json!({ "image": image, "restart": { "policy": "no" } });
    let config = config.as_object().cloned().map(RawConfig::from);
    let request = CreateMachineRequest { config, ..Default::default() };
    let created = client.create_machine(&app, &request).await;
    let id = created.map_err(|e| CliError::attempted("could not launch machine", e))?.id;
    show_started(printer, &client, &app, &id, begun).await?;

    title("Show its log")?;
    for line in first_lines(&client, &app, &id).await? {
        printer.out(format_args!("  {line}"))?;
    }

    title("Run a program in it")?;
    let command = vec!["/demo".to_owned(), "demo".to_owned(), "ask".to_owned()];
    let request = ExecRequest { cmd: Some(CommandLine::Words(command)), ..Default::default() };
    let reply = client.exec(&app, &id, &request, None).await;
    let reply = reply.map_err(|e| CliError::attempted("could not run a program", e))?;
    if reply.exit_code != 0 {
        let (code, told) = (reply.exit_code, reply.stderr.trim_end());
        return Err(CliError::new(format!(
            "could not run a program: it exited with {code}: {told}"
        )));
    }
    printer.out(format_args!("  {}", reply.stdout.trim_end()))?;

    title("Stop it and start it again")?;
    client.stop_machine(&app, &id, &StopRequest::default(), None).await?;
    let stopped = WaitFor::States(vec![MachineState::Stopped]);
    waiting::wait(printer, &client, &app, &id, &stopped, waiting::BUDGET).await?;
    let begun = Instant::now();
    client.start_machine(&app, &id, None).await?;
    show_started(printer, &client, &app, &id, begun).await?;

    if demo.keep {
        title("The machine keeps running")?;
        printer.out(format_args!("  caddis machine status {id} -a {app}"))?;
        printer.out(format_args!("  caddis logs -a {app}"))?;
        printer.out(format_args!("  caddis machine top -a {app}"))?;
        printer.out(format_args!("Remove it with:\n  {}", kept.removal()))?;
        kept.told = true;
    }
    Ok(())
}

/// A number of which there is no app: what is there already is somebody's, and not to be removed
/// afterwards.
async fn unused_number(client: &Client) -> Result<String, CliError> {
    loop {
        let number = format!("{:08}", rand::rng().random_range(0..100_000_000));
        match client.get_app(&format!("demo-{number}")).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => return Ok(number),
            Err(error) => return Err(error.into()),
        }
    }
}

/// What stays with `--keep`. Says so also when the demo is broken off.
struct Kept<'a> {
    printer: &'a Printer,
    image: &'a str,
    app: &'a str,
    told: bool,
}

impl Kept<'_> {
    fn removal(&self) -> String {
        format!("caddis apps destroy {} --yes && caddis image rm {}", self.app, self.image)
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if !self.told {
            // Nobody may be there to read it.
            let _ = self.printer.note(format_args!(
                "What was created remains; remove it with:\n  {}",
                self.removal()
            ));
        }
    }
}

/// Removes what there is of it.
async fn remove(client: &Client, image: &str, app: &str) -> Result<(), CliError> {
    match client.delete_app(app).await {
        Err(error) if error.is_not_found() => {}
        deleted => {
            deleted?;
            until_gone(client, app).await?;
        }
    }
    match client.remove_image(image).await {
        Err(error) if error.is_not_found() => Ok(()),
        removed => Ok(removed?),
    }
}

fn after(begun: Instant) -> String {
    format!("after {:.2} s", begun.elapsed().as_secs_f64())
}

async fn show_started(
    printer: &Printer,
    client: &Client,
    app: &str,
    id: &MachineId,
    begun: Instant,
) -> Result<(), CliError> {
    let state = waiting::until_started(printer, client, app, id).await?;
    let took = after(begun);
    if state != MachineState::Started {
        return Err(CliError::new(format!("machine {id} is no longer running, it is {state}")));
    }
    let machine = client.get_machine(app, id).await?;
    Ok(printer.out(format_args!("  {id} started {took}, {}", kind(&machine)))?)
}

/// How it was started.
fn kind(machine: &Machine) -> &'static str {
    match machine.start_kind.as_deref() {
        Some("template") => "from a template",
        _ => "by booting",
    }
}

/// The first lines of the machine, once there are all of its greeting.
async fn first_lines(client: &Client, app: &str, id: &MachineId) -> Result<Vec<String>, CliError> {
    const LAST: &str = "  image";
    let end = Instant::now() + LOGS_TIMEOUT;
    let mut query =
        LogsQuery { instance: Some(id.to_string()), wait_seconds: 2, ..LogsQuery::default() };
    let mut lines: Vec<String> = Vec::new();
    while !lines.iter().any(|line| line.starts_with(LAST)) && Instant::now() < end {
        let page = client.logs(app, &query).await?;
        let entries = page.data.into_iter().map(|entry| entry.attributes);
        let own = entries.filter(|entry| entry.meta.event.provider == "app");
        lines.extend(own.map(|entry| entry.message));
        query.next_token = Some(page.meta.next_token);
    }
    Ok(lines)
}

/// An image of one program, as `docker save` writes one.
fn archive(name: &str, program: &[u8]) -> io::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, "demo", 0o755, program)?;
    let layer = layer.into_inner()?;
    let digest: String = Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": ["/demo", "demo"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest =
        json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    let mut image = tar::Builder::new(Vec::new());
    append(&mut image, "manifest.json", 0o644, manifest.to_string().as_bytes())?;
    append(&mut image, "config.json", 0o644, config.to_string().as_bytes())?;
    append(&mut image, "layer.tar", 0o644, &layer)?;
    image.into_inner()
}

fn append(
    archive: &mut tar::Builder<Vec<u8>>,
    name: &str,
    mode: u32,
    content: &[u8],
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    archive.append_data(&mut header, name, content)
}
