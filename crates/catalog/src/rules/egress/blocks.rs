//! Blocks of ports: what machines have of the egress addresses of their app.

use std::{collections::HashSet, net::IpAddr};

use caddis_api::MachineId;

use crate::{
    Placement,
    store::{EgressBlockRow, EgressRow, EgressTable},
};

/// Ports of a block.
const BLOCK_PORTS: u16 = 1024;
/// Blocks of an address, so machines that share it.
const BLOCKS: u16 = 64;

pub(super) fn is_own(row: &EgressRow, machine: &MachineId) -> bool {
    row.machine.as_ref() == Some(machine) && row.released.is_none()
}

/// The block that is given as this one: that with the lowest ports comes last, since some treat
/// what comes from those as a server.
pub(super) fn block(order: u16) -> u16 {
    (order + 1) % BLOCKS
}

pub(super) fn ports(block: u16) -> (u16, u16) {
    let first = block * BLOCK_PORTS;
    // 0 is no port.
    (first.max(1), first + (BLOCK_PORTS - 1))
}

/// Sees to it that what machines of an app have follows from its addresses: addresses of machines
/// that are gone are released; each machine that has none of its own has a block of one of the
/// app's in its region, for each family, as far as there are any. Who has a block keeps it.
pub(super) fn settle(table: &mut EgressTable, app: i32, machines: &[Placement]) {
    let revision = table.revision + 1;
    for row in table.addresses.iter_mut().filter(|row| row.app == app) {
        let is_gone = |machine| !machines.iter().any(|placement| placement.machine == machine);
        if row.released.is_none() && row.machine.clone().is_some_and(is_gone) {
            row.released = Some(revision);
        }
    }
    let of_app: Vec<_> = table.addresses.iter().filter(|row| row.app == app).cloned().collect();
    let usable = |machine: &Placement, is_v6: bool| {
        let has_own =
            of_app.iter().any(|row| is_own(row, &machine.machine) && row.ip.is_ipv6() == is_v6);
        let region = machine.region.clone();
        of_app.iter().filter(move |row| {
            !has_own
                && row.released.is_none()
                && row.machine.is_none()
                && region == *row.region
                && row.ip.is_ipv6() == is_v6
        })
    };
    let mut seen = HashSet::new();
    table.blocks.retain(|block| {
        if !of_app.iter().any(|row| row.ip == block.ip) {
            return true;
        }
        let machine = machines.iter().find(|placement| placement.machine == block.machine);
        machine.is_some_and(|machine| {
            let is_v6 = block.ip.is_ipv6();
            usable(machine, is_v6).any(|row| row.ip == block.ip)
                && seen.insert((block.machine.clone(), is_v6))
        })
    });
    for machine in machines {
        for is_v6 in [false, true] {
            if seen.contains(&(machine.machine.clone(), is_v6)) {
                continue;
            }
            // The other address of its pair, and the same block there, where it can be.
            let other = table.blocks.iter().find(|block| block.machine == machine.machine);
            let pair = other.and_then(|other| of_app.iter().find(|row| row.ip == other.ip));
            let (pair, wanted) = (pair.map(|row| row.pair), other.map(|other| other.block));
            let free = |ip: IpAddr| {
                let is_free = |number: &u16| {
                    !table.blocks.iter().any(|it| it.ip == ip && it.block == *number)
                };
                let all = wanted.into_iter().chain((0..BLOCKS).map(block));
                all.filter(is_free).collect::<Vec<_>>()
            };
            let choice = usable(machine, is_v6)
                .map(|row| (row, free(row.ip)))
                .filter(|(_, free)| !free.is_empty())
                .max_by_key(|(row, free)| (Some(row.pair) == pair, free.len()));
            if let Some((row, free)) = choice
                && let Some(block) = free.first()
            {
                let (ip, block, machine) = (row.ip, *block, machine.machine.clone());
                table.blocks.push(EgressBlockRow { ip, block, machine });
            }
        }
    }
}
