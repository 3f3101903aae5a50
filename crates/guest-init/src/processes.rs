//! The process list.

use std::{
    collections::HashMap,
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
};

use caddis_guest_protocol::message::{ListenSocket, ProcessInfo};

use crate::namespaces::Namespaces;

/// Clock ticks per second: a constant of the kernel's interface on this architecture.
const TICKS: u64 = 100;
const PAGE: u64 = 4096;
const TCP_LISTEN: &str = "0A";
/// A datagram socket that is bound and connected to nobody.
const UDP_UNCONNECTED: &str = "07";

/// All processes but init and the kernel's own, by the ids that they have among themselves.
pub fn list(namespaces: Namespaces) -> Vec<ProcessInfo> {
    let sockets = listening();
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime: f64 =
        uptime.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    let uptime_ms = (uptime * 1000.0) as u64;
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let shown = |mut process: ProcessInfo| {
        if namespaces != Namespaces::Inits {
            process.pid = inner_pid(process.pid).unwrap_or(process.pid);
        }
        process
    };
    let mut processes: Vec<_> =
        pids.filter_map(|pid| process(pid, uptime_ms, &sockets)).map(shown).collect();
    processes.sort_by_key(|process| process.pid);
    processes
}

fn process(pid: i32, uptime_ms: u64, sockets: &HashMap<u64, ListenSocket>) -> Option<ProcessInfo> {
    if pid == 1 {
        return None;
    }
    let directory = Path::new("/proc").join(pid.to_string());
    let stat = fs::read_to_string(directory.join("stat")).ok()?;
    // The name may hold anything; it ends with the last parenthesis.
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let parent = field(4)?;
    if pid == 2 || parent == 2 {
        return None;
    }
    let ms = |ticks: u64| ticks * 1000 / TICKS;
    let command = fs::read(directory.join("cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " ");
    let working = fs::read_link(directory.join("cwd"))
        .map(|path| path.display().to_string())
        .unwrap_or_default();
    let descriptors = fs::read_dir(directory.join("fd")).into_iter().flatten().flatten();
    let inodes = descriptors.filter_map(|descriptor| {
        let target = fs::read_link(descriptor.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok()
    });
    Some(ProcessInfo {
        pid,
        stime: ms(field(15)?),
        rtime: uptime_ms.saturating_sub(ms(field(22)?)),
        command: if command.is_empty() { name.to_owned() } else { command },
        directory: working,
        cpu: ms(field(14)? + field(15)?),
        rss: field(24)? * PAGE,
        listen_sockets: inodes.filter_map(|inode| sockets.get(&inode).cloned()).collect(),
    })
}

/// The id of a process in the PID namespace below init's.
fn inner_pid(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    inner_of(&status)
}

/// By `/proc/PID/status`: ids of one process, in init's namespace first.
fn inner_of(status: &str) -> Option<i32> {
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_whitespace().nth(1)?.parse().ok()
}

/// Listening sockets by their inode.
fn listening() -> HashMap<u64, ListenSocket> {
    let mut found = HashMap::new();
    for (proto, state) in [
        ("tcp", TCP_LISTEN),
        ("tcp6", TCP_LISTEN),
        ("udp", UDP_UNCONNECTED),
        ("udp6", UDP_UNCONNECTED),
    ] {
        let table = fs::read_to_string(format!("/proc/net/{proto}")).unwrap_or_default();
        found.extend(table.lines().skip(1).filter_map(|line| socket(proto, state, line)));
    }
    found
}

fn socket(proto: &str, state: &str, line: &str) -> Option<(u64, ListenSocket)> {
    let fields: Vec<_> = line.split_whitespace().collect();
    if *fields.get(3)? != state {
        return None;
    }
    let (address, port) = fields.get(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of 32 bits, each in the processor's order.
    let words = address
        .as_bytes()
        .chunks(8)
        .map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok());
    let bytes: Vec<u8> =
        words.collect::<Option<Vec<_>>>()?.into_iter().flat_map(u32::to_le_bytes).collect();
    let address = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(bytes) => format!("{}:{port}", Ipv4Addr::from(bytes)),
        Err(_) => {
            format!("[{}]:{port}", Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?))
        }
    };
    Some((fields.get(9)?.parse().ok()?, ListenSocket { proto: proto.to_owned(), address }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_the_id_of_the_program_s_namespace_whatever_is_below_that() {
        assert_eq!(inner_of("Name:\tsh\nNSpid:\t120\t1\n"), Some(1));
        assert_eq!(inner_of("NSpid:\t120\t77\t3\n"), Some(77), "in a container of it");
        assert_eq!(inner_of("NSpid:\t120\n"), None);
    }

    #[test]
    fn sockets_are_read_as_the_kernel_writes_them() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 \
                    00000000     0        0 4242 1 0";
        let (inode, found) = socket("tcp", TCP_LISTEN, line).unwrap();
        assert_eq!((inode, found.address.as_str()), (4242, "127.0.0.1:8080"));
        let line = "0: 00000000000000000000000001000000:0050 0:0 0A 0:0 0:0 0 0 0 7 1";
        assert_eq!(socket("tcp6", TCP_LISTEN, line).unwrap().1.address, "[::1]:80");
        assert!(socket("tcp", TCP_LISTEN, &line.replace(" 0A ", " 01 ")).is_none());
        assert!(socket("tcp", TCP_LISTEN, "nonsense").is_none());
    }
}
