//! Log records that no host has acknowledged. Bounded: the oldest go first, and how many went is
//! told.

use std::collections::VecDeque;

use bytes::Bytes;
use caddis_guest_protocol::{
    GuestMessage, LOG_BACKLOG_BYTES, LOG_WINDOW_BYTES, message::LogSource,
};

use crate::{clock, lines};

/// What a record counts beside its text, as the host counts it.
const RECORD: usize = 64;

#[derive(Debug)]
struct Record {
    sequence: u64,
    source: LogSource,
    time_ns: u64,
    dropped_before: u64,
    partial: bool,
    text: Bytes,
}

impl Record {
    fn size(&self) -> usize {
        self.text.len() + RECORD
    }
}

/// The backlog.
#[derive(Debug)]
pub struct Backlog {
    records: VecDeque<Record>,
    bytes: usize,
    next: u64,
    /// Newest record that was sent on this connection.
    sent: u64,
    /// Bytes sent and not acknowledged.
    ahead: usize,
}

impl Backlog {
    /// Nothing yet; records are counted from 1.
    pub fn new() -> Self {
        Self { records: VecDeque::new(), bytes: 0, next: 1, sent: 0, ahead: 0 }
    }

    /// Adds a record.
    pub fn push(&mut self, source: LogSource, record: lines::Record) {
        self.push_at(source, record, clock::now_ns());
    }

    fn push_at(&mut self, source: LogSource, record: lines::Record, time_ns: u64) {
        let lines::Record { text, partial } = record;
        let record = Record {
            sequence: self.next,
            source,
            time_ns,
            dropped_before: 0,
            partial,
            text: text.into(),
        };
        self.next += 1;
        self.bytes += record.size();
        self.records.push_back(record);
        while self.bytes > LOG_BACKLOG_BYTES {
            // What was sent may arrive yet: it is kept for as long as its window, which is a part
            // of the backlog.
            let at = self.records.partition_point(|record| record.sequence <= self.sent);
            let Some(dropped) = self.records.remove(at) else { break };
            self.bytes -= dropped.size();
            if let Some(next) = self.records.get_mut(at) {
                next.dropped_before += dropped.dropped_before + 1;
            }
        }
    }

    /// A host has connected, which has all records up to this one.
    pub fn restart(&mut self, acknowledged: u64) {
        self.sent = acknowledged;
        self.ahead = 0;
        self.acknowledge(acknowledged);
    }

    /// Records up to this one are safe.
    pub fn acknowledge(&mut self, sequence: u64) {
        while let Some(first) = self.records.front()
            && first.sequence <= sequence
        {
            let size = first.size();
            if first.sequence <= self.sent {
                self.ahead = self.ahead.saturating_sub(size);
            }
            self.bytes -= size;
            self.records.pop_front();
        }
        self.sent = self.sent.max(sequence);
    }

    /// The next record to send, if the window has room for it.
    pub fn next(&mut self) -> Option<(GuestMessage, Bytes)> {
        let at = self.records.partition_point(|record| record.sequence <= self.sent);
        let record = self.records.get(at)?;
        if self.ahead + record.size() > LOG_WINDOW_BYTES {
            return None;
        }
        self.ahead += record.size();
        self.sent = record.sequence;
        let Record { sequence, source, time_ns, dropped_before, partial, .. } = *record;
        let message = GuestMessage::Log { sequence, source, time_ns, dropped_before, partial };
        Some((message, record.text.clone()))
    }

    /// Whether all has been sent.
    pub fn is_sent(&self) -> bool {
        self.records.back().is_none_or(|last| last.sequence <= self.sent)
    }

    /// Whether all is safe.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: usize) -> lines::Record {
        lines::Record { text: vec![b'x'; bytes], partial: false }
    }

    fn sequences(backlog: &mut Backlog) -> Vec<(u64, u64)> {
        std::iter::from_fn(|| backlog.next())
            .map(|(message, _)| match message {
                GuestMessage::Log { sequence, dropped_before, .. } => (sequence, dropped_before),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn records_are_sent_once_within_the_window_and_again_to_a_new_host() {
        let mut backlog = Backlog::new();
        let record = LOG_WINDOW_BYTES / 4 - RECORD;
        for _ in 0..6 {
            backlog.push_at(LogSource::Stdout, of(record), 0);
        }
        assert_eq!(sequences(&mut backlog), [(1, 0), (2, 0), (3, 0), (4, 0)]);
        backlog.acknowledge(2);
        assert_eq!(sequences(&mut backlog), [(5, 0), (6, 0)]);
        assert!(backlog.is_sent() && !backlog.is_empty());
        backlog.restart(3);
        assert_eq!(sequences(&mut backlog), [(4, 0), (5, 0), (6, 0)]);
        backlog.acknowledge(6);
        assert!(backlog.is_empty());
    }

    #[test]
    fn beyond_the_backlog_the_oldest_unsent_go_and_are_counted() {
        let mut backlog = Backlog::new();
        let record = LOG_WINDOW_BYTES / 4 - RECORD;
        for _ in 0..4 {
            backlog.push_at(LogSource::Stdout, of(record), 0);
        }
        assert_eq!(sequences(&mut backlog).len(), 4);
        for _ in 0..20 {
            backlog.push_at(LogSource::Stdout, of(record), 0);
        }
        backlog.acknowledge(4);
        // 24 records in all, of which 16 fit.
        assert_eq!(sequences(&mut backlog), [(13, 8), (14, 0), (15, 0), (16, 0)]);
    }
}
