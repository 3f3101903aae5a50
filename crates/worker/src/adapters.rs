//! The real images and network behind the engine's traits: translates errors into what clients are
//! told.

use std::{collections::HashSet, net::Ipv6Addr, os::fd::OwnedFd, path::Path};

use async_trait::async_trait;
use caddis_api::{ApiError, ErrorCode};
use caddis_bus::message::ImageSummary;
use caddis_guest_protocol::spec::NetworkSpec;
use caddis_image::{Digest, ImageError, ImageStore, OwnFile, Progress, ResolvedImage, RootDisk};
use caddis_network::{
    Assignments, Disturbances, DnsQueries, MachineAddresses, MachinePolicy, Network, NetworkError,
    Refused, Tracked,
};
use caddis_vmm::Patch;
use tokio::sync::watch;

use crate::host::{HostNetwork, Images};

/// What clients are told. They may try again where [`ImageError::is_retryable`] says so.
pub fn image_error(error: ImageError) -> ApiError {
    let code = match &error {
        ImageError::InvalidReference { .. } => ErrorCode::InvalidArgument,
        ImageError::InUse { .. } => ErrorCode::FailedPrecondition,
        ImageError::NoSpace { .. } => ErrorCode::InsufficientCapacity,
        error if error.is_client_fault() => ErrorCode::ImageUnavailable,
        error if error.is_retryable() => ErrorCode::Unavailable,
        _ => ErrorCode::Internal,
    };
    ApiError::new(code, error.to_string())
}

#[async_trait]
impl Images for ImageStore {
    async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ApiError> {
        Self::resolve(self, reference).await.map_err(image_error)
    }

    async fn root_disk(
        &self,
        image: &ResolvedImage,
        progress: &watch::Sender<Progress>,
    ) -> Result<RootDisk, ApiError> {
        Self::root_disk(self, image, progress).await.map_err(image_error)
    }

    fn ready_root_disk(&self, digest: &Digest) -> Option<RootDisk> {
        Self::ready_root_disk(self, digest)
    }

    fn knows(&self, reference: &str) -> bool {
        Self::knows(self, reference)
    }

    fn patches(&self, disk: &Path, files: &[OwnFile]) -> std::io::Result<Vec<Patch>> {
        let patches = caddis_image::patches(disk, files)?.into_iter();
        Ok(patches.map(|patch| Patch { offset: patch.offset, bytes: patch.bytes }).collect())
    }

    fn unwritten(
        &self,
        disk: &Path,
        files: Vec<OwnFile>,
        used: bool,
    ) -> std::io::Result<Vec<OwnFile>> {
        caddis_image::unwritten(disk, files, used)
    }

    async fn import(
        &self,
        source: &str,
        name: Option<&str>,
        progress: &watch::Sender<Progress>,
    ) -> Result<ImageSummary, ApiError> {
        Self::import(self, source, name, progress).await.map(summary).map_err(image_error)
    }

    async fn list(&self) -> Result<Vec<ImageSummary>, ApiError> {
        let images = Self::list(self).await.map_err(image_error)?;
        Ok(images.into_iter().map(summary).collect())
    }

    async fn remove(&self, name: &str, in_use: &HashSet<Digest>) -> Result<(), ApiError> {
        Self::remove(self, name, in_use).await.map_err(|error| match error {
            ImageError::NotFound { .. } => ApiError::new(ErrorCode::NotFound, error.to_string()),
            error => image_error(error),
        })
    }

    async fn collect_garbage(
        &self,
        in_use: &HashSet<Digest>,
        wanted_free: u64,
    ) -> Result<(), ApiError> {
        let report = Self::collect_garbage(self, in_use, wanted_free).await.map_err(image_error)?;
        if !report.removed.is_empty() {
            tracing::info!(
                images = report.removed.len(),
                bytes = report.freed_bytes,
                "removed unused images"
            );
        }
        Ok(())
    }
}

fn summary(image: caddis_image::ImageSummary) -> ImageSummary {
    ImageSummary {
        digest: image.digest.to_string(),
        names: image.names,
        size: image.size,
        created_at: image.created_at.to_string(),
        machines: 0,
    }
}

#[async_trait]
impl HostNetwork for Network {
    async fn attach(
        &self,
        tap: &str,
        addresses: &MachineAddresses,
    ) -> Result<Option<OwnedFd>, ApiError> {
        Self::attach(self, tap, addresses).await.map(Some).map_err(network_error)
    }

    async fn adopt(&self, tap: &str, addresses: &MachineAddresses) -> Result<(), ApiError> {
        Self::adopt(self, tap, addresses).await.map_err(network_error)
    }

    async fn detach(&self, tap: &str, addresses: &MachineAddresses) -> Result<(), ApiError> {
        Self::detach(self, tap, addresses).await.map_err(network_error)
    }

    async fn set_policies(&self, policies: Vec<MachinePolicy>) -> Result<(), ApiError> {
        Self::set_policies(self, policies).await.map_err(network_error)
    }

    fn disturbances(&self) -> Option<watch::Receiver<Disturbances>> {
        Some(Self::disturbances(self))
    }

    async fn set_egress(&self, wanted: Assignments) -> Result<(), ApiError> {
        Self::set_egress(self, wanted).await.map_err(network_error)
    }

    async fn clear_egress(&self, machine: &MachineAddresses) -> Result<(), ApiError> {
        Self::clear_egress(self, machine).await.map_err(network_error)
    }

    fn refused(&self) -> Option<watch::Receiver<Refused>> {
        Self::refused(self)
    }

    fn dns_queries(&self, machine: Ipv6Addr) -> DnsQueries {
        Self::dns_queries(self, machine)
    }

    async fn tracked(&self) -> Result<Tracked, ApiError> {
        Self::tracked(self).await.map_err(network_error)
    }

    fn guest_spec(&self, addresses: &MachineAddresses) -> NetworkSpec {
        caddis_network::guest_spec(addresses)
    }
}

fn network_error(error: NetworkError) -> ApiError {
    ApiError::internal(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_may_try_again_where_the_error_says_so() {
        let text = || "x".to_owned();
        for error in [
            ImageError::InvalidReference { reference: text(), reason: text() },
            ImageError::NotFound { what: text(), hint: text() },
            ImageError::Unauthorized { registry: text(), repository: text(), reason: text() },
            ImageError::Refused { target: text(), reason: text() },
            ImageError::TooLarge { what: text(), limit: text() },
            ImageError::Corrupt { what: text(), reason: text() },
            ImageError::Unsupported { what: text(), reason: text() },
            ImageError::RateLimited { registry: text(), what: text(), reason: text() },
            ImageError::NoSpace { what: text(), reason: text() },
            ImageError::Program { program: text(), what: text(), reason: text() },
            ImageError::Interrupted { what: text() },
            ImageError::Unreachable { registry: text(), what: text(), reason: text() },
        ] {
            let (is_retryable, told) = (error.is_retryable(), error.to_string());
            let answer = image_error(error);
            assert_eq!(answer.code.is_retryable(), is_retryable, "{told}");
            assert!(is_retryable || !told.contains("try again"), "{told}");
        }
    }
}
