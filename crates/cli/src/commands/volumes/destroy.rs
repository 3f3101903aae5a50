//! `caddis volumes destroy`.

use caddis_api::Volume;
use clap::Args;

use crate::{CliError, complete, globals::AppArgs, prompt, session::Session, volumes};

/// `caddis volumes destroy`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis volumes destroy vol_9vw681egy1jj5xm4 -a hello\n  caddis \
                  volumes destroy vol_9vw681egy1jj5xm4 vol_0dxm4w0kp1jk6n2q -a hello --yes"
)]
pub struct Destroy {
    /// IDs of the volumes.
    #[arg(value_name = "ID", add = complete::volumes())]
    ids: Vec<String>,
    #[command(flatten)]
    app: AppArgs,
    /// Don't ask for confirmation.
    #[arg(short, long, alias = "auto-confirm")]
    yes: bool,
}

pub async fn run(destroy: Destroy, session: &Session) -> Result<(), CliError> {
    let (app, client, printer) = (session.app(&destroy.app)?, session.client()?, &session.printer);
    let ids = match destroy.ids.is_empty() {
        true => {
            let wanted =
                ("volume ID or app required", &|volume: &Volume| !volume.state.is_deleted());
            vec![volumes::choose(session, &client, &app, wanted).await?]
        }
        false => destroy.ids,
    };
    let known = client.list_volumes(&app).await?;
    for id in ids {
        // One that is mistyped is told before it is asked about.
        let volume = client.get_volume(&app, &id).await?;
        if !destroy.yes {
            let alike =
                known.iter().filter(|other| other.name == volume.name && !other.state.is_deleted());
            let text = match alike.count() {
                ..=2 => format!(
                    "Warning! Individual volumes are pinned to individual hosts. You should have \
                     two or more volumes per application. Deleting this volume will leave you \
                     with fewer volumes '{}'.",
                    volume.name
                ),
                _ => "Deleting a volume can be taken back for a day only.".to_owned(),
            };
            printer.note(printer.paint_error(&text))?;
            let question = "Are you sure you want to destroy this volume?";
            prompt::confirm(printer, question, prompt::NO_YES).await?;
        }
        let deleted = client.delete_volume(&app, &id).await;
        let deleted = deleted
            .map_err(|error| CliError::attempted("failed to destroy volume", error).about(&id))?;
        printer.out(format_args!("Destroyed volume ID: {id} name: {}", deleted.name))?;
        if let Some(until) = &deleted.deleted_until {
            printer.note(format_args!(
                "'caddis volumes undelete {id} -a {app}' brings it back until {until}."
            ))?;
        }
    }
    Ok(())
}
