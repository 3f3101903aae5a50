//! The binary: arguments, configuration, and the parts of a server wired together. No logic of its
//! own.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod accelerator;
mod allocator;
mod backup;
mod completion;
mod descriptors;
mod doctor;
mod failure;
mod host;
mod installation_key;
mod instance;
mod kernels;
mod manual;
mod print;
mod serve;
mod settings;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

/// Version of the package, with the commit it was built from and the day of that commit where they
/// are known.
const VERSION: &str = env!("CADDIS_VERSION");

/// Launches VMs from OCI images, on hosts you own.
#[derive(Debug, Parser)]
#[command(
    after_help = "Examples:\n  caddis serve\n  caddis apps create hello\n  caddis machine run \
                  nginx -a hello"
)]
#[command(
    name = "caddis",
    version = VERSION,
    styles = caddis_cli::HELP_STYLES,
    disable_help_subcommand = true
)]
struct Caddis {
    #[command(flatten)]
    globals: caddis_cli::Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server: API, machines, images and network of this host.
    Serve(Box<settings::ServeArguments>),
    /// Check whether this host can run VMs, and how to fix what is missing.
    Doctor(Box<doctor::DoctorArguments>),
    /// Back up the databases of a data directory, also while the server is running.
    Backup(backup::BackupArguments),
    /// Restore databases saved by `caddis backup`. The server must not be running.
    Restore(backup::RestoreArguments),
    /// Prepare this host for a shutdown, or remove what the server set up on it.
    Host(host::HostArguments),
    #[command(flatten)]
    Client(caddis_cli::Command),
    /// Print a script that completes commands and names of apps and machines in a shell.
    Completion(completion::CompletionArguments),
    /// Write the manual, a page per command.
    Man(manual::ManArguments),
    /// Print the version of this program.
    #[command(after_help = "Example:\n  caddis version")]
    Version,
    /// Print the help of a command.
    #[command(after_help = "Example:\n  caddis help machine run")]
    Help {
        /// The command, e.g. machine run.
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    // Already installed is as good: there is one provider in this program.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    clap_complete::CompleteEnv::with_factory(Caddis::command)
        .var(caddis_cli::complete::VARIABLE)
        .bin("caddis")
        .completer("caddis")
        .complete();
    let arguments = match caddis_cli::parse::<Caddis>(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => return caddis_cli::report_usage(&error),
    };
    if let Command::Help { command } = &arguments.command {
        let words =
            ["caddis"].into_iter().chain(command.iter().map(String::as_str)).chain(["--help"]);
        // What is asked for this way comes as an error.
        return caddis_cli::parse::<Caddis>(words)
            .map_or_else(|error| caddis_cli::report_usage(&error), |_| ExitCode::FAILURE);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            print::error(format_args!("could not start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match arguments.command {
            Command::Serve(arguments) => serve::run(*arguments).await.map(|()| ExitCode::SUCCESS),
            Command::Doctor(arguments) => doctor::run(*arguments).await,
            Command::Backup(arguments) => {
                backup::backup(&arguments).await.map(|()| ExitCode::SUCCESS)
            }
            Command::Restore(arguments) => backup::restore(&arguments).map(|()| ExitCode::SUCCESS),
            Command::Host(arguments) => host::run(arguments).await,
            Command::Completion(arguments) => {
                completion::print(&arguments).map(|()| ExitCode::SUCCESS)
            }
            Command::Man(arguments) => {
                manual::write(&arguments, Caddis::command()).map(|()| ExitCode::SUCCESS)
            }
            Command::Version => {
                let printed = print::line(Caddis::command().render_version().trim_end());
                printed.map(|()| ExitCode::SUCCESS).map_err(Into::into)
            }
            Command::Help { .. } => unreachable!("printed above"),
            Command::Client(command) => Ok(caddis_cli::run(command, arguments.globals).await),
        }
    });
    // What still blocks a thread (a name look-up, a probe) must not hold up the end.
    runtime.shutdown_background();
    outcome.unwrap_or_else(|error| {
        print::error(failure::with_causes(&error));
        ExitCode::FAILURE
    })
}
