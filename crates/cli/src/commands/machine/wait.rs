//! `caddis machine wait`.

use caddis_api::MachineState;
use caddis_client::WaitFor;
use clap::Args;

use super::choice;
use crate::{CliError, durations::duration, session::Session, suggest, waiting};

/// `caddis machine wait`.
#[derive(Debug, Args)]
pub struct Wait {
    #[command(flatten)]
    which: choice::One,
    /// State to wait for: started, stopped, suspended, destroyed, failed, created, or settled for
    /// no change in progress.
    #[arg(long, default_value = "settled")]
    state: String,
    /// Maximum time to wait, e.g. 90s or 5m.
    #[arg(short, long, default_value = "5m", value_name = "DURATION")]
    wait_timeout: String,
}

/// Waits for a state.
pub async fn run(wait: Wait, session: &Session) -> Result<(), CliError> {
    let budget = duration(&wait.wait_timeout)?;
    let condition = match wait.state.as_str() {
        "" => return Err(CliError::new("state cannot be empty")),
        "settled" => WaitFor::Settled,
        state => {
            let parsed = state.parse().map_err(|_| unknown_state(state))?;
            WaitFor::States(vec![parsed])
        }
    };
    let (client, app, machine) = wait.which.find(session).await?;
    let (id, state) = (&machine.id, &wait.state);
    let is_number = wait.wait_timeout.bytes().all(|byte| byte.is_ascii_digit());
    let timeout = format!("{}{}", wait.wait_timeout, if is_number { "s" } else { "" });
    session
        .printer
        .note(format_args!("Waiting up to {timeout} for machine {id} to reach \"{state}\"..."))?;
    let reply = waiting::wait(&session.printer, &client, &app, id, &condition, budget).await;
    let reply = reply.map_err(|error| match error {
        CliError::DeadlineExceeded(text) => CliError::DeadlineExceeded(format!(
            "machine {id} did not reach \"{state}\" within {timeout}: {text}"
        )),
        error => error,
    })?;
    session.printer.out(format_args!("Machine {id} reached state \"{}\"", reply.state))?;
    Ok(())
}

fn unknown_state(state: &str) -> CliError {
    let states = MachineState::ALL.iter().map(|state| state.as_str()).chain(["settled"]);
    let hint = suggest::hint(state, states)
        .unwrap_or_else(|| "'caddis machine wait --help' lists the states.".to_owned());
    CliError::with_hint(format!("unknown machine state '{state}'"), hint)
}
