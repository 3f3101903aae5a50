//! Which machine gets a request (runtime-semantics §3.2). Pure.

use std::cmp::Ordering;

/// How busy a machine's service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    /// Connections or requests in progress.
    pub in_use: u32,
    pub soft: u32,
    pub hard: Option<u32>,
    /// 0 for the nearest region.
    pub tier: u8,
}

impl Load {
    /// 0 below the soft limit, 1 from there on, nothing at the hard limit.
    pub(crate) fn bucket(&self) -> Option<u8> {
        if self.hard.is_some_and(|hard| self.in_use >= hard) {
            None
        } else {
            Some(u8::from(self.in_use >= self.soft))
        }
    }

    /// The region first, then the bucket, then how full it is in relation to its soft limit.
    fn compare(&self, other: &Self) -> Ordering {
        let full = |load: &Self| load.bucket().unwrap_or(2);
        // A limit of 0 is as full as can be, but one more is still worse.
        let limit = |load: &Self| u64::from(load.soft.max(1));
        self.tier.cmp(&other.tier).then_with(|| full(self).cmp(&full(other))).then_with(|| {
            let (mine, theirs) = (u64::from(self.in_use), u64::from(other.in_use));
            (mine * limit(other)).cmp(&(theirs * limit(self)))
        })
    }
}

/// The best of those that can take more. `random` gives a number below its argument, for ties.
pub(crate) fn best<T>(
    candidates: impl Iterator<Item = (T, Load)>,
    mut random: impl FnMut(u32) -> u32,
) -> Option<(T, Load)> {
    let mut best: Option<(T, Load)> = None;
    let mut ties = 1;
    for (candidate, load) in candidates {
        if load.bucket().is_none() {
            continue;
        }
        let order = best.as_ref().map_or(Ordering::Less, |(_, least)| load.compare(least));
        let is_better = match order {
            Ordering::Less => {
                ties = 1;
                true
            }
            Ordering::Equal => {
                ties += 1;
                random(ties) == 0
            }
            Ordering::Greater => false,
        };
        if is_better {
            best = Some((candidate, load));
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load(in_use: u32, soft: u32, hard: Option<u32>, tier: u8) -> Load {
        Load { in_use, soft, hard, tier }
    }

    fn chosen(loads: &[Load]) -> Option<usize> {
        best(loads.iter().copied().enumerate(), |_| 1).map(|(index, _)| index)
    }

    #[test]
    fn the_choice_follows_region_then_bucket_then_load() {
        let table: &[(&[Load], Option<usize>)] = &[
            (&[], None),
            (&[load(5, 5, Some(5), 0)], None),
            // Least loaded of those below their soft limits.
            (&[load(3, 20, None, 0), load(1, 20, None, 0)], Some(1)),
            // In relation to the limit.
            (&[load(3, 20, None, 0), load(2, 4, None, 0)], Some(0)),
            // Below the soft limit before above it, even if fuller in numbers.
            (&[load(5, 5, Some(50), 0), load(19, 20, None, 0)], Some(1)),
            // The soft limit does not send traffic to another region.
            (&[load(25, 20, Some(30), 0), load(0, 20, None, 1)], Some(0)),
            // The hard limit does.
            (&[load(30, 20, Some(30), 0), load(0, 20, None, 1)], Some(1)),
        ];
        for (loads, expected) in table {
            assert_eq!(chosen(loads), *expected, "{loads:?}");
        }
    }

    #[test]
    fn ties_are_drawn() {
        let loads = [load(1, 20, None, 0); 3];
        let draw = |wanted: u32| {
            best(loads.iter().enumerate().map(|(i, l)| (i, *l)), |ties| u32::from(ties != wanted))
                .map(|(index, _)| index)
        };
        assert_eq!((draw(9), draw(2), draw(3)), (Some(0), Some(1), Some(2)));
    }

    proptest! {
        #[test]
        fn nothing_at_its_hard_limit_is_chosen(
            loads in prop::collection::vec(
                (0u32..6, 0u32..4, prop::option::of(0u32..6), 0u8..2), 0..8)
        ) {
            let loads: Vec<_> =
                loads.into_iter().map(|(c, s, h, t)| load(c, s, h, t)).collect();
            match chosen(&loads) {
                Some(index) => {
                    prop_assert!(loads[index].bucket().is_some());
                    for other in loads.iter().filter(|load| load.bucket().is_some()) {
                        prop_assert!(loads[index].compare(other) != Ordering::Greater);
                    }
                }
                None => prop_assert!(loads.iter().all(|load| load.bucket().is_none())),
            }
        }
    }
}
