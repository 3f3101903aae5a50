//! Builds `caddis-guest-init` with a nested cargo: the guest's program needs other flags than the
//! host's (static, small, no unwinding), and cargo has no stable way to embed one target's binary
//! into another.

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() -> Result<(), Box<dyn Error>> {
    let here = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let root = here
        .parent()
        .and_then(Path::parent)
        .ok_or("this crate is not in crates/ of the workspace")?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    for input in ["crates/guest-init", "crates/guest-protocol", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo:rerun-if-env-changed=CARGO_NET_OFFLINE");

    // A target directory of its own: the outer cargo holds the lock of the usual one until this
    // script ends.
    let target = out.join("target");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).args([
        "build",
        "--package",
        "caddis-guest-init",
        "--profile",
        "init",
        "--target",
        TARGET,
    ]);
    if std::env::var("CARGO_NET_OFFLINE").is_ok_and(|value| value == "true" || value == "1") {
        cargo.arg("--offline");
    }
    // The outer build's flags, wrappers (clippy's among them) and profile are not for this one.
    for (name, _) in std::env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let kept = ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_HTTP_CAINFO", "CARGO_MAKEFLAGS"]
            .contains(&text)
            || text.starts_with("CARGO_REGISTRIES_")
            || text.starts_with("CARGO_SOURCE_");
        let outer = ["CARGO", "CLIPPY_", "RUSTC_", "RUSTDOC", "DEP_"]
            .iter()
            .any(|prefix| text.starts_with(prefix))
            || [
                "RUSTC",
                "RUSTFLAGS",
                "TARGET",
                "HOST",
                "PROFILE",
                "OPT_LEVEL",
                "DEBUG",
                "NUM_JOBS",
            ]
            .contains(&text);
        if outer && !kept {
            cargo.env_remove(&name);
        }
    }
    cargo
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");

    let status = cargo.status()?;
    if !status.success() {
        return Err(
            format!("building caddis-guest-init failed ({status}); its output is above").into()
        );
    }
    std::fs::copy(target.join(TARGET).join("init/caddis-guest-init"), out.join("init"))?;
    Ok(())
}
