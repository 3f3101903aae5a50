//! The real images and network behind the engine's traits: translates errors into what clients are told.

use std::{collections::HashSet, os::fd::OwnedFd, path::Path};

use async_trait::async_trait;
use caddis_api::{ApiError, ErrorCode};
use caddis_bus::message::ImageSummary;
use caddis_guest_protocol::spec::NetworkSpec;
use caddis_image::{ImageStore, Progress, ResolvedImage, RootDisk};
use caddis_network::{MachineAddresses, Network, NetworkError};
use tokio::sync::watch;

use crate::host::{HostNetwork, Images};
