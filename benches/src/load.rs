//! The parts of rows `get`, `proxy`, `routes` and `idle` that run in processes of their own:
//! servers, proxies and what asks them.

pub mod bare;
pub mod gateway;
pub mod generator;
pub mod idle;
pub mod nginx;
pub mod process;
pub mod proxy;
mod tls;

use std::{ops::Range, path::PathBuf};

use anyhow::Result;
use clap::Subcommand;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

/// A server, or what asks it.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// The real gateway over a worker that only lists machines.
    Gateway {
        /// How many.
        #[arg(long)]
        machines: usize,
    },
    /// A bare axum handler; the body of its answer is the first line of standard input.
    Bare {
        /// Runs on the processor of the generator: the server behind a proxy is not measured.
        #[arg(long)]
        behind: bool,
    },
    /// The real proxy, with apps that all are one server.
    Proxy {
        /// How many.
        #[arg(long)]
        apps: usize,
        /// The server's port on 127.0.0.1.
        #[arg(long)]
        upstream: u16,
    },
    /// nginx.
    Nginx {
        /// Its configuration.
        #[arg(long)]
        configuration: PathBuf,
    },
    /// Asks a server until time is up.
    Generator {
        /// What to ask.
        #[command(flatten)]
        target: generator::Target,
    },
    /// Holds connections on which one request was answered.
    Idle {
        /// The server's port on 127.0.0.1.
        #[arg(long)]
        port: u16,
        /// How many.
        #[arg(long)]
        connections: usize,
    },
}

/// Where a server listens and what is to be asked of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// The path of a machine.
    pub path: String,
    /// The token to be shown.
    pub token: String,
}

/// Does what it is told. Servers end with their standard input, so with whoever started them.
///
/// # Errors
/// When it can't.
pub fn run(role: &Role) -> Result<()> {
    let processors = std::thread::available_parallelism()?.get();
    let generator = processors - 1..processors;
    match role {
        Role::Gateway { .. } | Role::Bare { behind: false } | Role::Proxy { .. } => {
            keep_to(servers()?)?;
        }
        Role::Nginx { configuration } => {
            keep_to(servers()?)?;
            raise_limit_of_files()?;
            return nginx::become_nginx(configuration);
        }
        Role::Bare { behind: true } | Role::Generator { .. } | Role::Idle { .. } => {
            keep_to(generator)?;
        }
    }
    let (mut many, mut one) = (
        tokio::runtime::Builder::new_multi_thread(),
        tokio::runtime::Builder::new_current_thread(),
    );
    match role {
        // As `caddis serve` has it: a worker thread per processor.
        Role::Gateway { machines } => {
            many.enable_all().build()?.block_on(gateway::serve(*machines))
        }
        Role::Bare { .. } => many.enable_all().build()?.block_on(bare::serve()),
        Role::Proxy { apps, upstream } => {
            raise_limit_of_files()?;
            many.enable_all().build()?.block_on(proxy::serve(*apps, *upstream))
        }
        Role::Generator { target } => {
            let runtime = one.enable_all().build()?;
            announce(&runtime.block_on(generator::generate(target))?)
        }
        Role::Idle { port, connections } => {
            raise_limit_of_files()?;
            one.enable_all().build()?.block_on(idle::hold(*port, *connections))
        }
        // It is nginx by now.
        Role::Nginx { .. } => Ok(()),
    }
}

/// The processors that servers under measurement have.
///
/// # Errors
/// When it can't be known how many there are.
pub fn servers() -> Result<Range<usize>> {
    Ok(0..(std::thread::available_parallelism()?.get() - 1).max(1))
}

/// Servers and what asks them have processors of their own: otherwise what it costs to ask would be
/// part of both sides of the ratio.
fn keep_to(processors: Range<usize>) -> Result<()> {
    let mut set = CpuSet::new();
    for processor in processors {
        set.set(processor)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// As far as it goes without the right to raise it further, which root lacks on some hosts.
fn raise_limit_of_files() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

/// Tells something on standard output: where a server listens, what was measured.
fn announce(what: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(what)?);
    Ok(())
}

/// Returns when standard input ends.
async fn input_ends() {
    // A read error is an end, too.
    let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await;
}
