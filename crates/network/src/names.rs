//! What the name server asks for the names below `internal.` and `flycast.`.

use std::{fmt, net::Ipv6Addr};

/// Longest text of a name, bytes: with the rest of a message it fits into the 65535 of TCP.
pub const LONGEST_TEXT: usize = 60_000;

/// Keeps the names below `internal.` and `flycast.`.
pub trait Names: fmt::Debug + Send + Sync {
    /// What a name has, as a machine sees it. The name server asks this for each query and answers
    /// others only then, so it must not block.
    ///
    /// `source` is the address the query came from, which the packet filter lets no other machine
    /// use: the machine, and with it the network, are known by it. `labels` are those of the name
    /// before `internal.`, in the order of the name and with ASCII letters in lower case.
    fn look_up(&self, source: Ipv6Addr, labels: &[&str]) -> Found;

    /// The same for a name below `flycast.`: addresses of an app's services within the network.
    fn look_up_services(&self, source: Ipv6Addr, labels: &[&str]) -> Found;
}

/// What a name has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is not known yet which names there are.
    NotReady,
    /// There is no such name.
    Nothing,
    /// The name exists and has no records now.
    Empty,
    /// AAAA records, in the order in which they are to be answered.
    Addresses(Vec<Ipv6Addr>),
    /// A TXT record, of at most [`LONGEST_TEXT`] bytes.
    Text(String),
}
