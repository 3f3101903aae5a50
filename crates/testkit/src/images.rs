//! Images made on the spot from Debian's packages, as OCI layouts; [`convert`] makes archives of
//! them.
//!
//! Each is built once and kept in `target/test-images`, under a hash of its recipe.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use anyhow::{Context as _, Result, anyhow};
use sha2::{Digest as _, Sha256};

use crate::{command::run_command, target_directory};

mod busybox;
mod debian;
mod layout;
mod package;

pub use busybox::{Entry, bare, busybox, busybox_among, busybox_with, web};
pub use debian::{debian, kernel_user, postgres, services, systemd};
pub use layout::{Config, Layer, write_layout};
pub use package::openresolv;

/// Makes an archive or another layout out of a layout, e.g.
/// `docker-archive:/tmp/image.tar:name:tag`.
///
/// # Errors
/// When skopeo fails.
pub fn convert(layout: &Path, destination: &str) -> Result<()> {
    let source = format!("oci:{}", layout.display());
    run_command(Command::new("skopeo").args([
        "--insecure-policy",
        "copy",
        "--quiet",
        &source,
        destination,
    ]))?;
    Ok(())
}

/// Returns the image of a recipe, built by `build` in an empty directory when it isn't there yet.
fn cached(name: &str, recipe: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    // Within this process an image is built once; two processes may both build it, and the first to
    // finish wins.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().map_err(|_| anyhow!("building an image panicked"))?;

    let images = target_directory().join("test-images");
    let hash: String =
        Sha256::digest(recipe).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let goal = images.join(format!("{name}-{hash}"));
    if goal.exists() {
        return Ok(goal);
    }
    std::fs::create_dir_all(&images).with_context(|| format!("making {}", images.display()))?;
    let work = tempfile::Builder::new().prefix(".building-").tempdir_in(&images)?;
    let layout = work.path().join("layout");
    std::fs::create_dir(&layout)?;
    build(&layout).with_context(|| format!("building the image {name}"))?;
    match std::fs::rename(&layout, &goal) {
        Err(_) if goal.exists() => Ok(goal),
        outcome => outcome.with_context(|| format!("keeping {}", goal.display())).map(|()| goal),
    }
}
