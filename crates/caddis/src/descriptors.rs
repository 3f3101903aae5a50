//! The limit of open files, and what part of it connections may take.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{info, warn};

/// More is of no use, and programs that close all descriptors one after the other take long.
const WANTED: u64 = 1 << 20;
/// Fewer, and a busy server may run out: each machine that runs takes a handful.
const FEW: u64 = 4096;
/// Most connections, whatever the limit.
const MOST_CONNECTIONS: u64 = 4096;
/// Fewest.
const FEWEST_CONNECTIONS: u64 = 16;

/// Raises the limit of open files as far as allowed, and gives the most connections: half of it at
/// most, so that VMs, databases and images have the other.
pub fn raise() -> usize {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            warn!(%error, "can't read the limit of open files");
            return connections(FEW);
        }
    };
    let wanted = hard.min(WANTED).max(soft);
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => wanted,
        Err(error) => {
            warn!(%error, soft, hard, "can't raise the limit of open files");
            soft
        }
    };
    let connections = connections(limit);
    if limit < FEW {
        warn!(
            limit,
            connections,
            "low limit of open files; raise the hard limit (LimitNOFILE= of the service, ulimit \
             -Hn)"
        );
    } else {
        info!(limit, connections, "limits of open files and of connections");
    }
    connections
}

fn connections(limit: u64) -> usize {
    (limit / 2).clamp(FEWEST_CONNECTIONS, MOST_CONNECTIONS) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_half_of_the_files_at_most() {
        for (limit, expected) in
            [(1, 16), (256, 128), (1024, 512), (1 << 20, 4096), (u64::MAX, 4096)]
        {
            assert_eq!(connections(limit), expected, "{limit}");
        }
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(raise() >= 16);
        let (soft, still) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!((soft.min(WANTED), still), (hard.min(WANTED), hard));
    }
}
