//! The parts of row `get` that run in processes of their own: two servers and what asks them.

pub mod bare;
pub mod gateway;
pub mod generator;

use anyhow::Result;
use clap::Subcommand;
use nix::{
    sched::{CpuSet, sched_setaffinity},
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
    Bare,
    /// Asks a server until time is up.
    Generator {
        /// What to ask.
        #[command(flatten)]
        target: generator::Target,
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
    match role {
        // As `caddis serve` has it: a worker thread per processor.
        Role::Gateway { .. } | Role::Bare => {
            keep_to(0..(processors - 1).max(1))?;
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            match role {
                Role::Gateway { machines } => runtime.block_on(gateway::serve(*machines)),
                _ => runtime.block_on(bare::serve()),
            }
        }
        Role::Generator { target } => {
            keep_to(processors - 1..processors)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let measured = runtime.block_on(generator::generate(target))?;
            println!("{}", serde_json::to_string(&measured)?);
            Ok(())
        }
    }
}

/// Servers and what asks them have processors of their own: otherwise what it costs to ask would be
/// part of both sides of the ratio.
fn keep_to(processors: std::ops::Range<usize>) -> Result<()> {
    let mut set = CpuSet::new();
    for processor in processors {
        set.set(processor)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Tells on standard output where a server listens.
fn announce(listening: &Listening) -> Result<()> {
    println!("{}", serde_json::to_string(listening)?);
    Ok(())
}

/// Returns when standard input ends.
async fn input_ends() {
    // A read error is an end, too.
    let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await;
}
