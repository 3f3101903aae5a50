//! The layout of earlier releases, which had taps, filter and DNS address in the host's own
//! network. VMs that run over an update are moved, and what is left behind is removed.

use std::net::{SocketAddr, UdpSocket};

use tracing::info;

use crate::{DNS, NetworkError, filter::TABLE, host_filter, links::Links, netlink::Socket};

/// Takes away what an earlier release left in the host's network, once no VM needs it and no server
/// of such a release runs. To be called in the host's network.
pub(crate) async fn tidy() -> Result<(), NetworkError> {
    // Its own: many VMs are adopted at once, and the kernel makes one list at a time for each
    // connection.
    let host = Links::open()?;
    if !host.taps().await?.is_empty() {
        return Ok(());
    }
    match UdpSocket::bind(SocketAddr::from((DNS, 53))) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => return Ok(()),
        _ => {}
    }
    host.remove_dns().await?;
    let unload = || {
        let mut socket =
            Socket::open().map_err(NetworkError::io("open a socket of the packet filter"))?;
        host_filter::unload(&mut socket, TABLE)
    };
    crate::network::blocking(unload).await
}

/// Moves a tap from the host's network, if it is there. Whether it was.
pub(crate) async fn take_over(
    host: &Links,
    tap: &str,
    namespace: i32,
) -> Result<bool, NetworkError> {
    let Some(index) = host.index(tap).await? else { return Ok(false) };
    host.move_to(index, namespace).await?;
    info!(tap, "moved the tap of a VM of an earlier release to the network namespace of machines");
    Ok(true)
}
