//! Measures what SPECIFICATION.md promises, on this host: prints one table and writes
//! `target/bench/report.json`, which has every sample. Each figure is a median with least and most;
//! what is compared is measured in turn, in the same run.
//!
//! ```text
//!  bench ─ Place (network namespace) ─ caddis serve ─ VMs          rows/… measure
//!        ├ Place ─ caddis serve without pool                      report, table
//!        └ Place (network and mounts) ─ podman ─ containers
//! ```
#![forbid(unsafe_code)]

mod bench;
mod big_image;
mod cpu;
mod earlier;
mod engine;
mod http;
mod load;
mod machine;
mod place;
mod progress;
mod registry;
mod report;
mod rival;
mod rows;
mod server;
mod server_log;
mod statistics;
mod table;

use std::{process::ExitCode, time::Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum as _};
use tokio::signal::unix::{SignalKind, signal};

use bench::Bench;
use earlier::Earlier;
use rows::Row;

#[derive(Debug, Parser)]
#[command(
    about = "Measures what SPECIFICATION.md promises, on this host",
    args_conflicts_with_subcommands = true
)]
struct Arguments {
    /// Few repetitions, for a look that everything can be measured.
    #[arg(long)]
    quick: bool,
    /// Keeps the figures of this run, for later ones to be compared with.
    #[arg(long)]
    keep: bool,
    /// Only this row; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<Row>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What this program is told to be, by itself.
#[derive(Debug, Subcommand)]
enum Role {
    #[command(flatten)]
    Load(load::Role),
    #[command(flatten)]
    Engine(engine::Role),
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(role) = &arguments.role {
        return match role {
            Role::Load(role) => load::run(role),
            Role::Engine(role) => engine::run(role),
        }
        .map(|()| ExitCode::SUCCESS);
    }
    ensure!(nix::unistd::geteuid().is_root(), "VMs need root: sudo make bench");
    // One thread: everything is measured in turn, and the processors are for what is measured.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        // Whatever ends first drops the other, and with it servers, VMs, containers and files.
        tokio::select! {
            outcome = run(&arguments) => outcome,
            _ = interrupt.recv() => Ok(interrupted()),
            _ = terminate.recv() => Ok(interrupted()),
        }
    })
}

/// What a shell shows of a program that Ctrl-C ended.
fn interrupted() -> ExitCode {
    progress::progress("interrupted, cleaning up\n");
    ExitCode::from(130)
}

async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut bench = Bench::new(arguments.quick)?;
    let all: Vec<_> = Row::value_variants()
        .iter()
        .filter(|row| arguments.only.is_empty() || arguments.only.contains(row))
        .collect();
    for row in all {
        let began = Instant::now();
        let mut outcome = row.measure(&mut bench).await;
        if outcome.is_err() {
            bench.show_logs();
        }
        if outcome.is_ok() {
            outcome = bench.clear().await.context("removing what the row left");
        } else if let Err(error) = bench.clear().await {
            eprintln!("removing what the row left: {error:#}");
        }
        if let Err(error) = outcome {
            bench.report.failed(&row.name(), &format!("row {}", row.name()), &format!("{error:#}"));
        }
        let seconds = began.elapsed().as_secs_f64();
        progress::progress(&format!("row {} took {seconds:.0} s\n", row.name()));
        bench.report.took(&row.name(), seconds);
    }
    progress::clear();
    let (file, last) = (Bench::kept().join("report.json"), Bench::kept().join("last.json"));
    bench.report.write(bench.about(), &file)?;
    let earlier = Earlier::read(&last, &bench.about()["host"]["model"]);
    println!("{}\n\n{}", about(&bench), table::table(&bench.report, &earlier));
    if arguments.keep {
        std::fs::copy(&file, &last).with_context(|| format!("writing {}", last.display()))?;
    }
    let failed = bench.report.failures().count();
    eprintln!("every sample: {}", file.display());
    if failed > 0 {
        eprintln!("{failed} lines could not be measured");
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the figures depend on most, first: the processor, and how quick it is for podman. Then host
/// and rivals.
fn about(bench: &Bench) -> String {
    let about = bench.about();
    let list = |part: &serde_json::Value| {
        let fields = part.as_object().into_iter().flatten();
        let fields = fields.map(|(key, value)| match value.as_str() {
            Some(text) => format!("{key}: {text}"),
            None => format!("{key}: {value}"),
        });
        fields.collect::<Vec<_>>().join("; ")
    };
    let (processors, model) =
        (&about["host"]["processors"], about["host"]["model"].as_str().unwrap_or("unknown"));
    let mut text = format!("Processors: {processors} × {model}");
    for (key, name) in [("podman-start", "podman start"), ("podman-run", "podman run")] {
        let line = bench.report.lines().iter().find(|line| line.key == key);
        if let Some(summary) = line.and_then(report::Line::summary) {
            text += &format!("; `{name}`: {:.0} ms", summary.median);
        }
    }
    text += &format!(
        "  \nOn: {}; VMs: {}",
        list(&about["host"]),
        about["accelerator"].as_str().unwrap_or_default()
    );
    if about["rival"].is_object() {
        text += &format!("  \nBeside it: {}", list(&about["rival"]));
    }
    text
}
