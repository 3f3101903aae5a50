//! Images and a network that are always there.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    collections::{BTreeSet, HashSet},
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use caddis_api::{ApiError, ErrorCode};
use caddis_bus::message::ImageSummary;
use caddis_guest_protocol::spec::NetworkSpec;
use caddis_image::{ImageConfig, ImageReference, Progress, ResolvedImage, RootDisk};
use caddis_network::MachineAddresses;
use caddis_worker::host::{HostNetwork, Images};
use tokio::sync::watch;

/// One image that is always there, `missing` which isn't, and `broken` which can't be had in the end.
pub struct FakeImages;

#[async_trait]
impl Images for FakeImages {
    async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ApiError> {
        if reference == "missing" {
            return Err(ApiError::new(ErrorCode::ImageUnavailable, "image `missing` was not found"));
        }
        Ok(ResolvedImage {
            requested: reference.to_owned(),
            reference: ImageReference { digest: "sha256:0".to_owned(), ..ImageReference::default() },
            config: ImageConfig::default(),
            download_size: 1,
        })
    }

    async fn root_disk(&self, image: &ResolvedImage, _: &watch::Sender<Progress>) -> Result<RootDisk, ApiError> {
        if image.requested == "broken" {
            return Err(ApiError::new(ErrorCode::ImageUnavailable, "told to fail"));
        }
        Ok(RootDisk { path: "/nowhere".into(), size: 1 })
    }

    fn ready_root_disk(&self, _: &str) -> Option<RootDisk> {
        None
    }

    fn knows(&self, _: &str) -> bool {
        true
    }

    fn create_overlay(&self, path: &Path, _: u64) -> std::io::Result<()> {
        std::fs::write(path, "overlay")
    }

    async fn import(
        &self,
        _: &str,
        _: &Path,
        _: Option<&str>,
        _: &watch::Sender<Progress>,
    ) -> Result<ImageSummary, ApiError> {
        Err(ApiError::internal("not here"))
    }

    async fn list(&self) -> Result<Vec<ImageSummary>, ApiError> {
        Ok(Vec::new())
    }

    async fn remove(&self, _: &str, _: &HashSet<String>) -> Result<(), ApiError> {
        Ok(())
    }

    async fn collect_garbage(&self, _: &HashSet<String>, _: u64) -> Result<(), ApiError> {
        Ok(())
    }
}

/// Taps that are attached.
#[derive(Clone, Default)]
pub struct FakeNetwork(Arc<Mutex<BTreeSet<String>>>);

impl FakeNetwork {
    /// As by the end of the processes that held them.
    pub fn forget(&self) {
        self.0.lock().unwrap().clear();
    }

    pub fn taps(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().cloned().collect()
    }
}

#[async_trait]
impl HostNetwork for FakeNetwork {
    async fn attach(&self, tap: &str, _: &MachineAddresses) -> Result<Option<OwnedFd>, ApiError> {
        self.0.lock().unwrap().insert(tap.to_owned());
        Ok(None)
    }

    async fn adopt(&self, tap: &str, _: &MachineAddresses) -> Result<(), ApiError> {
        self.0.lock().unwrap().insert(tap.to_owned());
        Ok(())
    }

    async fn detach(&self, tap: &str, _: &MachineAddresses) -> Result<(), ApiError> {
        self.0.lock().unwrap().remove(tap);
        Ok(())
    }

    fn guest_spec(&self, _: &MachineAddresses) -> NetworkSpec {
        NetworkSpec::default()
    }
}
