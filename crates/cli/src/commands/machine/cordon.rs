//! `caddis machine cordon` and `uncordon`.

use clap::Args;

use super::choice;
use crate::{CliError, session::Session};

/// Arguments of both.
#[derive(Debug, Args)]
pub struct Cordon {
    #[command(flatten)]
    which: choice::Many,
}

/// Takes machines out of routing, or back in.
pub async fn set(cordon: Cordon, cordoned: bool, session: &Session) -> Result<(), CliError> {
    let (verb, doing) =
        if cordoned { ("cordon", "Activating") } else { ("uncordon", "Deactivating") };
    let (client, app, machines) = cordon.which.find(session).await?;
    choice::each(session, &machines, async |machine| {
        let id = &machine.id;
        session.printer.out(format_args!("{doing} cordon on machine {id}..."))?;
        let nonce = session.lease(&client, &app, machine).await?;
        let set = client.cordon_machine(&app, id, cordoned, Some(&nonce)).await;
        set.map_err(|e| CliError::attempted(format!("could not {verb} machine {id}"), e))?;
        Ok(session.printer.out("done!")?)
    })
    .await
}
