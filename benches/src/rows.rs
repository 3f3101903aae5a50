//! The rows of the benchmark, one file each. A row measures all its sides in turn, in the same
//! rounds, and adds its lines to the report; what it made is removed after it.

mod create;
mod crowd;
mod dns;
mod engine;
mod exec;
mod exit;
mod get;
mod idle;
mod image;
mod kernel;
mod memory;
mod proxy;
mod recovery;
mod routes;
mod snapshot;
mod start;
mod stop;
mod suspend;
mod volume;
mod wake;
mod wireguard;

use anyhow::Result;
use clap::ValueEnum;

use crate::bench::Bench;

/// A row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Row {
    /// Start of a stopped machine, beside podman and cold boots.
    Start,
    /// Create from an image on the host, beside podman.
    Create,
    /// Suspend and resume.
    Suspend,
    /// A request to a machine that is suspended or stopped, beside its plain resume and start.
    Wake,
    /// A program's end until a waiting client sees it.
    Exit,
    /// Stop of a running machine.
    Stop,
    /// A program beside the machine's own.
    Exec,
    /// 50 machines at once, beside podman.
    Crowd,
    /// Memory of idle machines.
    Memory,
    /// An image from a registry, beside podman.
    Image,
    /// Reads of a machine, beside the least that answers the same.
    Get,
    /// The proxy, beside nginx.
    Proxy,
    /// The proxy with many apps, beside itself with few.
    Routes,
    /// Memory of idle client connections of the proxy, beside nginx.
    Idle,
    /// Operations through the engine, beside bare transactions.
    Engine,
    /// A worker that is started again.
    Recovery,
    /// I/O of volumes, beside plain QEMU.
    Volume,
    /// Snapshots, forks and restores of a volume, with reflinks and without.
    Snapshot,
    /// Answers of the machines' name server, beside a plain echo.
    Dns,
    /// TCP through the server's WireGuard, beside wireguard-go.
    #[value(name = "wireguard")]
    WireGuard,
    /// QEMU and the kernel alone.
    Kernel,
}

impl Row {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Measures it.
    ///
    /// # Errors
    /// When it can't be measured.
    pub async fn measure(self, bench: &mut Bench) -> Result<()> {
        match self {
            Self::Start => start::measure(bench).await,
            Self::Create => create::measure(bench).await,
            Self::Suspend => suspend::measure(bench).await,
            Self::Wake => wake::measure(bench).await,
            Self::Exit => exit::measure(bench).await,
            Self::Stop => stop::measure(bench).await,
            Self::Exec => exec::measure(bench).await,
            Self::Crowd => crowd::measure(bench).await,
            Self::Memory => memory::measure(bench).await,
            Self::Image => image::measure(bench).await,
            Self::Get => get::measure(bench).await,
            Self::Proxy => proxy::measure(bench).await,
            Self::Routes => routes::measure(bench).await,
            Self::Idle => idle::measure(bench).await,
            Self::Engine => engine::measure(bench).await,
            Self::Recovery => recovery::measure(bench).await,
            Self::Volume => volume::measure(bench).await,
            Self::Snapshot => snapshot::measure(bench).await,
            Self::Dns => dns::measure(bench).await,
            Self::WireGuard => wireguard::measure(bench).await,
            Self::Kernel => kernel::measure(bench).await,
        }
    }
}
