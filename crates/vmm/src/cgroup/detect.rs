//! Reads from the mount table which cgroup interface carries the controllers.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Which interface the host offers for the controllers a VM needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// One tree per controller.
    V1,
    /// One tree for all.
    V2,
}

/// Where the controllers are.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) version: Version,
    /// v2: the mount. v1: the mount of each controller, in the order asked for.
    pub(super) mounts: Vec<PathBuf>,
}

struct Mount<'a> {
    point: PathBuf,
    kind: &'a str,
    options: &'a str,
}

/// Finds the controllers in the text of `/proc/self/mountinfo`; the reason when there is no way to
/// use them all.
pub(super) fn find(mountinfo: &str, controllers: &[&str]) -> Result<Found, String> {
    let mounts = mountinfo.lines().filter_map(parse).collect::<Vec<_>>();
    if let Some(unified) =
        mounts.iter().find(|mount| mount.kind == "cgroup2" && offers(&mount.point, controllers))
    {
        return Ok(Found { version: Version::V2, mounts: vec![unified.point.clone()] });
    }
    let mut found = Vec::new();
    for controller in controllers {
        let tree = mounts.iter().find(|mount| {
            mount.kind == "cgroup" && mount.options.split(',').any(|option| option == *controller)
        });
        let Some(tree) = tree else {
            return Err(format!(
                "no mounted cgroup file system offers the controller '{controller}': mount cgroup2 \
                 with memory, cpu and pids (Debian does by default), or the v1 trees of all three"
            ));
        };
        found.push(tree.point.clone());
    }
    Ok(Found { version: Version::V1, mounts: found })
}

/// What is wrong where [`are_hidden`].
pub(super) const HIDDEN: &str = "no cgroup file system can be seen here: `ip netns exec` hides \
                                 them behind a new /sys, so enter a network namespace with \
                                 `nsenter --net=/run/netns/NAME` instead; elsewhere mount cgroup2 \
                                 (mount -t cgroup2 none /sys/fs/cgroup)";

/// Whether none of the cgroup file systems that are mounted, if any, can be reached: another one is
/// mounted over them, or they were taken away with what they were mounted on.
pub(super) fn are_hidden(mountinfo: &str) -> bool {
    let mut trees =
        mountinfo.lines().filter_map(parse).filter(|mount| mount.kind.starts_with("cgroup"));
    // Each cgroup has this file, the root included.
    !trees.any(|mount| mount.point.join("cgroup.procs").exists())
}

fn offers(mount: &Path, controllers: &[&str]) -> bool {
    let offered = std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    controllers.iter().all(|wanted| offered.split_whitespace().any(|name| name == *wanted))
}

/// One line: `36 35 98:0 /root /point options shared:1 - type source super-options`.
fn parse(line: &str) -> Option<Mount<'_>> {
    let (before, after) = line.split_once(" - ")?;
    let point = before.split(' ').nth(4)?;
    let mut after = after.split(' ');
    let kind = after.next()?;
    let options = after.nth(1)?;
    // Spaces in paths are written as octal; cgroup mounts with any are not worth more than this.
    Some(Mount { point: PathBuf::from(point.replace("\\040", " ")), kind, options })
}
