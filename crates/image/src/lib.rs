//! Images to root disks: registry client, archives, blob store.
//!
//! Everything that comes in is hostile until its digest has been checked, and even then is only
//! ever written below the store. Nothing from an image is run or mounted on the host.
//!
//! ```text
//!  reference ─resolve─▶ manifest + config ─┐
//!                                          ├─▶ layers ─▶ unpacked tree ─ext4─▶ disks/<digest>.ext4
//!  archive ───import──▶ manifest + config ─┘ (verified)  (tmp/, 0700)         (renamed into place)
//! ```
#![forbid(unsafe_code)]

mod archive;
mod blobs;
mod build;
mod config;
mod digest;
mod disk;
mod error;
mod flight;
#[cfg(test)]
mod fuzz;
mod garbage;
mod inner;
mod json;
mod layer;
mod manifest;
mod meter;
mod own_files;
mod platform;
mod pull;
mod records;
mod reference;
mod registry;
mod search;
mod session;
mod store;
mod types;

pub use config::{ImageStoreConfig, Limits, Transfer};
pub use digest::{Digest, InvalidDigest};
pub use error::ImageError;
pub use own_files::{OwnFile, patches, unwritten};
pub use reference::{ParsedReference, parse_reference};
pub use store::ImageStore;
pub use types::{
    GarbageReport, ImageConfig, ImageReference, ImageSummary, Progress, ProgressSender,
    ResolvedImage, RootDisk,
};
