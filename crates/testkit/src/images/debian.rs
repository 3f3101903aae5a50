//! A real distribution's tree: Debian's minbase with nginx, built by mmdebstrap from the machine's own mirror.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{Config, Layer, cached, write_layout};
use crate::command::run_command;

const PACKAGES: &str = "nginx-light";

/// Debian with nginx, which listens on port 80 and is asked to end with SIGQUIT, as the well-known image is.
/// The first build takes one to two minutes.
///
/// # Errors
/// When mmdebstrap fails.
pub fn debian() -> Result<PathBuf> {
    let release = std::fs::read_to_string("/etc/os-release").context("which Debian this is")?;
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or("stable");
    let recipe = format!("{}{PACKAGES}{suite}", include_str!("debian.rs"));
    cached("debian", &recipe, |layout| {
        let tree = layout.with_extension("tar");
        // Build in the namespaces of the process, not in those of a test's host, which has no way to a mirror.
        let process = std::process::id();
        let mut build = Command::new("nsenter");
        build.arg(format!("--net=/proc/{process}/ns/net")).arg(format!("--mount=/proc/{process}/ns/mnt"));
        build.args(["--", "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=tar"]);
        build.args(["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"]);
        build.args(["--dpkgopt=path-exclude=/usr/share/locale/*", "--aptopt=Acquire::Languages \"none\""]);
        build.arg(format!("--include={PACKAGES}")).arg("--customize-hook=rm -rf \"$1\"/var/lib/apt/lists/*");
        build.arg(suite).arg(&tree).arg(mirror(suite)?);
        run_command(&mut build)?;
        let config = Config {
            cmd: ["nginx", "-g", "daemon off;"].map(Into::into).to_vec(),
            env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
            stop_signal: "SIGQUIT".into(),
            exposed_ports: json!({ "80/tcp": {} }),
            ..Config::default()
        };
        write_layout(layout, &[Layer::File(tree)], &config)
    })
}

/// Where this machine gets its own packages from.
fn mirror(suite: &str) -> Result<String> {
    let sources = ["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"];
    let sources = run_command(Command::new("apt-get").args(sources))?;
    let wanted = format!(" {suite} main");
    let found = sources.lines().find_map(|line| line.strip_suffix(&wanted));
    Ok(found.unwrap_or("http://deb.debian.org/debian").to_owned())
}
