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
use caddis_client::{ArchiveFormat, Client, LogsQuery, WaitFor};
use clap::Args;
use futures::stream;
use rand::Rng as _;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{apps::destroy::until_gone, image};
use crate::{CliError, Printer, render::size, session::Session, waiting};

/// Name of the image.
const IMAGE: &str = "caddis-demo:latest";
/// How long the first lines of the machine may take.
const LOGS_PATIENCE: Duration = Duration::from_secs(10);

/// Arguments.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  caddis demo\n  caddis demo --keep")]
pub struct Demo {
    /// Leave the machine running, and say how to look at it and how to remove it.
    #[arg(long)]
    keep: bool,
}

/// Runs it.
pub async fn run(demo: &Demo, session: &Session) -> Result<(), CliError> {
    let (client, printer) = (session.client()?, &session.printer);
    let title = |text: &str| printer.out(format_args!("\n{}", printer.paint_title(text)));

    title("A tiny image, which comes with this program")?;
    let begun = Instant::now();
    let archive = archive(caddis_guest_init_image::INIT)?;
    let length = archive.len() as u64;
    let archive = stream::iter([Ok(Bytes::from(archive))]);
    let image = image::import(printer, &client, ArchiveFormat::Docker, Some(IMAGE), archive, Some(length)).await?;
    printer.out(format_args!("  {IMAGE}, {}, imported {}", size::decimal(image.size), after(begun)))?;
    if !demo.keep {
        let client = client.clone();
        at_end(session, async move {
            match client.remove_image(IMAGE).await {
                // One that was kept has it.
                Err(error) if matches!(error.status(), Some(409 | 412)) => Ok(()),
                removed => Ok(removed?),
            }
        });
    }

    title("An app, which machines live under")?;
    let app = format!("demo-{:06}", rand::rng().random_range(0..1_000_000));
    let request =
        CreateAppRequest { name: Some(app.clone()), org_slug: Some("personal".to_owned()), ..Default::default() };
    client.create_app(&request).await.map_err(|e| CliError::attempted("could not create an app", e))?;
    printer.out(format_args!("  {app}"))?;
    if !demo.keep {
        let (client, printer, app) = (client.clone(), printer.clone(), app.clone());
        at_end(session, async move {
            client.delete_app(&app).await?;
            until_gone(&client, &app).await?;
            Ok(printer.out(format_args!("\nGone again: the machine, app {app} and the image"))?)
        });
    }

    title("A machine of it")?;
    let begun = Instant::now();
    let config = json!({ "image": IMAGE, "restart": { "policy": "no" } });
    let config = config.as_object().cloned().map(RawConfig);
    let request = CreateMachineRequest { config, ..Default::default() };
    let created = client.create_machine(&app, &request).await;
    let id = created.map_err(|e| CliError::attempted("could not launch machine", e))?.id;
    show_started(printer, &client, &app, &id, begun).await?;

    title("What it says")?;
    for line in first_lines(&client, &app, &id).await? {
        printer.out(format_args!("  {line}"))?;
    }

    title("A program in it")?;
    let command = vec!["/demo".to_owned(), "demo".to_owned(), "ask".to_owned()];
    let request = ExecRequest { cmd: Some(CommandLine::Words(command)), ..Default::default() };
    let reply = client.exec(&app, &id, &request, None).await;
    let reply = reply.map_err(|e| CliError::attempted("could not run a program", e))?;
    printer.out(format_args!("  {}", reply.stdout.trim_end()))?;

    title("Stopped, and started again")?;
    client.stop_machine(&app, &id, &StopRequest::default(), None).await?;
    let stopped = WaitFor::States(vec![MachineState::Stopped]);
    waiting::wait(printer, &client, &app, &id, &stopped, waiting::BUDGET).await?;
    let begun = Instant::now();
    client.start_machine(&app, &id, None).await?;
    show_started(printer, &client, &app, &id, begun).await?;

    if demo.keep {
        title("It runs on")?;
        printer.out(format_args!("  caddis machine status {id} -a {app}"))?;
        printer.out(format_args!("  caddis logs -a {app}"))?;
        printer.out(format_args!("  caddis machine top -a {app}"))?;
        printer.out("Removed by:")?;
        printer.out(format_args!("  caddis apps destroy {app} --yes && caddis image rm {IMAGE}"))?;
    }
    Ok(())
}

/// Has something removed at the end, whatever comes before it. What can't be is told.
fn at_end(session: &Session, remove: impl Future<Output = Result<(), CliError>> + Send + 'static) {
    let printer = session.printer.clone();
    session.at_end(async move {
        if let Err(error) = remove.await {
            let _ = printer.note(format_args!("could not clean up: {error}"));
        }
    });
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
        return Err(CliError::new(format!("machine {id} has ended, it is {state}")));
    }
    let machine = client.get_machine(app, id).await?;
    Ok(printer.out(format_args!("  {id} runs {took}, started {}", kind(&machine)))?)
}

/// How it was started.
fn kind(machine: &Machine) -> &'static str {
    match machine.start_kind.as_deref() {
        Some("template") => "from a template",
        Some("resume") => "where it was saved",
        _ => "by booting",
    }
}

/// The first lines of the machine, once there are all of its greeting.
async fn first_lines(client: &Client, app: &str, id: &MachineId) -> Result<Vec<String>, CliError> {
    const LAST: &str = "  image";
    let end = Instant::now() + LOGS_PATIENCE;
    let mut query = LogsQuery { instance: Some(id.to_string()), wait_seconds: 2, ..LogsQuery::default() };
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
fn archive(program: &[u8]) -> io::Result<Vec<u8>> {
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
    let manifest = json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
    let mut image = tar::Builder::new(Vec::new());
    append(&mut image, "manifest.json", 0o644, manifest.to_string().as_bytes())?;
    append(&mut image, "config.json", 0o644, config.to_string().as_bytes())?;
    append(&mut image, "layer.tar", 0o644, &layer)?;
    image.into_inner()
}

fn append(archive: &mut tar::Builder<Vec<u8>>, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    archive.append_data(&mut header, name, content)
}
