//! Everything init needs to turn a booted VM into one machine.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// The identity and program of a machine. Merging image and machine configuration is the host's
/// work; only what needs the guest's files (user names, `PATH` look-up) is left to init.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineSpec {
    /// Machine id.
    pub machine_id: String,
    /// Host name.
    pub hostname: String,
    /// Program and arguments, never empty.
    pub argv: Vec<String>,
    /// Environment, complete and merged; init adds `HOME` and `PATH` when absent.
    pub env: Vec<(String, String)>,
    /// `user[:group]`, names or numbers, resolved in the guest; empty means root.
    pub user: String,
    /// Working directory; empty means `/`.
    pub working_dir: String,
    /// Programs beside that one. They live together: when one ends, the others are ended too.
    pub others: Vec<ProgramSpec>,
    /// Whether the program gets namespaces of its own, in which it is process 1. `None` leaves that
    /// to what it is: init systems insist on it. Since version 3, and only for a machine with one
    /// program.
    pub pid_namespace: Option<bool>,
    /// Runs each program on a terminal.
    pub tty: bool,
    /// Files that every machine has in place of its image's, with the permissions of that one, as
    /// far as they are not in the root already: names and name servers.
    pub own_files: Vec<FileSpec>,
    /// Written before the program starts.
    pub files: Vec<FileSpec>,
    /// Addresses and names.
    pub network: NetworkSpec,
    /// Its volumes, at most one per number. The program starts when all are there; where one can't
    /// be mounted the state is `Failed`. Since [`crate::VOLUMES_SINCE`].
    pub mounts: Vec<MountSpec>,
    /// Size of the root disk, bytes. The VM may have been saved with one of another size behind it.
    pub root_size: u64,
    /// Grow the root file system to the size of its disk.
    pub grow_root: bool,
    /// Open files that a process may have.
    pub open_files: LimitSpec,
    /// Processes that a user may have.
    pub user_processes: LimitSpec,
    /// Host's wall clock, nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// Fresh random bytes from the host, base64; mixed in and credited before anything else
    /// happens.
    pub entropy: String,
}

/// A limit of a process (setrlimit(2)); what is not given is up to init.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitSpec {
    /// What it begins with.
    pub soft: Option<u64>,
    /// What it may raise that to.
    pub hard: Option<u64>,
}

/// A program beside the first one; its fields are as in [`MachineSpec`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProgramSpec {
    /// Program and arguments, never empty.
    pub argv: Vec<String>,
    /// Environment, complete and merged.
    pub env: Vec<(String, String)>,
    /// `user[:group]`.
    pub user: String,
}

/// A file written into the root file system at every boot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileSpec {
    /// Absolute path in the guest.
    pub path: String,
    /// Content, base64.
    pub content: String,
    /// Permission bits; 0 means 0644.
    pub mode: u32,
    /// It is not written where there is no plain file already.
    pub only_in_place: bool,
}

/// A volume, and where programs find it. It belongs to the machine's user, as init resolves it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountSpec {
    /// Its number, from 0 on, which says at which place its disk is.
    pub volume: u8,
    /// Absolute path in the guest, made where it is missing. Not `/`, and nothing of the kernel's.
    pub path: String,
    /// What is on it.
    pub filesystem: VolumeFilesystem,
    /// Size of its disk, bytes. The VM may have been saved with another one at the place.
    pub size: u64,
}

/// What is on a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeFilesystem {
    /// ext4, which is mounted at the path and grown to the size of its disk.
    #[default]
    Ext4,
    /// Whatever programs put there: the disk itself is at the path.
    Raw,
}

/// The gateways of every VM.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 255, 1);
/// As [`GATEWAY_V4`].
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The guest's end of its network interface. Gateway and DNS addresses are the same in every VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// MAC address to give the interface, `02:…`.
    pub mac: String,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// Private to the host, used as a /32.
    pub ipv4: Ipv4Addr,
    /// On-link gateway for IPv4.
    pub ipv4_gateway: Ipv4Addr,
    /// The machine's address in its private network, used as a /128.
    pub ipv6: Ipv6Addr,
    /// On-link gateway for IPv6.
    pub ipv6_gateway: Ipv6Addr,
    /// Name servers, unless the machine has others.
    pub nameservers: Vec<String>,
}

impl Default for NetworkSpec {
    fn default() -> Self {
        Self {
            mac: String::new(),
            mtu: 1420,
            ipv4: Ipv4Addr::UNSPECIFIED,
            ipv4_gateway: Ipv4Addr::UNSPECIFIED,
            ipv6: Ipv6Addr::UNSPECIFIED,
            ipv6_gateway: Ipv6Addr::UNSPECIFIED,
            nameservers: Vec::new(),
        }
    }
}
