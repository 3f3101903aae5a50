//! Builds one of the testkit's images and prints where its OCI layout is, for scripts.
#![forbid(unsafe_code)]

use anyhow::{Result, bail};
use caddis_testkit::images;

fn main() -> Result<()> {
    let layout = match std::env::args().nth(1).as_deref() {
        Some("busybox") => images::busybox()?,
        Some("web") => images::web()?,
        Some("debian") => images::debian()?,
        Some("kernel-user") => images::kernel_user()?,
        Some("systemd") => images::systemd()?,
        Some("postgres") => images::postgres()?,
        Some("services") => images::services()?,
        _ => bail!("usage: test-image busybox|web|debian|kernel-user|systemd|postgres|services"),
    };
    println!("{}", layout.display());
    Ok(())
}
