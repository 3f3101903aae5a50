//! Messages of nf_tables, written by hand, and the socket they go over.

use std::{
    io,
    ops::RangeInclusive,
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname,
        recv, send, setsockopt, socket,
        sockopt::{ReceiveTimeout, SndBufForce},
    },
};

pub(crate) const NFNL_SUBSYS_NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const GET_TABLE: u16 = 1;
const NFPROTO_INET: u8 = 1;

const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;

/// Flag of an attribute that holds others.
pub(crate) const NESTED: u16 = 0x8000;
/// An item of a list.
pub(crate) const LIST_ITEM: u16 = 1 | NESTED;

/// Room for a batch, bytes: that of a table with the egress addresses of all machines of a host.
const SEND_BUFFER: usize = 8 << 20;

/// How long the kernel may take to answer.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// One message of a batch, on an object of the family `inet`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// Kind in the subsystem, such as `NFT_MSG_NEWTABLE`.
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) body: Vec<u8>,
}

/// A socket of nf_tables, in the network namespace it was opened in.
#[derive(Debug)]
pub(crate) struct Socket {
    descriptor: OwnedFd,
    port: u32,
    sequence: u32,
}

impl Socket {
    pub(crate) fn open() -> io::Result<Self> {
        let netfilter = SockProtocol::NetlinkNetFilter;
        let descriptor: OwnedFd =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, netfilter)?;
        bind(descriptor.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(
            &descriptor,
            ReceiveTimeout,
            &nix::sys::time::TimeVal::new(RECEIVE_TIMEOUT.as_secs().cast_signed(), 0),
        )?;
        // Without it a large batch is refused as too long for one message.
        let _ = setsockopt(&descriptor, SndBufForce, &SEND_BUFFER);
        let port = getsockname::<NetlinkAddr>(descriptor.as_raw_fd())?.pid();
        Ok(Self { descriptor, port, sequence: 0 })
    }

    /// What the kernel calls this socket in its notifications.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Whether there is a table of this name. Blocks.
    pub(crate) fn has_table(&mut self, name: &[u8]) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        let kind = NFNL_SUBSYS_NFTABLES << 8 | GET_TABLE;
        let request = encode(
            kind,
            REQUEST | ACKNOWLEDGE,
            self.sequence,
            NFPROTO_INET,
            0,
            &attribute(1, name),
        );
        match self.ask(&request, self.sequence..=self.sequence)? {
            0 => Ok(true),
            libc::ENOENT => Ok(false),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    /// Has the kernel do all of it or nothing, and waits for its answer: 0 or an error number.
    /// Blocks.
    pub(crate) fn commit(&mut self, messages: &[Message]) -> io::Result<i32> {
        let first = self.sequence.wrapping_add(1);
        let last = first.wrapping_add(messages.len() as u32);
        self.sequence = last.wrapping_add(1);
        self.ask(&batch(messages, first), first..=last)
    }

    /// Asks for all objects of a kind, which includes the subsystem. Blocks.
    pub(crate) fn dump(
        &mut self,
        kind: u16,
        family: u8,
        each: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = encode(kind, REQUEST | DUMP, self.sequence, family, 0, &[]);
        send(self.descriptor.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = recv(self.descriptor.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for (header, body) in messages(buffer.get(..length).unwrap_or_default()) {
                match (header.kind, error_number(body)) {
                    _ if header.sequence != self.sequence => {}
                    (NLMSG_DONE, _) => return Ok(()),
                    (NLMSG_ERROR, Some(code)) => return Err(io::Error::from_raw_os_error(code)),
                    _ => each(body),
                }
            }
        }
    }

    /// Asks for one thing of a subsystem: 0 or an error number. Blocks.
    pub(crate) fn request(&mut self, kind: u16, family: u8, body: &[u8]) -> io::Result<i32> {
        self.single(kind, family, 0, body)
    }

    /// The same about a resource, such as a group of nflog. Blocks.
    pub(crate) fn configure(&mut self, kind: u16, resource: u16, body: &[u8]) -> io::Result<i32> {
        self.single(kind, 0, resource, body)
    }

    /// Makes one thing of a subsystem. Blocks.
    #[cfg(test)]
    pub(crate) fn make(&mut self, kind: u16, family: u8, body: &[u8]) -> io::Result<i32> {
        self.flagged(CREATE, kind, family, 0, body)
    }

    fn single(&mut self, kind: u16, family: u8, resource: u16, body: &[u8]) -> io::Result<i32> {
        self.flagged(0, kind, family, resource, body)
    }

    fn flagged(
        &mut self,
        flags: u16,
        kind: u16,
        family: u8,
        resource: u16,
        body: &[u8],
    ) -> io::Result<i32> {
        self.sequence = self.sequence.wrapping_add(1);
        let flags = REQUEST | ACKNOWLEDGE | flags;
        let request = encode(kind, flags, self.sequence, family, resource, body);
        self.ask(&request, self.sequence..=self.sequence)
    }

    /// The socket for reading what it was configured for, without blocking.
    pub(crate) fn into_stream(self) -> io::Result<OwnedFd> {
        let flags = OFlag::from_bits_retain(fcntl(&self.descriptor, FcntlArg::F_GETFL)?);
        fcntl(&self.descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(self.descriptor)
    }

    fn ask(&self, bytes: &[u8], sequences: RangeInclusive<u32>) -> io::Result<i32> {
        send(self.descriptor.as_raw_fd(), bytes, MsgFlags::empty())?;
        let mut buffer = vec![0; 8192];
        loop {
            let length = recv(self.descriptor.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            if let Some(code) = answer(buffer.get(..length).unwrap_or_default(), sequences.clone())
            {
                return Ok(code);
            }
        }
    }
}

/// The messages between begin and end. Only the last one is acknowledged; errors are told of each.
fn batch(messages: &[Message], first: u32) -> Vec<u8> {
    let mut bytes = encode(BATCH_BEGIN, REQUEST, first, 0, NFNL_SUBSYS_NFTABLES, &[]);
    let mut sequence = first;
    for (index, message) in messages.iter().enumerate() {
        sequence = sequence.wrapping_add(1);
        let acknowledge = if index + 1 == messages.len() { ACKNOWLEDGE } else { 0 };
        let kind = NFNL_SUBSYS_NFTABLES << 8 | message.kind;
        bytes.extend(encode(
            kind,
            REQUEST | acknowledge | message.flags,
            sequence,
            NFPROTO_INET,
            0,
            &message.body,
        ));
    }
    bytes.extend(encode(
        BATCH_END,
        REQUEST,
        sequence.wrapping_add(1),
        0,
        NFNL_SUBSYS_NFTABLES,
        &[],
    ));
    bytes
}

/// A netlink message with the header of nfnetlink.
fn encode(kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(20 + body.len());
    // Messages here are some hundred bytes.
    message.extend((20 + body.len() as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend([family, 0]);
    message.extend(resource.to_be_bytes());
    message.extend(body);
    message
}

pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut attribute = Vec::with_capacity(4 + value.len() + 3);
    attribute.extend((4 + value.len() as u16).to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// A string as attributes hold it.
pub(crate) fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

/// The error number in the first answer to one of these messages.
fn answer(bytes: &[u8], sequences: RangeInclusive<u32>) -> Option<i32> {
    messages(bytes).find_map(|(header, body)| {
        let matches = header.kind == NLMSG_ERROR && sequences.contains(&header.sequence);
        error_number(body).filter(|_| matches)
    })
}

/// The number in the body of an error message; 0 is success.
fn error_number(body: &[u8]) -> Option<i32> {
    body.first_chunk().map(|code| -i32::from_ne_bytes(*code))
}

/// The header of a netlink message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
    pub(crate) port: u32,
}

/// The messages that were received together, each with what follows its header.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let length = u32::from_ne_bytes(*length) as usize;
        let (kind, rest) = rest.split_first_chunk::<2>()?;
        let (_flags, rest) = rest.split_first_chunk::<2>()?;
        let (sequence, rest) = rest.split_first_chunk::<4>()?;
        let (port, _) = rest.split_first_chunk::<4>()?;
        let header = Header {
            kind: u16::from_ne_bytes(*kind),
            sequence: u32::from_ne_bytes(*sequence),
            port: u32::from_ne_bytes(*port),
        };
        let body = bytes.get(16..length.min(bytes.len()))?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((header, body))
    })
}

/// The value of the first attribute of this kind.
pub(crate) fn find_attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let (found, _) = rest.split_first_chunk::<2>()?;
        let value = bytes.get(4..length)?;
        if u16::from_ne_bytes(*found) & !NESTED == kind {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_found_behind_other_messages_and_nonsense_is_none() {
        let other = encode(NFNL_SUBSYS_NFTABLES << 8 | 12, 0, 2, 0, 0, b"abcd");
        let error = |code: i32, sequence| {
            encode(NLMSG_ERROR, 0, sequence, 0, 0, &[])
                .into_iter()
                .take(16)
                .chain(code.to_ne_bytes())
        };
        let denied: Vec<u8> = other.iter().copied().chain(error(-libc::EPERM, 2)).collect();
        assert_eq!(answer(&denied, 1..=3), Some(libc::EPERM));
        assert_eq!(answer(&denied, 3..=9), None, "the answer to what was asked before");
        assert_eq!(answer(&error(0, 2).collect::<Vec<_>>(), 2..=2), Some(0));
        assert_eq!(answer(&other, 1..=3), None);
        assert_eq!(answer(&[0; 40], 0..=9), None);
        assert_eq!(answer(&[1, 2, 3], 0..=9), None);
    }

    #[test]
    fn attributes_are_padded_and_their_length_is_not() {
        assert_eq!(attribute(1, b"abcde").len(), 12);
        assert_eq!(attribute(1, b"abcde")[0], 9);
        let two = [attribute(7, b"abcde"), attribute(1 | NESTED, b"x")].concat();
        assert_eq!(find_attribute(&two, 1), Some(&b"x"[..]));
        assert_eq!(find_attribute(&two, 2), None);
        assert_eq!(
            find_attribute(&[0; 16], 2),
            None,
            "an attribute without length ends the search"
        );
    }
}
