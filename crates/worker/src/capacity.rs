//! What of the host is promised to machines. A machine holds its promise from create to destroy, so that a start
//! never fails for room.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use caddis_api::{ApiError, ErrorCode, MachineConfig, MachineId};

use crate::WorkerConfig;

/// Memory that is left to the host itself when the configuration names no bound, MiB.
const HOST_MEMORY_MIB: u64 = 512;
/// The part of the host's memory that VMs which wait for machines may have.
const POOL_PART: u64 = 16;

/// One machine's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reservation {
    memory_mib: u64,
    cpus: u32,
    ipv4: Ipv4Addr,
}

/// The host's resources and who holds them.
pub struct Capacity {
    memory_mib: u64,
    cpus: u32,
    pool: ipnet::Ipv4Net,
    held: Mutex<HashMap<MachineId, Reservation>>,
}

/// What is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    /// MiB.
    pub memory_mib: u64,
    /// Virtual processors.
    pub cpus: u32,
}

impl Capacity {
    /// The resources of this host, as configured.
    pub fn new(config: &WorkerConfig) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let cpus = (processors as f64 * config.cpu_overcommit).floor().clamp(1.0, f64::from(u32::MAX));
        Self {
            memory_mib: config.memory_mib.unwrap_or_else(|| machine_memory_mib(host_memory_mib())),
            cpus: cpus as u32,
            pool: config.ipv4_pool,
            held: Mutex::default(),
        }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<MachineId, Reservation>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is left.
    pub fn free(&self) -> Free {
        Self::left(self, &self.held())
    }

    fn left(&self, held: &HashMap<MachineId, Reservation>) -> Free {
        let memory: u64 = held.values().map(|reservation| reservation.memory_mib).sum();
        let cpus: u64 = held.values().map(|reservation| u64::from(reservation.cpus)).sum();
        Free {
            memory_mib: self.memory_mib.saturating_sub(memory),
            cpus: u32::try_from(u64::from(self.cpus).saturating_sub(cpus)).unwrap_or(u32::MAX),
        }
    }

    /// What is missing for so much, in words; `None` when it fits.
    pub fn shortage(&self, free: Free, memory_mib: u64, cpus: u32) -> Option<String> {
        if memory_mib > free.memory_mib {
            return Some(format!(
                "{memory_mib} MiB of memory wanted, {} of {} MiB free",
                free.memory_mib, self.memory_mib
            ));
        }
        (cpus > free.cpus).then(|| format!("{cpus} CPUs wanted, {} of {} free", free.cpus, self.cpus))
    }

    /// Holds what a new machine needs, and an address for it.
    ///
    /// # Errors
    /// 422 when there is no room, with what is free.
    pub fn reserve(&self, machine: &MachineId, config: &MachineConfig) -> Result<Ipv4Addr, ApiError> {
        let mut held = self.held();
        if let Some(shortage) = self.shortage(self.left(&held), config.memory_mib(), config.cpus()) {
            let text = format!("could not reserve resource for machine: {shortage}");
            return Err(ApiError::new(ErrorCode::InsufficientCapacity, text));
        }
        let taken = |address| held.values().any(|reservation| reservation.ipv4 == address);
        let ipv4 = caddis_network::allocate_ipv4(self.pool, taken).ok_or_else(|| {
            ApiError::new(
                ErrorCode::InsufficientCapacity,
                format!("could not reserve resource for machine: all addresses of {} are taken", self.pool),
            )
        })?;
        held.insert(machine.clone(), Reservation { memory_mib: config.memory_mib(), cpus: config.cpus(), ipv4 });
        Ok(ipv4)
    }

    /// Holds what a machine needs from now on in the place of what it held.
    ///
    /// # Errors
    /// 409 when there is no room; then it holds what it held.
    pub fn resize(&self, machine: &MachineId, config: &MachineConfig) -> Result<(), ApiError> {
        let mut held = self.held();
        let mut free = self.left(&held);
        let Some(current) = held.get_mut(machine) else { return Ok(()) };
        let wanted = Reservation { memory_mib: config.memory_mib(), cpus: config.cpus(), ..*current };
        let grows = wanted.memory_mib > current.memory_mib || wanted.cpus > current.cpus;
        free.memory_mib += current.memory_mib;
        free.cpus = free.cpus.saturating_add(current.cpus);
        // One that shrinks is never refused, on a host that has promised too much either.
        if let Some(shortage) = self.shortage(free, wanted.memory_mib, wanted.cpus).filter(|_| grows) {
            return Err(ApiError::aborted(format!("could not reserve resource for machine: {shortage}")));
        }
        *current = wanted;
        Ok(())
    }

    /// Holds what an existing machine has been promised, whether or not it still fits.
    pub fn restore(&self, machine: &MachineId, config: &MachineConfig, ipv4: Ipv4Addr) {
        let reservation = Reservation { memory_mib: config.memory_mib(), cpus: config.cpus(), ipv4 };
        self.held().insert(machine.clone(), reservation);
    }

    /// Gives back what a machine held.
    pub fn release(&self, machine: &MachineId) {
        self.held().remove(machine);
    }
}

/// What VMs that wait for machines may have of the host's memory together, MiB: it is not promised to machines.
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
    let kib = total.and_then(|total| total.trim().strip_suffix("kB")).and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}
