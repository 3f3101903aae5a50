//! The network namespace of an installation, kept by a bind mount, and a thread that lives in it.
//! What that thread opens (sockets, taps) belongs there, whoever uses it afterwards.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
    path::Path,
    sync::mpsc,
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, statfs},
};

use crate::NetworkError;

type Work = Box<dyn FnOnce() + Send>;

/// What the kernel is told in the namespace.
const SETTINGS: [(&str, &str); 8] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    // Taps get the gateway's address and need no other.
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    // Whether a source address is a machine's own is looked up by the filter.
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    // A machine is told of everything that is refused, also at many places at once. The default is
    // one ICMP error a second. They go to nobody but who has caused them, and the kernel's limit of
    // all errors (`icmp_msgs_per_sec`) still holds.
    ("ipv4/icmp_ratelimit", "0"),
    ("ipv6/icmp/ratelimit", "0"),
];

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Namespace {
    work: mpsc::Sender<Work>,
    file: File,
}

impl Namespace {
    /// Enters the namespace that is mounted there, or makes it. Blocks.
    pub(crate) fn open(path: &Path) -> Result<Self, NetworkError> {
        let (work, queue) = mpsc::channel::<Work>();
        let (ready, prepared) = mpsc::channel();
        let place = path.to_owned();
        let body = move || {
            let outcome = enter(&place);
            let failed = outcome.is_err();
            if ready.send(outcome).is_err() || failed {
                return;
            }
            for work in queue {
                work();
            }
        };
        let attempted = || format!("use the network namespace {}", path.display());
        thread::Builder::new()
            .name("vm-network".to_owned())
            .spawn(body)
            .map_err(NetworkError::io(attempted()))?;
        let ended = || io::Error::other("its thread ended");
        let file = prepared.recv().map_err(|_| NetworkError::io(attempted())(ended()))??;
        Ok(Self { work, file })
    }

    /// Does something in it and waits for that: short work only. Blocks.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (sender, answer) = mpsc::channel();
        let work = Box::new(move || {
            // Nobody waits only where its process ends.
            let _ = sender.send(work());
        });
        let ended = |_| io::Error::other("the thread of the machines' network has ended");
        self.work
            .send(work)
            .map_err(|_| io::Error::other("the thread of the machines' network has ended"))?;
        answer.recv().map_err(ended)
    }

    /// A descriptor of it, as long as this lives.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Whether a namespace is mounted there.
pub(crate) fn exists(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC)
}

/// Takes the mount away; the namespace goes with the last that uses it. Succeeds when there is
/// none.
pub(crate) fn remove(path: &Path) -> Result<(), NetworkError> {
    let attempted = || format!("remove the network namespace {}", path.display());
    if exists(path) {
        umount2(path, MntFlags::MNT_DETACH)
            .map_err(|error| NetworkError::io(attempted())(error.into()))?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(NetworkError::io(attempted())(error))
        }
        _ => Ok(()),
    }
}

/// Moves the calling thread there.
fn enter(path: &Path) -> Result<File, NetworkError> {
    let attempted = |what: &str| format!("{what} the network namespace {}", path.display());
    if exists(path) {
        let file = File::open(path).map_err(NetworkError::io(attempted("open")))?;
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|error| NetworkError::io(attempted("enter"))(error.into()))?;
        return prepare().map(|()| file);
    }
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|error| NetworkError::io(attempted("make"))(error.into()))?;
    prepare()?;
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(NetworkError::io(attempted("make")))?;
    let own = "/proc/thread-self/ns/net";
    mount(Some(own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|error| NetworkError::io(attempted("mount"))(error.into()))?;
    File::open(path).map_err(NetworkError::io(attempted("open")))
}

fn prepare() -> Result<(), NetworkError> {
    for (name, value) in SETTINGS {
        let setting = format!("/proc/sys/net/{name}");
        fs::write(&setting, value)
            .map_err(NetworkError::io(format!("set {setting}, which needs IPv6 on this host")))?;
    }
    Ok(())
}
