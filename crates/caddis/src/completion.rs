//! `caddis completion`: has a shell offer commands, flags, and the names of live apps and machines.

use clap::{Args, ValueEnum};
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};

use crate::print;

/// `caddis completion`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  source <(caddis completion bash)\n  caddis completion bash > \
                  /etc/bash_completion.d/caddis\n  echo 'source <(caddis completion zsh)' >> \
                  ~/.zshrc\n  caddis completion fish > ~/.config/fish/completions/caddis.fish"
)]
pub struct CompletionArguments {
    /// Shell to complete for.
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Prints the script that a shell reads.
pub fn print(arguments: &CompletionArguments) -> anyhow::Result<()> {
    let shell: &dyn EnvCompleter = match arguments.shell {
        Shell::Bash => &Bash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    let mut script = Vec::new();
    shell.write_registration(
        caddis_cli::complete::VARIABLE,
        "caddis",
        "caddis",
        "caddis",
        &mut script,
    )?;
    Ok(print::bytes(&script)?)
}
