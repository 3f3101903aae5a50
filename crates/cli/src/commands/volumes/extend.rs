//! `caddis volumes extend`.

use caddis_api::MachineState;
use clap::Args;
use serde_json::json;

use crate::{
    CliError,
    session::Session,
    volumes::{self, Which, gib},
};

/// `caddis volumes extend`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis volumes extend vol_9vw681egy1jj5xm4 -a hello --size 10\n  \
                  caddis volumes extend vol_9vw681egy1jj5xm4 -a hello --size +5"
)]
pub struct Extend {
    #[command(flatten)]
    which: Which,
    /// New size in GB, or +GB for how much larger.
    #[arg(short, long, value_name = "GB", allow_hyphen_values = true)]
    size: Option<String>,
    /// No effect: nothing is asked.
    #[arg(short, long, alias = "auto-confirm", hide = true)]
    yes: bool,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(extend: Extend, session: &Session) -> Result<(), CliError> {
    let text = extend.size.filter(|size| !size.is_empty());
    let text = text.ok_or_else(|| CliError::new("Volume size must be specified"))?;
    let (client, app, volume) = extend.which.find(session).await?;
    let size_gb = match text.strip_prefix('+') {
        Some(more) => volumes::get(&client, &app, &volume)
            .await?
            .size_gb
            .checked_add(gib(more)?)
            .ok_or_else(|| CliError::new(format!("invalid size '{text}'")))?,
        None => gib(&text)?,
    };
    let extended = client.extend_volume(&app, &volume, size_gb).await;
    let mut reply =
        extended.map_err(|error| CliError::attempted("failed to extend volume", error))?;
    // Its machine tells of the new size of the file system when it is asked.
    if let Ok(volume) = client.get_volume(&app, &volume).await {
        reply.volume = volume;
    }
    let printer = &session.printer;
    if extend.json {
        let mut fields = json!(reply.volume);
        fields["needs_restart"] = json!(reply.needs_restart);
        return Ok(printer.json(&fields)?);
    }
    volumes::print(session, &app, &reply.volume)?;
    if reply.needs_restart {
        printer.note(
            "You will need to stop and start your Machine to increase the size of the file system",
        )?;
    } else if let Some(machine) = &reply.volume.attached_machine_id {
        let machine = client.get_machine(&app, machine).await;
        printer.note(match machine.map(|machine| machine.state) {
            Ok(MachineState::Suspended) => {
                "Your Machine is suspended: it will boot at its next start instead of being \
                 resumed, since its memory does not know the new size"
            }
            Ok(MachineState::Stopped | MachineState::Created) => {
                "Your Machine will see the new size at its next start"
            }
            _ => "Your Machine got its volume size extended without needing a restart",
        })?;
    }
    Ok(())
}
