//! Notices lost deltas. Pure.

use std::collections::HashMap;

use caddis_api::WorkerId;

/// What is to be done after a delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing was lost.
    GoOn,
    /// Something was lost, or the worker is new to us or began anew.
    List,
}

/// The last delta seen of each worker.
#[derive(Debug, Default)]
pub(crate) struct Sequences(HashMap<WorkerId, (String, u64)>);

impl Sequences {
    /// Takes note of a delta.
    pub fn saw(&mut self, worker: &WorkerId, incarnation: &str, sequence: u64, known: bool) -> Next {
        match self.0.get_mut(worker) {
            Some((current, last)) if current == incarnation => {
                let next = if sequence > *last + 1 { Next::List } else { Next::GoOn };
                *last = sequence.max(*last);
                next
            }
            before => {
                // We subscribed before we listed: the first delta of a worker that is listed anyway is no hole.
                let next = if before.is_none() && known { Next::GoOn } else { Next::List };
                self.0.insert(worker.clone(), (incarnation.to_owned(), sequence));
                next
            }
        }
    }
}

impl Sequences {
    /// Takes note of the number of the last delta that a worker says it has published.
    pub fn announced(&mut self, worker: &WorkerId, incarnation: &str, sequence: u64, known: bool) -> Next {
        match self.0.get_mut(worker) {
            Some((current, last)) if current == incarnation => {
                let next = if sequence > *last { Next::List } else { Next::GoOn };
                *last = sequence.max(*last);
                next
            }
            _ => self.saw(worker, incarnation, sequence, known),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_new_workers_and_new_incarnations_ask_for_a_listing() {
        let (mut sequences, worker) = (Sequences::default(), WorkerId::from_trusted("w"));
        let mut saw = |incarnation: &str, sequence| sequences.saw(&worker, incarnation, sequence, false);
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
}
