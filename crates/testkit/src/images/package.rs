//! Files of a Debian package that is not installed, since its installation would change the host.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use super::cached;
use crate::command::run_command;

/// Gets and unpacks `$0` to `$1`. What is below `/` goes to `/usr`, where Debian has it since it
/// has merged them.
const SCRIPT: &str = r#"
cd "$1"
apt-get --quiet --quiet download "$0"
dpkg-deb --extract ./*.deb .
rm ./*.deb
mkdir -p usr etc
for part in sbin bin lib; do
    if [ -d "$part" ]; then
        mkdir -p "usr/$part"
        cp -a "$part/." "usr/$part"
        rm -r "$part"
    fi
done
"#;

/// Debian's openresolv, as a directory with `usr` and `etc`: installed it would write the host's
/// `/etc/resolv.conf`.
///
/// # Errors
/// When apt does not get it.
pub fn openresolv() -> Result<PathBuf> {
    cached("openresolv", SCRIPT, |directory| {
        // In the namespaces of the process: a test's host has no way to a mirror.
        let process = format!("/proc/{}/ns", std::process::id());
        let mut command = Command::new("nsenter");
        command.args([format!("--net={process}/net"), format!("--mount={process}/mnt")]);
        command.args(["--", "sh", "-ec", SCRIPT, "openresolv"]).arg(directory);
        run_command(&mut command).context("getting a package; as root: apt-get update")?;
        Ok(())
    })
}
