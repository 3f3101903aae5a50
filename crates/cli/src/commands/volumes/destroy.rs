//! `caddis volumes destroy`.

use caddis_api::Volume;
use caddis_client::Client;
use clap::Args;

use crate::{CliError, complete, globals::AppArgs, prompt, session::Session, volumes};

/// `caddis volumes destroy`.
#[derive(Debug, Args)]
#[command(
    after_help = "A destroyed volume can be undeleted for a day, and its space on the host stays \
                  reserved for as long. --purge frees it at once.\n\nExamples:\n  caddis volumes \
                  destroy vol_9vw681egy1jj5xm4 -a hello\n  caddis volumes destroy \
                  vol_9vw681egy1jj5xm4 vol_0dxm4w0kp1jk6n2q -a hello --purge --yes"
)]
pub struct Destroy {
    /// IDs of the volumes.
    #[arg(value_name = "ID", add = complete::volumes())]
    ids: Vec<String>,
    #[command(flatten)]
    app: AppArgs,
    /// Destroy them for good, also those that are destroyed already: their space is free at once,
    /// and they can't be undeleted.
    #[arg(long)]
    purge: bool,
    /// Don't ask for confirmation.
    #[arg(short, long, alias = "auto-confirm")]
    yes: bool,
    /// Print the destroyed ones as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(destroy: Destroy, session: &Session) -> Result<(), CliError> {
    let (app, client, printer) = (session.app(&destroy.app)?, session.client()?, &session.printer);
    let ids = match destroy.ids.is_empty() {
        true => {
            let is_there = |volume: &Volume| destroy.purge || !volume.state.is_deleted();
            let wanted = ("volume ID or app required", &is_there);
            vec![volumes::choose(session, &client, &app, wanted).await?]
        }
        false => destroy.ids.clone(),
    };
    let mut wanted = Vec::new();
    // One that is mistyped is told before any other is gone.
    for id in ids {
        let id = volumes::checked(&app, id)?;
        wanted.push(volumes::get(&client, &app, &id).await?);
    }
    let (mut gone, mut failed) = (Vec::new(), None);
    for volume in &wanted {
        match one(&destroy, session, &client, &app, volume).await {
            Ok(volume) => gone.push(volume),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    // Those before one that failed are gone.
    if destroy.json && !gone.is_empty() {
        printer.json(&gone)?;
    }
    failed.map_or(Ok(()), Err)
}

async fn one(
    destroy: &Destroy,
    session: &Session,
    client: &Client,
    app: &str,
    volume: &Volume,
) -> Result<Volume, CliError> {
    let (printer, id) = (&session.printer, volume.id.as_str());
    if !destroy.yes {
        let text = warning(destroy.purge, volume, &client.list_volumes(app).await?);
        printer.note(printer.paint_error(&text))?;
        let question = "Are you sure you want to destroy this volume?";
        prompt::confirm(printer, question, prompt::NO_YES).await?;
    }
    let deleted = match destroy.purge {
        true => client.purge_volume(app, id).await,
        false => client.delete_volume(app, id).await,
    };
    let deleted = deleted
        .map_err(|error| CliError::attempted("failed to destroy volume", error).about(id))?;
    if !destroy.json {
        printer.out(format_args!("Destroyed volume ID: {id} name: {}", deleted.name))?;
        if let Some(until) = &deleted.deleted_until {
            printer.note(format_args!(
                "'caddis volumes undelete {id} -a {app}' brings it back until {until}. Until then \
                 its space stays reserved, unless it is destroyed with --purge."
            ))?;
        }
    }
    Ok(deleted)
}

/// What is asked about. `known` are the app's volumes.
fn warning(purge: bool, volume: &Volume, known: &[Volume]) -> String {
    let fate = if purge {
        "Deleting a volume with --purge is not reversible."
    } else {
        "Deleting a volume can be taken back for a day only, and its space stays reserved for as \
         long; --purge frees it at once."
    };
    let alike = known.iter().filter(|one| one.name == volume.name && !one.state.is_deleted());
    if volume.state.is_deleted() || alike.count() > 2 {
        return fate.to_owned();
    }
    format!(
        "Warning! Individual volumes are pinned to individual hosts. You should have two or more \
         volumes per application. Deleting this volume will leave you with fewer volumes '{}'. \
         {fate}",
        volume.name
    )
}
