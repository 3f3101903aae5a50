//! What of the host is promised to machines. A machine holds its promise from create to destroy, so
//! that a start never fails for room.

use std::{collections::HashMap, net::Ipv4Addr};

use caddis_api::{ApiError, ErrorCode, MachineConfig, MachineId};
use parking_lot::{Mutex, MutexGuard};

use crate::WorkerConfig;

/// Memory that is left to the host itself when the configuration names no bound, MiB.
const HOST_MEMORY_MIB: u64 = 512;
/// The part of the host's memory that VMs which wait for machines may have.
const POOL_PART: u64 = 16;

/// So much of a host's resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Virtual processors.
    pub cpus: u32,
    /// MiB.
    pub memory_mib: u64,
    /// Of root disks, GiB.
    pub disk_gib: u64,
}

impl Room {
    /// What a machine of this configuration needs.
    pub fn of(config: &MachineConfig) -> Self {
        Self { cpus: config.cpus(), memory_mib: config.memory_mib(), disk_gib: config.rootfs_gib() }
    }

    /// Nothing is left of what others have more than all of.
    pub fn minus(self, other: Self) -> Self {
        Self {
            cpus: self.cpus.saturating_sub(other.cpus),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            disk_gib: self.disk_gib.saturating_sub(other.disk_gib),
        }
    }

    fn exceeds_anywhere(self, other: Self) -> bool {
        self.cpus > other.cpus
            || self.memory_mib > other.memory_mib
            || self.disk_gib > other.disk_gib
    }
}

/// One machine's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reservation {
    room: Room,
    ipv4: Ipv4Addr,
}

/// The host's resources, times the factors by which they may be promised more than once, and who
/// holds them.
pub struct Capacity {
    all: Room,
    pool: ipnet::Ipv4Net,
    held: Mutex<HashMap<MachineId, Reservation>>,
}

impl Capacity {
    /// The resources of this host, as configured.
    pub fn new(config: &WorkerConfig) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let cpus =
            (processors as f64 * config.cpu_overcommit).floor().clamp(1.0, f64::from(u32::MAX));
        let memory = config.memory_mib.unwrap_or_else(|| machine_memory_mib(host_memory_mib()));
        let disk = disk_bytes(&config.directory).saturating_sub(config.reserved_disk);
        let all = Room {
            cpus: cpus as u32,
            memory_mib: (memory as f64 * config.memory_overcommit) as u64,
            disk_gib: (disk as f64 * config.disk_overcommit) as u64 >> 30,
        };
        Self { all, pool: config.ipv4_pool, held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<MachineId, Reservation>> {
        self.held.lock()
    }

    /// What is left.
    pub fn free(&self) -> Room {
        self.left(&self.held())
    }

    fn left(&self, held: &HashMap<MachineId, Reservation>) -> Room {
        held.values().fold(self.all, |left, reservation| left.minus(reservation.room))
    }

    /// What is missing for so much, in words; `None` when it fits.
    pub fn shortage(&self, free: Room, wanted: Room) -> Option<String> {
        let all = self.all;
        [
            ("MiB of memory", wanted.memory_mib, free.memory_mib, all.memory_mib),
            ("CPUs", wanted.cpus.into(), free.cpus.into(), all.cpus.into()),
            ("GiB of disk", wanted.disk_gib, free.disk_gib, all.disk_gib),
        ]
        .into_iter()
        .find(|(_, wanted, free, _)| wanted > free)
        .map(|(what, wanted, free, all)| format!("{wanted} {what} needed, {free} of {all} free"))
    }

    /// Holds what a new machine needs, and an address for it.
    ///
    /// # Errors
    /// 422 when there is no room, with what is free.
    pub fn reserve(
        &self,
        machine: &MachineId,
        config: &MachineConfig,
    ) -> Result<Ipv4Addr, ApiError> {
        let (mut held, room) = (self.held(), Room::of(config));
        if let Some(shortage) = self.shortage(self.left(&held), room) {
            let text = format!("could not reserve resource for machine: {shortage}");
            return Err(ApiError::new(ErrorCode::InsufficientCapacity, text));
        }
        let taken = |address| held.values().any(|reservation| reservation.ipv4 == address);
        let ipv4 = caddis_network::allocate_ipv4(self.pool, taken).ok_or_else(|| {
            ApiError::new(
                ErrorCode::InsufficientCapacity,
                format!(
                    "could not reserve resource for machine: all addresses of {} are taken",
                    self.pool
                ),
            )
        })?;
        held.insert(machine.clone(), Reservation { room, ipv4 });
        Ok(ipv4)
    }

    /// Holds what a machine needs from now on in the place of what it held.
    ///
    /// # Errors
    /// 409 when there is no room; then it holds what it held.
    pub fn resize(&self, machine: &MachineId, config: &MachineConfig) -> Result<(), ApiError> {
        let (mut held, wanted) = (self.held(), Room::of(config));
        let others =
            held.iter().filter(|(id, _)| *id != machine).map(|(_, reservation)| reservation.room);
        let free = others.fold(self.all, Room::minus);
        let Some(current) = held.get_mut(machine) else { return Ok(()) };
        // One that shrinks is never refused, on a host that has promised too much either.
        if wanted.exceeds_anywhere(current.room)
            && let Some(shortage) = self.shortage(free, wanted)
        {
            return Err(ApiError::aborted(format!(
                "could not reserve resource for machine: {shortage}"
            )));
        }
        current.room = wanted;
        Ok(())
    }

    /// Holds what an existing machine has been promised, whether or not it still fits.
    pub fn restore(&self, machine: &MachineId, config: &MachineConfig, ipv4: Ipv4Addr) {
        self.held().insert(machine.clone(), Reservation { room: Room::of(config), ipv4 });
    }

    /// Gives back what a machine held.
    pub fn release(&self, machine: &MachineId) {
        self.held().remove(machine);
    }
}

/// What VMs that wait for machines may have of the host's memory together, MiB: it is not promised
/// to machines.
pub fn pool_memory_mib() -> u64 {
    host_memory_mib() / POOL_PART
}

/// What may be promised to machines of a host with so much, MiB.
fn machine_memory_mib(host: u64) -> u64 {
    host.saturating_sub(HOST_MEMORY_MIB + host / POOL_PART)
}

fn host_memory_mib() -> u64 {
    // Not to be had only where /proc is missing; then nothing else works either.
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total
        .and_then(|total| total.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// Size of the file system a directory is on; 0 when that can't be told.
fn disk_bytes(directory: &std::path::Path) -> u64 {
    nix::sys::statvfs::statvfs(directory).map_or(0, |stat| stat.blocks() * stat.fragment_size())
}

#[cfg(test)]
mod tests {
    use caddis_api::config::{Guest, Rootfs};

    use super::*;

    fn capacity(memory_overcommit: f64) -> Capacity {
        let room = Room { cpus: 4, memory_mib: (1024.0 * memory_overcommit) as u64, disk_gib: 40 };
        Capacity { all: room, pool: "10.0.0.0/30".parse().unwrap(), held: Mutex::default() }
    }

    fn config(cpus: u32, memory: u64, disk: u64) -> MachineConfig {
        MachineConfig {
            guest: Some(Guest { cpus: Some(cpus), memory_mb: Some(memory), ..Guest::default() }),
            rootfs: Some(Rootfs { size_gb: Some(disk), persist: None }),
            ..MachineConfig::default()
        }
    }

    #[test]
    fn each_resource_is_promised_once_and_told_when_it_is_short() {
        let capacity = capacity(1.0);
        let (first, other) = (MachineId::random(), MachineId::random());
        capacity.reserve(&first, &config(1, 512, 8)).unwrap();
        for (wanted, expected) in [
            (config(1, 768, 8), "768 MiB of memory needed, 512 of 1024 free"),
            (config(4, 256, 8), "4 CPUs needed, 3 of 4 free"),
            (config(1, 256, 33), "33 GiB of disk needed, 32 of 40 free"),
        ] {
            let error = capacity.reserve(&other, &wanted).unwrap_err();
            assert_eq!(error.code, ErrorCode::InsufficientCapacity);
            assert!(error.message.ends_with(expected), "{}", error.message);
        }
        capacity.reserve(&other, &config(3, 512, 32)).unwrap();
        assert_eq!(capacity.free(), Room { cpus: 0, memory_mib: 0, disk_gib: 0 });
        let error = capacity.resize(&first, &config(1, 768, 8)).unwrap_err();
        assert_eq!(error.code, ErrorCode::Aborted);
        capacity.release(&other);
        capacity.resize(&first, &config(1, 768, 8)).unwrap();
        assert_eq!(capacity.free(), Room { cpus: 3, memory_mib: 256, disk_gib: 32 });
    }

    #[test]
    fn a_host_that_has_promised_too_much_lets_machines_shrink() {
        let capacity = capacity(0.25);
        let machine = MachineId::random();
        capacity.restore(&machine, &config(8, 2048, 80), Ipv4Addr::LOCALHOST);
        capacity.resize(&machine, &config(8, 1024, 80)).unwrap();
        assert!(capacity.resize(&machine, &config(8, 1280, 80)).is_err());
        assert_eq!(capacity.free(), Room { cpus: 0, memory_mib: 0, disk_gib: 0 });
    }

    #[test]
    fn addresses_run_out_with_a_word_about_it() {
        let capacity = capacity(1.0);
        let mut refusal = None;
        for _ in 0..8 {
            refusal = capacity.reserve(&MachineId::random(), &config(0, 0, 0)).err().or(refusal);
        }
        assert!(
            refusal.is_some_and(|error| error.message.contains("all addresses of 10.0.0.0/30"))
        );
    }
}
