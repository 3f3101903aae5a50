//! `caddis machine cordon` and `uncordon`.

use clap::Args;

use super::choice;
use crate::{CliError, globals::AppArgs, session::Session};

/// Arguments of both.
#[derive(Debug, Args)]
pub struct Cordon {
    /// Machine ids.
    ids: Vec<String>,
    #[command(flatten)]
    app: AppArgs,
}

/// Takes machines out of routing, or back in.
pub async fn set(cordon: Cordon, cordoned: bool, session: &Session) -> Result<(), CliError> {
    let (app, client) = (session.app(&cordon.app)?, session.client()?);
    let (verb, doing) = if cordoned { ("cordon", "Activating") } else { ("uncordon", "Deactivating") };
    for machine in choice::some(session, &client, &app, &cordon.ids).await? {
        let id = &machine.id;
        session.printer.out(format_args!("{doing} cordon on machine {id}..."))?;
        let nonce = session.lease(&client, &app, &machine).await?;
        let set = client.cordon_machine(&app, id, cordoned, Some(&nonce)).await;
        set.map_err(|e| CliError::attempted(format!("could not {verb} machine {id}"), e))?;
        session.printer.out("done!")?;
    }
    Ok(())
}
