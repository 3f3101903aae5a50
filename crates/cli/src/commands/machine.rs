//! `caddis machine`.

mod arguments;
pub mod choice;
mod clone;
mod cordon;
mod create;
mod destroy;
mod egress_ip;
mod exec;
mod health;
mod hold;
mod kill;
mod launch;
mod leases;
mod list;
mod place;
mod restart;
mod shell;
mod start;
mod status;
mod stop;
mod suspend;
mod top;
mod update;
mod wait;
pub mod watch;

use clap::{Args, Subcommand};

use crate::{CliError, session::Session};

/// `caddis machine …`.
#[derive(Debug, Args)]
pub struct Machine {
    #[command(subcommand)]
    command: MachineCommand,
}

#[derive(Debug, Subcommand)]
enum MachineCommand {
    /// Create a machine from an image and start it.
    #[command(
        after_help = "Examples:\n  caddis machine run nginx -a hello --name web\n  caddis machine \
                      run 127.0.0.1:5000/job:1 -a hello --rm -e DEBUG=1 -- /bin/job --once"
    )]
    Run(Box<create::Create>),
    /// Create a machine without starting it.
    #[command(after_help = "Example:\n  caddis machine create nginx -a hello")]
    Create(Box<create::Create>),
    /// Clone a machine.
    #[command(
        after_help = "Examples:\n  caddis machine clone 148ed193b95389 -a hello\n  caddis machine \
                      clone 148ed193b95389 -a hello --vm-memory 512 --override-cmd 'serve --slow'"
    )]
    Clone(Box<clone::Clone>),
    /// Update a machine's configuration.
    #[command(after_help = "Examples:\n  caddis machine update 148ed193b95389 -a hello --image \
                      nginx:1.27\n  caddis machine update 148ed193b95389 -a hello -e DEBUG=1 \
                      --vm-memory 512 --yes")]
    Update(Box<update::Update>),
    /// Take machines out of routing: they keep running but get no new requests.
    #[command(after_help = "Example:\n  caddis machine cordon 148ed193b95389 -a hello")]
    Cordon(cordon::Cordon),
    /// Put machines back into routing.
    #[command(after_help = "Example:\n  caddis machine uncordon 148ed193b95389 -a hello")]
    Uncordon(cordon::Cordon),
    /// Show and clear machine leases.
    #[command(visible_alias = "lease")]
    Leases(leases::Leases),
    /// Preview placement; nothing is reserved.
    #[command(
        after_help = "Examples:\n  caddis machine place --count 3 --vm-size shared-cpu-1x\n  \
                      caddis machine place --region eu,any --json"
    )]
    Place(Box<place::Place>),
    /// Manage static egress addresses of single machines.
    #[command(name = "egress-ip")]
    EgressIp(egress_ip::EgressIp),
    /// List an app's machines.
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  caddis machine list -a hello\n  caddis machine list -a hello \
                      --watch --json"
    )]
    List(list::List),
    /// Show a machine and its events.
    #[command(
        after_help = "Examples:\n  caddis machine status 148ed193b95389 -a hello\n  caddis machine \
                      status web -a hello --display-config"
    )]
    Status(status::Status),
    /// Show live CPU and memory usage of an app's machines; q or Ctrl-C quits.
    #[command(
        after_help = "Examples:\n  caddis machine top -a hello\n  caddis machine top -a hello \
                      --json"
    )]
    Top(top::Top),
    /// Start machines.
    Start(start::Start),
    /// Stop machines.
    #[command(
        after_help = "Example:\n  caddis machine stop 148ed193b95389 -a hello --wait-timeout 60s"
    )]
    Stop(stop::Stop),
    /// Suspend machines to disk; the next start resumes them.
    #[command(
        after_help = "Example:\n  caddis machine suspend 148ed193b95389 -a hello --wait-timeout 60s"
    )]
    Suspend(suspend::Suspend),
    /// Keep machines from being stopped or suspended when idle.
    #[command(
        after_help = "Examples:\n  caddis machine hold 148ed193b95389 -a hello --for 10m\n  caddis \
                      machine hold 148ed193b95389 -a hello --release"
    )]
    Hold(hold::Hold),
    /// Restart machines.
    #[command(
        after_help = "Example:\n  caddis machine restart 148ed193b95389 -a hello --signal SIGTERM \
                      --time 30"
    )]
    Restart(restart::Restart),
    /// Send SIGKILL to a machine's program.
    #[command(after_help = "Example:\n  caddis machine kill 148ed193b95389 -a hello")]
    Kill(kill::Kill),
    /// Wait until a machine reaches a state.
    #[command(
        after_help = "Examples:\n  caddis machine wait 148ed193b95389 -a hello\n  caddis machine \
                      wait 148ed193b95389 -a hello --state stopped --wait-timeout 1h"
    )]
    Wait(wait::Wait),
    /// Run a program in a machine.
    #[command(
        after_help = "Examples:\n  caddis machine exec 148ed193b95389 'ls -la /' -a hello\n  \
                      caddis machine exec 148ed193b95389 -a hello -- ls -la /\n  caddis machine \
                      exec 148ed193b95389 sh --tty -a hello"
    )]
    Exec(exec::Exec),
    /// Destroy machines.
    #[command(
        visible_aliases = ["remove", "rm"],
        after_help = "Examples:\n  caddis machine destroy 148ed193b95389 -a hello\n  caddis \
                      machine destroy -a hello --image library/nginx:1.26 --force"
    )]
    Destroy(destroy::Destroy),
}

pub async fn run(machine: Machine, session: &Session) -> Result<(), CliError> {
    match machine.command {
        MachineCommand::Run(create) => create::run(*create, true, session).await,
        MachineCommand::Create(create) => create::run(*create, false, session).await,
        MachineCommand::Clone(clone) => clone::run(*clone, session).await,
        MachineCommand::Update(update) => update::run(*update, session).await,
        MachineCommand::Cordon(cordon) => cordon::set(cordon, true, session).await,
        MachineCommand::Uncordon(cordon) => cordon::set(cordon, false, session).await,
        MachineCommand::Place(place) => place::run(*place, session).await,
        MachineCommand::Leases(leases) => leases::run(leases, session).await,
        MachineCommand::EgressIp(egress) => egress_ip::run(egress, session).await,
        MachineCommand::List(list) => list::run(list, session).await,
        MachineCommand::Status(status) => status::run(status, session).await,
        MachineCommand::Top(top) => top::run(top, session).await,
        MachineCommand::Start(start) => start::run(start, session).await,
        MachineCommand::Stop(stop) => stop::run(stop, session).await,
        MachineCommand::Suspend(suspend) => suspend::run(suspend, session).await,
        MachineCommand::Hold(hold) => hold::run(hold, session).await,
        MachineCommand::Restart(restart) => restart::run(restart, session).await,
        MachineCommand::Kill(kill) => kill::run(kill, session).await,
        MachineCommand::Wait(wait) => wait::run(wait, session).await,
        MachineCommand::Exec(exec) => exec::run(exec, session).await,
        MachineCommand::Destroy(destroy) => destroy::run(destroy, session).await,
    }
}
