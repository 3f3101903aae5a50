//! What the engine needs of images, network and what VMs export, as traits, so that it can be
//! tested without any.

use std::{collections::HashSet, net::Ipv6Addr, os::fd::OwnedFd, path::Path};

use async_trait::async_trait;
use caddis_api::{ApiError, VolumeId};
use caddis_bus::message::ImageSummary;
use caddis_guest_protocol::spec::NetworkSpec;
use caddis_image::{Digest, OwnFile, Progress, ResolvedImage, RootDisk};
use caddis_network::{
    Assignments, Disturbances, DnsQueries, MachineAddresses, MachinePolicy, Refused, Tracked,
};
use caddis_snapshot::{SnapshotError, Source, nbd};
use caddis_vmm::Patch;
use tokio::sync::watch;

/// Gets root disks. Errors are meant for the client.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// Finds out which image a reference means, without fetching it.
    async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ApiError>;

    /// The image's root disk, fetched and built when it is not there. `in_use` are the digests that
    /// must not be removed to make room.
    async fn root_disk(
        &self,
        image: &ResolvedImage,
        progress: &watch::Sender<Progress>,
    ) -> Result<RootDisk, ApiError>;

    /// The root disk if it is there already.
    fn ready_root_disk(&self, digest: &Digest) -> Option<RootDisk>;

    /// Whether a reference is known and its root disk is there.
    fn knows(&self, reference: &str) -> bool;

    /// What has to be written over a root disk for these files to be in the root, as far as it
    /// keeps room for them.
    fn patches(&self, disk: &Path, files: &[OwnFile]) -> std::io::Result<Vec<Patch>>;

    /// Those of the files that the guest has to write: that it keeps no room for, or all when the
    /// root was `used` since.
    fn unwritten(
        &self,
        disk: &Path,
        files: Vec<OwnFile>,
        used: bool,
    ) -> std::io::Result<Vec<OwnFile>>;

    /// Takes in an image of an archive, `FORMAT:FILE[:IMAGE]`.
    async fn import(
        &self,
        source: &str,
        name: Option<&str>,
        progress: &watch::Sender<Progress>,
    ) -> Result<ImageSummary, ApiError>;

    /// All there are; `machines` is left 0.
    async fn list(&self) -> Result<Vec<ImageSummary>, ApiError>;

    /// Removes one by name or digest, unless its digest is in use.
    async fn remove(&self, name: &str, in_use: &HashSet<Digest>) -> Result<(), ApiError>;

    /// Removes what is not in use, least recently used first, until so many bytes are free.
    async fn collect_garbage(
        &self,
        in_use: &HashSet<Digest>,
        wanted_free: u64,
    ) -> Result<(), ApiError>;
}

/// Connects VMs.
#[async_trait]
pub trait HostNetwork: Send + Sync + 'static {
    /// Makes the tap with its routes and filter elements; `None` from a fake.
    async fn attach(
        &self,
        tap: &str,
        addresses: &MachineAddresses,
    ) -> Result<Option<OwnedFd>, ApiError>;

    /// Makes sure that routes and elements of a running VM are in place.
    async fn adopt(&self, tap: &str, addresses: &MachineAddresses) -> Result<(), ApiError>;

    /// Removes routes and elements; nothing to do is no error.
    async fn detach(&self, tap: &str, addresses: &MachineAddresses) -> Result<(), ApiError>;

    /// Puts network policies in force, in place of all that there were.
    async fn set_policies(&self, policies: Vec<MachinePolicy>) -> Result<(), ApiError>;

    /// What other programs of the host do to it; `None` from a fake.
    fn disturbances(&self) -> Option<watch::Receiver<Disturbances>> {
        None
    }

    /// Gives machines these egress addresses, and takes all others away.
    async fn set_egress(&self, wanted: Assignments) -> Result<(), ApiError>;

    /// Takes the egress addresses of one machine away.
    async fn clear_egress(&self, machine: &MachineAddresses) -> Result<(), ApiError>;

    /// Connections that found no free port, by the address of their machine; `None` where the
    /// kernel does not tell.
    fn refused(&self) -> Option<watch::Receiver<Refused>>;

    /// How often a machine has asked the name server, since its tap was connected or the server
    /// has begun.
    fn dns_queries(&self, machine: Ipv6Addr) -> DnsQueries;

    /// How full the tables of connections are.
    async fn tracked(&self) -> Result<Tracked, ApiError>;

    /// The guest's end.
    fn guest_spec(&self, addresses: &MachineAddresses) -> NetworkSpec;
}

/// Reads what volumes hold, where QEMU exports it.
#[async_trait]
pub trait Exports: Send + Sync + 'static {
    /// Connects to the export of a volume. `changed` is the dirty bitmap that says what has changed
    /// since the previous snapshot, if that is known.
    async fn connect(
        &self,
        volume: &VolumeId,
        socket: &Path,
        export: &str,
        changed: Option<&str>,
    ) -> Result<Box<dyn Source>, SnapshotError>;
}

/// Exports by NBD.
#[derive(Debug, Clone, Copy, Default)]
pub struct NbdExports;

#[async_trait]
impl Exports for NbdExports {
    async fn connect(
        &self,
        _: &VolumeId,
        socket: &Path,
        export: &str,
        changed: Option<&str>,
    ) -> Result<Box<dyn Source>, SnapshotError> {
        Ok(Box::new(nbd::Client::connect(socket, export, changed).await?))
    }
}
