//! Addresses and routes of the guest, over netlink.

use std::{
    fs, io,
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::OnceLock,
};

use caddis_guest_protocol::spec::NetworkSpec;
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
        socket,
    },
};

const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;

/// Sets what holds for every interface: those that come from here on, and those of drivers that are
/// part of the kernel.
pub fn set_defaults() {
    // As docker has it: programs that are not root serve low ports, and ping. There is nobody else
    // in this VM.
    for (setting, value) in
        [("ip_unprivileged_port_start", "0"), ("ping_group_range", "0 2147483647")]
    {
        let _ = fs::write(format!("/proc/sys/net/ipv4/{setting}"), value);
    }
    // Addresses are ours by agreement: no need to ask around for others that have them, or to be
    // told any.
    for interface in fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten() {
        for setting in ["accept_ra", "accept_dad", "autoconf", "router_solicitations"] {
            let _ = fs::write(interface.path().join(setting), "0");
        }
    }
}

/// Brings up the loopback, and the machine's interface without addresses.
pub fn prepare() -> Result<(), String> {
    let mut netlink = Netlink::open()?;
    netlink.up(if_nametoindex("lo").map_err(|e| format!("no loopback: {e}"))?, None)?;
    interface().map_or(Ok(()), |index| netlink.up(index, None))
}

/// Gives the machine's interface, if there is one, its addresses and routes; or only the route that
/// stays, where there is no MAC address yet.
pub fn configure(spec: &NetworkSpec) -> Result<(), String> {
    static GATEWAY: OnceLock<Ipv6Addr> = OnceLock::new();
    let Some(index) = interface() else { return Ok(()) };
    let mut netlink = Netlink::open()?;
    if !spec.mac.is_empty() {
        netlink.up(index, Some(spec))?;
        netlink.address(index, spec.ipv4.into(), 32)?;
        netlink.address(index, spec.ipv6.into(), 128)?;
        // The kernel takes these away with the last address.
        netlink.route(index, Some(spec.ipv4_gateway.into()), None)?;
        netlink.route(index, None, Some(spec.ipv4_gateway.into()))?;
    }
    if GATEWAY.get() != Some(&spec.ipv6_gateway) {
        netlink.route(index, None, Some(spec.ipv6_gateway.into()))?;
        // Others than that of the template come once.
        let _ = GATEWAY.set(spec.ipv6_gateway);
    }
    Ok(())
}

/// Takes the addresses away again, and with them the routes of IPv4.
pub fn withdraw(spec: &NetworkSpec) -> Result<(), String> {
    let Some(index) = interface().filter(|_| !spec.mac.is_empty()) else { return Ok(()) };
    let mut netlink = Netlink::open()?;
    netlink.remove_address(index, spec.ipv6.into(), 128)?;
    netlink.remove_address(index, spec.ipv4.into(), 32)
}

/// The only interface with a device behind it, looked for once. Some kernels make others, without
/// one, when they boot.
fn interface() -> Option<u32> {
    static FOUND: OnceLock<Option<u32>> = OnceLock::new();
    let find = || {
        let mut entries = fs::read_dir("/sys/class/net").ok()?.flatten();
        let name = entries.find(|entry| entry.path().join("device").exists())?.file_name();
        if_nametoindex(name.as_os_str()).ok()
    };
    *FOUND.get_or_init(find)
}

struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    fn open() -> Result<Self, String> {
        let failed = |error: Errno| format!("can't open a netlink socket: {error}");
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        );
        let socket = socket.map_err(failed)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// `ip link set INDEX up`, with MAC address and MTU.
    fn up(&mut self, index: u32, spec: Option<&NetworkSpec>) -> Result<(), String> {
        let up = libc::IFF_UP as u32;
        let mut body = vec![0, 0, 0, 0];
        body.extend(index.to_ne_bytes());
        body.extend(up.to_ne_bytes());
        body.extend(up.to_ne_bytes());
        if let Some(spec) = spec {
            let mac = spec
                .mac
                .split(':')
                .filter_map(|part| u8::from_str_radix(part, 16).ok())
                .collect::<Vec<_>>();
            if mac.len() == 6 {
                attribute(&mut body, libc::IFLA_ADDRESS, &mac);
            }
            attribute(&mut body, libc::IFLA_MTU, &spec.mtu.to_ne_bytes());
        }
        self.ask(libc::RTM_NEWLINK, 0, &body)
            .map_err(|e| format!("can't bring up interface {index}: {e}"))
    }

    /// `ip address add`, without asking whether another has it.
    fn address(&mut self, index: u32, address: IpAddr, length: u8) -> Result<(), String> {
        self.ask(libc::RTM_NEWADDR, CREATE | REPLACE, &address_message(index, address, length))
            .map_err(|e| format!("can't add the address {address}: {e}"))
    }

    /// `ip address del`.
    fn remove_address(&mut self, index: u32, address: IpAddr, length: u8) -> Result<(), String> {
        self.ask(libc::RTM_DELADDR, 0, &address_message(index, address, length))
            .map_err(|e| format!("can't remove the address {address}: {e}"))
    }

    /// `ip route add`: to one address on the link, or by default through a gateway.
    fn route(
        &mut self,
        index: u32,
        target: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Result<(), String> {
        let Some(known) = target.or(gateway) else { return Ok(()) };
        let length = target.map_or(0, |target| octets(target).len() as u8 * 8);
        let scope = if gateway.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
        let table = libc::RT_TABLE_MAIN;
        let mut body = vec![
            family(known),
            length,
            0,
            0,
            table,
            libc::RTPROT_BOOT,
            scope,
            libc::RTN_UNICAST,
            0,
            0,
            0,
            0,
        ];
        if let Some(target) = target {
            attribute(&mut body, libc::RTA_DST, &octets(target));
        }
        if let Some(gateway) = gateway {
            attribute(&mut body, libc::RTA_GATEWAY, &octets(gateway));
        }
        attribute(&mut body, libc::RTA_OIF, &index.to_ne_bytes());
        self.ask(libc::RTM_NEWROUTE, CREATE | REPLACE, &body)
            .map_err(|e| format!("can't add the route to {known}: {e}"))
    }

    fn ask(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend((16 + body.len() as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((REQUEST | ACKNOWLEDGE | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(body);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut answer = [0; 4096];
        let count = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        // An acknowledgement is an error message with the error 0.
        match answer.get(16..20).filter(|_| count >= 20) {
            Some(code) => match i32::from_ne_bytes([code[0], code[1], code[2], code[3]]) {
                0 => Ok(()),
                code => Err(Errno::from_raw(-code).into()),
            },
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn address_message(index: u32, address: IpAddr, length: u8) -> Vec<u8> {
    let mut body = vec![family(address), length, libc::IFA_F_NODAD as u8, 0];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, libc::IFA_LOCAL, &octets(address));
    attribute(&mut body, libc::IFA_ADDRESS, &octets(address));
    body
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend((4 + value.len() as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}
