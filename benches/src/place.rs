//! A thread in namespaces of its own. What it starts lives there, and sockets that it makes belong
//! there for ever, whoever uses them afterwards. So each server has packet filter, addresses and
//! routes of its own, and the kernel takes them away with the last process.

use std::{sync::mpsc, thread};

use anyhow::{Context as _, Result, anyhow};
use caddis_testkit::run;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

type Work = Box<dyn FnOnce() + Send>;

/// A handle on the thread; the thread ends with it.
#[derive(Debug)]
pub struct Place {
    work: mpsc::Sender<Work>,
}

impl Place {
    /// A network of its own, with nothing but loopback, and mounts, since a server keeps a
    /// namespace by one.
    ///
    /// # Errors
    /// Without root.
    pub fn network() -> Result<Self> {
        Self::with(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                .context("making namespaces")?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
                .context("keeping mounts to ourselves")?;
            run(["ip", "link", "set", "lo", "up"]).map(drop)
        })
    }

    /// A network and mounts of its own, for podman: see [`prepare_mounts`]. What addresses its
    /// plugins gave out is remembered there, too, and so forgotten with it.
    ///
    /// # Errors
    /// Without root.
    pub fn containers() -> Result<Self> {
        Self::with(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
            run(["ip", "link", "set", "lo", "up"])?;
            prepare_mounts()?;
            let none = None::<&str>;
            mount(Some("tmpfs"), CNI_STATE, Some("tmpfs"), MsFlags::empty(), none)
                .with_context(|| format!("mounting a tmpfs on {CNI_STATE}"))
        })
    }

    /// The network of this place, with mounts in which podman works.
    ///
    /// # Errors
    /// Without root.
    pub fn containers_here(&self) -> Result<Self> {
        self.run(|| Self::with(prepare_mounts))?
    }

    fn with(prepare: impl FnOnce() -> Result<()> + Send + 'static) -> Result<Self> {
        let (work, queue) = mpsc::channel::<Work>();
        let (ready, prepared) = mpsc::channel();
        // A new thread is where its creator is.
        thread::spawn(move || {
            let outcome = prepare();
            let failed = outcome.is_err();
            if ready.send(outcome).is_err() || failed {
                return;
            }
            for work in queue {
                work();
            }
        });
        prepared.recv().context("a thread ended while it moved to its namespaces")??;
        Ok(Self { work })
    }

    /// Does something there and waits for it: short work only, since it holds up the caller.
    ///
    /// # Errors
    /// When it panicked, or something before it.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (answer, answered) = mpsc::channel();
        let send = move || drop(answer.send(work()));
        self.work
            .send(Box::new(send))
            .map_err(|_| anyhow!("the thread of a namespace has ended"))?;
        answered.recv().context("the thread of a namespace ended in a panic")
    }
}

/// podman takes a host where both versions of cgroups are mounted for one with version 2 and finds
/// no controllers there.
fn prepare_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).context("making a mount namespace")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("keeping mounts to ourselves")?;
    // Most hosts have no such mount.
    let _ = nix::mount::umount("/sys/fs/cgroup/unified");
    Ok(())
}

/// Where CNI's plugins keep their state; must exist.
pub const CNI_STATE: &str = "/var/lib/cni";
