//! The packet filter: one table in the installation's own network namespace, loaded once, where no
//! firewall of the host reaches it. What changes with machines are the elements of one set. See
//! `host_filter.rs` for the host's part.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use ipnet::{IpNet, Ipv4Net};

use crate::{
    DNS, HOST_V4, HOST_V6, NetworkError, PRIVATE_V6, TAP_PREFIX, UPLINK,
    flycast::{MASK, VALUE},
    namespace::Namespace,
    peers::{DEVICE, DNS_MASK},
};

pub(crate) const TABLE: &str = "caddis";
/// Pairs of networks whose machines may meet.
pub(crate) const OWN6: &str = "own6";

/// What no VM reaches unless configuration opens it: this host's and its site's own networks, what
/// has a special meaning, and what is nobody's. (IANA's registries of special-purpose addresses;
/// documentation and benchmarking ranges are left out, since they lead nowhere outside of tests.)
const DENIED_V4: [&str; 11] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
];
const DENIED_V6: [&str; 8] = [
    "::/127",
    "::ffff:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "2002::/16",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
];

/// The same as networks.
pub(crate) fn denied() -> impl Iterator<Item = IpNet> {
    DENIED_V4.iter().chain(&DENIED_V6).filter_map(|network| network.parse().ok())
}

/// The whole table. Loading it again replaces it in one step. Who may meet stays as it is: what is
/// left of machines that have gone meanwhile lets nobody meet.
///
/// A machine is told that something is refused, in one way whatever is there: TCP is reset, as a
/// kernel that is still within `connect` ignores an ICMP error; others get one.
fn ruleset(pool: Ipv4Net, allowed: &[IpNet]) -> String {
    let (v4, v6): (Vec<_>, Vec<_>) =
        allowed.iter().partition(|network| matches!(network, IpNet::V4(_)));
    let permit = |family: &str, networks: &[&IpNet]| {
        let list = networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if list.is_empty() { String::new() } else { format!("{family} daddr {{ {list} }} accept") }
    };
    let (permit_v4, permit_v6) = (permit("ip", &v4), permit("ip6", &v6));
    let (denied_v4, denied_v6) = (DENIED_V4.join(", "), DENIED_V6.join(", "));
    format!(
        r#"
add table inet {TABLE}
flush table inet {TABLE}
table inet {TABLE} {{
    set {OWN6} {{
        type ipv6_addr . ipv6_addr
        flags interval
    }}
    # A VM sends under its own addresses only: those that are routed to its tap. From the host
    # nobody else does.
    chain spoofing {{
        type filter hook prerouting priority raw; policy accept;
        iifname "{TAP_PREFIX}*" fib saddr . iif oif missing drop
        iifname "{UPLINK}" fib saddr . iif oif missing drop
        # Errors about what can't be delivered, which no peer can send under this address.
        iifname "{DEVICE}" ip6 saddr & {DNS_MASK} == {DNS} icmpv6 type destination-unreachable \
            accept
        iifname "{DEVICE}" fib saddr . iif oif missing drop
    }}
    # The name server of each network, as its WireGuard peers see it.
    chain of_peers {{
        type nat hook prerouting priority dstnat; policy accept;
        iifname "{DEVICE}" ip6 daddr & {DNS_MASK} == {DNS} meta l4proto {{ tcp, udp }} th dport 53 \
            dnat ip6 to {DNS}
    }}
    # All that is here is the DNS forwarder with its answers, and where the proxy answers.
    chain to_host {{
        type filter hook input priority filter; policy accept;
        iifname "lo" accept
        ct state established,related accept
        iifname "{UPLINK}" drop
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} ip6 hoplimit 255 accept
        ip6 daddr {DNS} meta l4proto {{ tcp, udp }} th dport 53 accept
        ip6 daddr & {MASK} == {VALUE} jump to_services
        # Other networks have one of their own only where they have peers.
        iifname "{TAP_PREFIX}*" ip6 daddr != {DNS} ip6 daddr & {DNS_MASK} == {DNS} jump refused
        drop
    }}
    # Each network has addresses of its own there.
    chain to_services {{
        iifname "{TAP_PREFIX}*" meta l4proto tcp ip6 saddr . ip6 daddr @{OWN6} accept
        jump refused
    }}
    chain refused {{
        meta l4proto tcp reject with tcp reset
        reject with icmpx type admin-prohibited
    }}
    # Before policies (`policies.rs`), which are not to tell who is there: what a machine sends to
    # others than those of its network is refused alike, whether anybody has the address or not.
    chain apart {{
        type filter hook forward priority filter - 20; policy accept;
        ct state established,related accept
        iifname "{TAP_PREFIX}*" ip daddr {pool} jump refused
        iifname "{TAP_PREFIX}*" ip6 daddr {PRIVATE_V6} ip6 daddr != {HOST_V6} jump of_others
    }}
    chain of_others {{
        ip6 saddr . ip6 daddr @{OWN6} return
        jump refused
    }}
    chain forwarded {{
        type filter hook forward priority filter; policy accept;
        ct state established,related accept
        iifname "{TAP_PREFIX}*" jump from_vm
        iifname "{DEVICE}" oifname "{TAP_PREFIX}*" ip6 saddr . ip6 daddr @{OWN6} accept
        # The host itself reaches its machines, who is behind it does not.
        iifname "{UPLINK}" oifname "{TAP_PREFIX}*" ip saddr {HOST_V4} accept
        iifname "{UPLINK}" oifname "{TAP_PREFIX}*" ip6 saddr {HOST_V6} accept
        drop
    }}
    chain from_vm {{
        oifname "{TAP_PREFIX}*" ip6 saddr . ip6 daddr @{OWN6} accept
        oifname "{TAP_PREFIX}*" jump refused
        oifname "{DEVICE}" ip6 saddr . ip6 daddr @{OWN6} accept
        oifname "{DEVICE}" jump refused
        ip daddr {HOST_V4} drop
        ip6 daddr {HOST_V6} drop
        {permit_v4}
        {permit_v6}
        ip daddr {{ {denied_v4} }} jump refused
        ip6 daddr {{ {denied_v6} }} jump refused
        accept
    }}
}}
"#
    )
}

/// A rule that this kernel must know beside those of the table: the host's part is written without
/// nft.
const ALSO_NEEDED: &str = "table inet caddis-check { chain leaving { type nat hook postrouting \
                           priority srcnat; meta mark set meta mark or 1; masquerade; }; \
                           chain sizing { type filter hook forward priority filter; \
                           tcp flags syn tcp option maxseg size set rt mtu; }; }\n";

/// Loads the filter into the namespace in one transaction. Blocks.
pub(crate) fn load(
    namespace: &Namespace,
    pool: Ipv4Net,
    allowed: &[IpNet],
) -> Result<(), NetworkError> {
    let script = ruleset(pool, allowed);
    let loaded = namespace.run(move || nft(&script, &["-f", "-"]));
    loaded.map_err(NetworkError::io("load the packet filter"))?.map(drop)
}

/// Whether it could be loaded. Changes nothing. Blocks.
///
/// # Errors
/// [`NetworkError::Filter`] with what nft said.
pub fn check_filter(allowed: &[IpNet]) -> Result<(), NetworkError> {
    // Any will do.
    let pool = Ipv4Net::new_assert([10, 201, 0, 0].into(), 16);
    nft(&(ruleset(pool, allowed) + ALSO_NEEDED), &["--check", "-f", "-"]).map(drop)
}

/// What nft says, given a script, in the network namespace of the calling thread. Blocks.
pub(crate) fn nft(script: &str, arguments: &[&str]) -> Result<String, NetworkError> {
    let failed =
        |error: std::io::Error| NetworkError::Filter { reason: format!("running nft: {error}") };
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // When nft ends early its own words say more than a broken pipe.
        let _ = stdin.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(NetworkError::Filter { reason: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}
