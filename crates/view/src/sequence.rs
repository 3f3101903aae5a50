//! Notices lost deltas. Pure.

use std::collections::HashMap;

use caddis_api::WorkerId;

/// What is to be done after something was heard of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing was lost.
    GoOn,
    /// Something was lost, or the worker is new to us or began anew.
    List,
}

/// Which deltas of each worker were seen.
#[derive(Debug, Default)]
pub(crate) struct Sequences(HashMap<WorkerId, Seen>);

#[derive(Debug)]
struct Seen {
    incarnation: String,
    /// The first delta that was seen and is not known to be contained in a listing.
    first: Option<u64>,
    last: u64,
}

impl Sequences {
    /// Takes note of a delta. `is_listed` when the worker is being listed, or was.
    pub fn saw(
        &mut self,
        worker: &WorkerId,
        incarnation: &str,
        sequence: u64,
        is_listed: bool,
    ) -> Next {
        match self.0.get_mut(worker) {
            Some(seen) if seen.incarnation == incarnation => {
                let next = if sequence > seen.last + 1 { Next::List } else { Next::GoOn };
                seen.last = sequence.max(seen.last);
                next
            }
            before => {
                // We subscribed before we listed: whether it is a hole, the end of the listing will
                // tell.
                let next = if before.is_none() && is_listed { Next::GoOn } else { Next::List };
                let seen = Seen {
                    incarnation: incarnation.to_owned(),
                    first: Some(sequence),
                    last: sequence,
                };
                self.0.insert(worker.clone(), seen);
                next
            }
        }
    }

    /// Takes note of the number of the last delta that a worker says it has published.
    pub fn announced(
        &mut self,
        worker: &WorkerId,
        incarnation: &str,
        sequence: u64,
        is_listed: bool,
    ) -> Next {
        match self.0.get_mut(worker) {
            Some(seen) if seen.incarnation == incarnation => {
                let next = if sequence > seen.last { Next::List } else { Next::GoOn };
                seen.last = sequence.max(seen.last);
                next
            }
            // As if the one after it came first.
            _ => match self.saw(worker, incarnation, sequence, is_listed) {
                Next::List => Next::List,
                Next::GoOn => {
                    self.0.entry(worker.clone()).and_modify(|seen| seen.first = Some(sequence + 1));
                    Next::GoOn
                }
            },
        }
    }

    /// A listing has ended that contains the deltas up to a number.
    pub fn listed(&mut self, worker: &WorkerId, incarnation: &str, sequence: u64) -> Next {
        match self.0.get_mut(worker) {
            Some(seen) if seen.incarnation == incarnation => {
                let is_hole = seen.first.take().is_some_and(|first| first > sequence + 1);
                seen.last = sequence.max(seen.last);
                if is_hole { Next::List } else { Next::GoOn }
            }
            // It began anew meanwhile.
            Some(_) => Next::List,
            None => {
                let seen =
                    Seen { incarnation: incarnation.to_owned(), first: None, last: sequence };
                self.0.insert(worker.clone(), seen);
                Next::GoOn
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_new_workers_and_new_incarnations_ask_for_a_listing() {
        let (mut sequences, worker) = (Sequences::default(), WorkerId::from_trusted("w"));
        let mut saw =
            |incarnation: &str, sequence| sequences.saw(&worker, incarnation, sequence, false);
        assert_eq!(saw("a", 5), Next::List, "unknown worker");
        assert_eq!(saw("a", 6), Next::GoOn);
        assert_eq!(saw("a", 6), Next::GoOn, "repeated");
        assert_eq!(saw("a", 8), Next::List, "7 is missing");
        assert_eq!(saw("a", 7), Next::GoOn, "late");
        assert_eq!(saw("a", 9), Next::GoOn);
        assert_eq!(saw("b", 1), Next::List, "new incarnation");
        assert_eq!(sequences.announced(&worker, "b", 1, true), Next::GoOn);
        assert_eq!(sequences.announced(&worker, "b", 2, true), Next::List, "2 was lost");
        assert_eq!(sequences.announced(&worker, "b", 2, true), Next::GoOn);
        assert_eq!(sequences.announced(&worker, "c", 0, true), Next::List, "new incarnation");
        let other = WorkerId::from_trusted("x");
        assert_eq!(sequences.saw(&other, "a", 3, true), Next::GoOn, "it is being listed");
    }

    #[test]
    fn what_was_lost_between_a_first_listing_and_what_is_heard_first_is_found() {
        let worker = WorkerId::from_trusted("w");
        for (listed, saw, next) in
            [(3, 4, Next::GoOn), (3, 2, Next::GoOn), (3, 5, Next::List), (0, 1, Next::GoOn)]
        {
            let mut sequences = Sequences::default();
            assert_eq!(sequences.saw(&worker, "a", saw, true), Next::GoOn);
            assert_eq!(
                sequences.listed(&worker, "a", listed),
                next,
                "listed at {listed}, then {saw}"
            );
            let mut sequences = Sequences::default();
            assert_eq!(sequences.listed(&worker, "a", listed), Next::GoOn);
            assert_eq!(
                sequences.saw(&worker, "a", saw, true),
                next,
                "{saw} after the listing at {listed}"
            );
        }
        let mut sequences = Sequences::default();
        assert_eq!(sequences.saw(&worker, "b", 3, true), Next::GoOn);
        assert_eq!(sequences.listed(&worker, "a", 9), Next::List, "it was of an earlier process");
        for (listed, announced, next) in
            [(3, 3, Next::GoOn), (3, 2, Next::GoOn), (3, 4, Next::List)]
        {
            let mut sequences = Sequences::default();
            assert_eq!(sequences.announced(&worker, "a", announced, true), Next::GoOn);
            assert_eq!(
                sequences.listed(&worker, "a", listed),
                next,
                "listed at {listed}, announced {announced}"
            );
            let mut sequences = Sequences::default();
            assert_eq!(sequences.listed(&worker, "a", listed), Next::GoOn);
            assert_eq!(sequences.announced(&worker, "a", announced, true), next);
        }
    }
}
