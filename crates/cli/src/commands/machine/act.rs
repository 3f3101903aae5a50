//! Commands that change machines.

use std::time::Duration;

use caddis_api::{ApiDuration, MachineState, Signal, requests::StopRequest};
use caddis_client::{RestartOptions, WaitFor};
use clap::Args;

use super::{choice, health};
use crate::{
    CliError,
    session::Session,
    suggest,
    waiting::{self, Outcome},
};

/// What scripts give that answer questions of all commands; there are none here.
#[derive(Debug, Args)]
struct Unasked {
    /// Without effect: nothing is asked.
    #[arg(short, long, alias = "auto-confirm", hide = true)]
    yes: bool,
}

/// `caddis machine start`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis machine start 148e001b123d89\n  caddis machine start 148e001b123d89 --timing"
)]
pub struct Start {
    #[command(flatten)]
    which: choice::Many,
    #[command(flatten)]
    _unasked: Unasked,
    /// Show where the time went.
    #[arg(long)]
    timing: bool,
}

/// Starts machines.
pub async fn start(start: Start, session: &Session) -> Result<(), CliError> {
    let (client, app, machines) = start.which.find(session).await?;
    choice::each(session, &machines, async |machine| {
        let nonce = session.lease(&client, &app, machine).await?;
        let started = client.start_machine(&app, &machine.id, Some(&nonce)).await;
        started.map_err(|e| {
            CliError::attempted(format!("could not start machine {}", machine.id), e)
        })?;
        session.release_lease(&machine.id).await;
        let before = machine.events.iter().flatten().next().map(|event| &event.id);
        let state = waiting::until_started(&session.printer, &client, &app, &machine.id).await?;
        if state != MachineState::Started {
            waiting::how_it_went(&client, &app, &machine.id, before, state).await?;
        }
        match state {
            MachineState::Started => {
                session.printer.out(format_args!("{} has been started", machine.id))?
            }
            state => session
                .printer
                .out(format_args!("{} has been started and is {state} by now", machine.id))?,
        }
        if start.timing {
            let machine = client.get_machine(&app, &machine.id).await;
            let machine =
                machine.map_err(|e| CliError::attempted("could not get machine ID", e))?;
            show_timing(session, &machine)?;
        }
        Ok(())
    })
    .await
}

/// Shows what the newest event of a start tells.
fn show_timing(session: &Session, machine: &caddis_api::Machine) -> Result<(), CliError> {
    let event = machine
        .events
        .iter()
        .flatten()
        .find(|event| event.kind == "start" || event.kind == "restart");
    let told = event.and_then(|event| event.details.as_ref());
    let text =
        |value: &serde_json::Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let Some(steps) = told.and_then(|told| told["timing"].as_array()) else {
        let reason =
            told.map(|told| text(told, "start_reason")).filter(|reason| !reason.is_empty());
        return match reason {
            // Nothing was started.
            Some(reason) => Ok(session.printer.out(format_args!("Start: none {reason}"))?),
            None => Err(CliError::new(format!("machine {} has not started", machine.id))),
        };
    };
    let told = told.unwrap_or(&serde_json::Value::Null);
    let pool = told["pool"].as_str().map(|pool| format!("(pool: {pool}) ")).unwrap_or_default();
    let mut lines =
        vec![format!("Start: {} {pool}{}", text(told, "start_kind"), text(told, "start_reason"))];
    // What the VMM and the guest did lies within the host's steps `launch` and `configure`.
    let host = |step: &&serde_json::Value| step["where"] == "host";
    let total: f64 = steps.iter().filter(host).filter_map(|step| step["ms"].as_f64()).sum();
    for step in steps {
        let milliseconds = step["ms"].as_f64().unwrap_or(0.0);
        lines.push(format!(
            "  {:<6} {:<14} {milliseconds:>8.1} ms",
            text(step, "where"),
            text(step, "step")
        ));
    }
    lines.push(format!("  {:<6} {:<14} {total:>8.1} ms", "host", "in all"));
    for line in lines {
        session.printer.out(format_args!("{}", line.trim_end()))?;
    }
    Ok(())
}

/// `caddis machine stop`.
#[derive(Debug, Args)]
pub struct Stop {
    #[command(flatten)]
    which: choice::Many,
    #[command(flatten)]
    _unasked: Unasked,
    /// Signal to send first [default: the configuration's or the image's, else SIGINT].
    #[arg(short, long)]
    signal: Option<String>,
    /// Seconds until SIGKILL.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Wait up to this long for it to stop, e.g. 60s or 2m; 0 to not wait at all.
    #[arg(short, long, value_name = "DURATION", default_value = "7m")]
    wait_timeout: String,
}

/// Stops machines.
pub async fn stop(stop: Stop, session: &Session) -> Result<(), CliError> {
    let patience = duration(&stop.wait_timeout)?;
    let request = StopRequest {
        signal: stop.signal.as_deref().map(signal).transpose()?,
        timeout: seconds(stop.timeout),
    };
    let (client, app, machines) = stop.which.find(session).await?;
    choice::each(session, &machines, async |machine| {
        let id = &machine.id;
        session.printer.out(format_args!("Sending kill signal to machine {id}..."))?;
        let nonce = session.lease(&client, &app, machine).await?;
        let stopped = client.stop_machine(&app, id, &request, Some(&nonce)).await;
        stopped.map_err(|e| CliError::attempted(format!("could not stop machine {id}"), e))?;
        if patience.is_zero() {
            return Ok(session.printer.out(format_args!("{id} is being stopped"))?);
        }
        session.release_lease(id).await;
        // One that goes with its program is stopped for an instant only.
        let ends = ("stop", [MachineState::Stopped, MachineState::Destroyed].as_slice());
        let state = waiting::until(&session.printer, &client, &app, id, ends, patience).await?;
        let gone = if state == MachineState::Destroyed { " and destroyed" } else { "" };
        session.printer.out(format_args!("{id} has been successfully stopped{gone}"))?;
        Ok(())
    })
    .await
}

/// `caddis machine suspend`.
#[derive(Debug, Args)]
pub struct Suspend {
    #[command(flatten)]
    which: choice::Many,
    #[command(flatten)]
    _unasked: Unasked,
    /// Wait up to this long for it to be suspended, e.g. 60s or 2m.
    #[arg(short, long, value_name = "DURATION")]
    wait_timeout: Option<String>,
}

/// Suspends machines.
pub async fn suspend(suspend: Suspend, session: &Session) -> Result<(), CliError> {
    let patience =
        suspend.wait_timeout.as_deref().map(duration).transpose()?.filter(|time| !time.is_zero());
    let (client, app, machines) = suspend.which.find(session).await?;
    choice::each(session, &machines, async |machine| {
        let id = &machine.id;
        let nonce = session.lease(&client, &app, machine).await?;
        let suspended = client.suspend_machine(&app, id, Some(&nonce)).await;
        suspended.map_err(|e| CliError::attempted(format!("could not suspend machine {id}"), e))?;
        let Some(patience) = patience else {
            return Ok(session.printer.out(format_args!("{id} is being suspended"))?);
        };
        let condition = WaitFor::States(vec![MachineState::Suspended]);
        waiting::wait(&session.printer, &client, &app, id, &condition, patience).await?;
        session.printer.out(format_args!("{id} has been suspended"))?;
        Ok(())
    })
    .await
}

/// `caddis machine restart`.
#[derive(Debug, Args)]
pub struct Restart {
    #[command(flatten)]
    which: choice::Many,
    #[command(flatten)]
    _unasked: Unasked,
    /// Signal to send first.
    #[arg(short, long)]
    signal: Option<String>,
    /// Seconds until SIGKILL.
    #[arg(long, value_name = "SECONDS")]
    time: Option<u64>,
    /// Kill it at once.
    #[arg(long)]
    force: bool,
    /// Don't wait for health checks.
    #[arg(long)]
    skip_health_checks: bool,
}

/// Restarts machines.
pub async fn restart(restart: Restart, session: &Session) -> Result<(), CliError> {
    let signal = restart.signal.as_deref().map(signal).transpose()?;
    let options = RestartOptions { signal, timeout: seconds(restart.time), force: restart.force };
    let (client, app, machines) = restart.which.find(session).await?;
    choice::each(session, &machines, async |machine| {
        let id = &machine.id;
        session.printer.out(format_args!("Restarting machine {id}"))?;
        let nonce = session.lease(&client, &app, machine).await?;
        let restarted = client.restart_machine(&app, id, &options, Some(&nonce)).await;
        restarted.map_err(|e| CliError::attempted(format!("failed to restart machine {id}"), e))?;
        let before = machine.events.iter().flatten().next().map(|event| &event.id);
        let outcome = waiting::until_it_runs(&session.printer, &client, &app, id, before).await?;
        if let Outcome::Done(state) = outcome {
            let text =
                format!("failed to restart machine {id}: it has started and is {state} by now");
            return Err(CliError::with_hint(
                text,
                format!("See 'caddis machine status {id} -a {app}' for how it ended."),
            ));
        }
        if !restart.skip_health_checks {
            let machine = choice::get(&client, &app, id.as_str()).await?;
            health::follow(&session.printer, &client, &app, &machine).await?;
        }
        session.printer.out(format_args!("Machine {id} restarted successfully!"))?;
        Ok(())
    })
    .await
}

/// `caddis machine kill`.
#[derive(Debug, Args)]
pub struct Kill {
    #[command(flatten)]
    which: choice::One,
}

/// Kills a machine's program.
pub async fn kill(kill: Kill, session: &Session) -> Result<(), CliError> {
    let (client, app, machine) = kill.which.find(session).await?;
    let (id, state) = (&machine.id, machine.state);
    if state == MachineState::Destroyed {
        return Err(CliError::new(format!("machine {id} has already been destroyed")));
    }
    session.printer.out(format_args!(
        "machine {id} was found and is currently in a {state} state, attempting to kill..."
    ))?;
    let killed = client.signal_machine(&app, id, Signal::KILL).await;
    killed.map_err(|e| CliError::attempted(format!("could not kill machine {id}"), e))?;
    session.printer.out("kill signal has been sent")?;
    Ok(())
}

/// `caddis machine wait`.
#[derive(Debug, Args)]
pub struct Wait {
    #[command(flatten)]
    which: choice::One,
    /// started, stopped, suspended, destroyed, failed, created, or settled for no change in
    /// progress.
    #[arg(long, default_value = "settled")]
    state: String,
    /// How long, e.g. 90s or 5m.
    #[arg(short, long, default_value = "5m", value_name = "DURATION")]
    wait_timeout: String,
}

/// Waits for a state.
pub async fn wait(wait: Wait, session: &Session) -> Result<(), CliError> {
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
    let timeout = &wait.wait_timeout;
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
        .unwrap_or_else(|| "See 'caddis machine wait --help' for those there are.".to_owned());
    CliError::with_hint(format!("'{state}' is no state of a machine"), hint)
}

fn signal(text: &str) -> Result<Signal, CliError> {
    text.parse().map_err(|_| {
        CliError::new(format!("'{text}' is no signal: use a name such as SIGTERM, or a number"))
    })
}

fn seconds(seconds: Option<u64>) -> Option<ApiDuration> {
    seconds.map(|seconds| ApiDuration(Duration::from_secs(seconds)))
}

fn duration(text: &str) -> Result<Duration, CliError> {
    let wrong = || CliError::new(format!("'{text}' is no duration: write for example 90s or 5m"));
    match text.parse::<u64>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => text.parse::<ApiDuration>().map(|duration| duration.0).map_err(|_| wrong()),
    }
}
