//! A host of its own for one server: network and mount namespace of the test's thread.
//!
//! Everything the thread starts (server, registry, VMs) inherits them, and taps, routes and filter
//! rules vanish with them. They belong to the *thread*: a test runs on a current-thread runtime,
//! the default of `#[tokio::test]`.

use std::{
    path::{Path, PathBuf},
    sync::Once,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use tempfile::TempDir;

use crate::{Outside, command::run, outside, process};

/// Begin of the names of directories, followed by the process id of the test.
const PREFIX: &str = "caddis-test-";

/// See the module's text.
#[derive(Debug)]
pub struct Host {
    outside: Outside,
    directory: TempDir,
}

impl Host {
    /// The host's address on the network that stands for the internet.
    pub const ADDRESS: &str = "198.51.100.2";
    /// The same in IPv6.
    pub const ADDRESS_V6: &str = "2001:db8:100::2";

    /// Moves the calling thread to new namespaces and connects them with a new outside.
    ///
    /// # Errors
    /// Without root, or when `ip` is missing.
    pub async fn new() -> Result<Self> {
        ensure!(
            nix::unistd::Uid::effective().is_root(),
            "end-to-end tests need root: sudo make test"
        );
        let flavor = tokio::runtime::Handle::current().runtime_flavor();
        ensure!(
            flavor == tokio::runtime::RuntimeFlavor::CurrentThread,
            "namespaces belong to one thread"
        );
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .context("making namespaces for a test")?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .context("keeping mounts of a test to itself")?;
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        // VMs run as other users, who must be able to pass.
        let directory = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{}-", std::process::id()))
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .context("making a directory for a test")?;

        run(["ip", "link", "set", "lo", "up"])?;
        let outside = Outside::start()?;
        let peer = outside.namespace();
        let peer = peer.to_str().context("path of a namespace")?;
        run([
            "ip",
            "link",
            "add",
            "uplink",
            "type",
            "veth",
            "peer",
            "name",
            outside::LINK,
            "netns",
            peer,
        ])?;
        for address in [
            format!("{}/24", Self::ADDRESS),
            "192.168.77.2/24".into(),
            format!("{}/64", Self::ADDRESS_V6),
        ] {
            run(["ip", "address", "add", &address, "dev", "uplink", "nodad"])?;
        }
        // A link-local address would appear some time later, as if something had made it.
        std::fs::write("/proc/sys/net/ipv6/conf/uplink/addr_gen_mode", "1")
            .context("setting up an interface")?;
        run(["ip", "link", "set", "uplink", "up"])?;
        outside.connect().await?;
        run(["ip", "route", "add", "default", "via", Outside::ADDRESS])?;
        run(["ip", "-6", "route", "add", "default", "via", Outside::ADDRESS_V6])?;

        let resolv = directory.path().join("resolv.conf");
        std::fs::write(&resolv, format!("nameserver {}\n", Outside::ADDRESS))
            .context("writing a resolv.conf")?;
        mount(Some(&resolv), "/etc/resolv.conf", None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .context("mounting a resolv.conf of its own for a test")?;
        Ok(Self { outside, directory })
    }

    /// The network beyond the host.
    pub fn outside(&self) -> &Outside {
        &self.outside
    }

    /// A directory for the test's files, removed at the end.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A file or directory in [`Self::directory`].
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// Ends what tests left that were killed themselves, by Ctrl-C or for lack of memory.
fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            process::holders(&entry.path()).into_iter().for_each(process::end);
            // Another test process may be doing the same.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
