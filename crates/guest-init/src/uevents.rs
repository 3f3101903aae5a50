//! What the kernel tells of devices that come, change and go.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
            setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::TimeVal,
    },
};

/// How long the host may take with a device, without a word about any other.
const TIMEOUT_SECONDS: i64 = 20;

/// Those from here on.
pub struct Uevents(OwnedFd);

impl Uevents {
    /// Listens.
    pub fn open() -> Result<Self, String> {
        let failed = |error: nix::Error| format!("can't listen for devices: {error}");
        let changes = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkKObjectUEvent,
        );
        let changes = changes.map_err(failed)?;
        // The kernel's own messages, not those of a device manager.
        bind(changes.as_raw_fd(), &NetlinkAddr::new(0, 1)).map_err(failed)?;
        setsockopt(&changes, ReceiveTimeout, &TimeVal::new(TIMEOUT_SECONDS, 0)).map_err(failed)?;
        Ok(Self(changes))
    }

    /// Waits for something to change. False when nothing does for long.
    pub fn wait(&self) -> bool {
        let mut message = [0; 4096];
        // Too many changes at once: whichever they were, the caller looks again.
        matches!(
            recv(self.0.as_raw_fd(), &mut message, MsgFlags::empty()),
            Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR)
        )
    }
}
