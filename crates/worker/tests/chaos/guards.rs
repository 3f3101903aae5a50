//! Whether leases kept others out, and whether each version was replaced once only.

use std::collections::{BTreeMap, HashSet};

use crate::registers::Time;

/// A change that succeeded, of those that a lease stands in the way of.
#[derive(Debug, Clone)]
pub struct Change {
    /// For who reads of it.
    #[expect(dead_code, reason = "shown")]
    pub what: &'static str,
    pub begun: Time,
    pub ended: Time,
    /// Milliseconds since the Unix epoch, at its answer.
    pub ended_ms: u64,
    /// What it had to show.
    pub nonce: Option<String>,
}

/// A lease that was granted.
#[derive(Debug, Clone)]
pub struct Lease {
    pub nonce: String,
    /// When it was held for certain.
    pub from: Time,
    /// When its end was asked for at the earliest.
    pub until: Time,
    /// Milliseconds since the Unix epoch.
    pub expires_ms: u64,
}

/// # Errors
/// The first change of a machine that came through while someone else held the lease.
pub fn check_leases(leases: &[Lease], changes: &[Change]) -> Result<(), String> {
    for lease in leases {
        let held = |change: &&Change| {
            change.begun > lease.from
                && change.ended < lease.until
                && change.ended_ms < lease.expires_ms
        };
        if let Some(change) =
            changes.iter().filter(held).find(|change| change.nonce.as_ref() != Some(&lease.nonce))
        {
            return Err(format!("{change:?} came through while {lease:?} was held"));
        }
    }
    Ok(())
}

/// An update that succeeded.
#[derive(Debug, Clone)]
pub struct Update {
    pub begun: Time,
    pub ended: Time,
    /// What it was to replace.
    pub expected: Option<String>,
    pub version: String,
}

/// # Errors
/// Two updates replaced the same version, or the versions do not rise.
pub fn check_updates(updates: &[Update]) -> Result<(), String> {
    let mut replaced = BTreeMap::new();
    let mut versions = HashSet::new();
    for update in updates {
        if let Some(expected) = &update.expected
            && let Some(other) = replaced.insert(expected, update)
        {
            return Err(format!("{update:?} and {other:?} replaced the same version"));
        }
        if !versions.insert(&update.version) {
            return Err(format!("{update:?} has a version that another has"));
        }
        let later = updates.iter().filter(|later| later.begun > update.ended);
        if let Some(later) = later.into_iter().find(|later| later.version <= update.version) {
            return Err(format!("{later:?} came after {update:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(begun: Time, nonce: Option<&str>) -> Change {
        Change {
            what: "stop",
            begun,
            ended: begun + 1,
            ended_ms: 5,
            nonce: nonce.map(str::to_owned),
        }
    }

    #[test]
    fn a_change_without_the_nonce_is_found() {
        let lease = Lease { nonce: "n".to_owned(), from: 10, until: 20, expires_ms: 100 };
        check_leases(
            std::slice::from_ref(&lease),
            &[change(5, None), change(12, Some("n")), change(21, None)],
        )
        .unwrap();
        check_leases(std::slice::from_ref(&lease), &[change(12, None)]).unwrap_err();
        check_leases(&[lease], &[change(12, Some("m"))]).unwrap_err();
    }

    #[test]
    fn a_version_that_is_replaced_twice_is_found() {
        let update = |begun, expected: &str, version: &str| Update {
            begun,
            ended: begun + 1,
            expected: Some(expected.to_owned()),
            version: version.to_owned(),
        };
        check_updates(&[update(1, "a", "b"), update(3, "b", "c")]).unwrap();
        check_updates(&[update(1, "a", "b"), update(3, "a", "c")]).unwrap_err();
        check_updates(&[update(1, "a", "c"), update(3, "c", "b")]).unwrap_err();
    }
}
