use std::io;

/// Why the network could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A file or device of the host.
    #[error("can't {attempted}: {source}")]
    Io {
        /// What was attempted.
        attempted: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Netlink refused.
    #[error("can't {attempted}: {source}")]
    Netlink {
        /// What was attempted.
        attempted: String,
        /// The kernel's answer.
        source: Box<rtnetlink::Error>,
    },
    /// The packet filter could not be loaded.
    #[error(
        "can't load the packet filter: {reason}; apt-get install nftables, and check `nft list \
         ruleset` as root"
    )]
    Filter {
        /// What nft said.
        reason: String,
    },
    /// The pool of addresses leads elsewhere.
    #[error(
        "can't use {pool} for machines: this host routes it over {link}; choose a range that \
         nothing else uses with --ipv4-pool"
    )]
    PoolInUse {
        /// The pool.
        pool: ipnet::Ipv4Net,
        /// Where the host sends it, or a part of it.
        link: String,
    },
    /// VMs are connected.
    #[error(
        "{count} VMs are still running: stop them with `caddis host drain` while their server \
         runs, or kill them with `caddis host clean --kill`"
    )]
    InUse {
        /// How many.
        count: usize,
    },
    /// An address that is none.
    #[error("`{address}` is not a MAC address")]
    Mac {
        /// As given.
        address: String,
    },
}

impl NetworkError {
    /// For `map_err`: says what was attempted.
    pub(crate) fn io(attempted: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let attempted = attempted.into();
        move |source| Self::Io { attempted, source }
    }

    /// For `map_err`: says what was attempted.
    pub(crate) fn netlink(attempted: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let attempted = attempted.into();
        move |source| Self::Netlink { attempted, source: Box::new(source) }
    }
}
