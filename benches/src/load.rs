//! The parts of row `get` that run in processes of their own: two servers and what asks them.

pub mod bare;
pub mod gateway;
pub mod generator;

use anyhow::Result;
use clap::Subcommand;
use serde::{Deserialize, Serialize};

/// What this program is told to be, by itself.
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
    // As `caddis serve` has it: a worker thread per processor.
    let servers = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match role {
        Role::Gateway { machines } => servers.block_on(gateway::serve(*machines)),
        Role::Bare => servers.block_on(bare::serve()),
        Role::Generator { target } => {
            // One thread: it must leave the other processors to the server.
            let one = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let measured = one.block_on(generator::generate(target))?;
            println!("{}", serde_json::to_string(&measured)?);
            Ok(())
        }
    }
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
