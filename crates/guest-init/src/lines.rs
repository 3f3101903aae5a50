//! Cuts what a program writes into records: at line ends where there are any, and never within a
//! character.

use caddis_guest_protocol::text;

/// Largest record, bytes.
pub const LARGEST: usize = 16 * 1024;

/// A record.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    /// What it says.
    pub text: Vec<u8>,
    /// It ends in the middle of a line that is too long for one.
    pub partial: bool,
}

/// What was read of one stream and is not yet a record.
#[derive(Debug, Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Takes bytes and gives the records they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Record> {
        self.rest.extend_from_slice(bytes);
        let mut records = Vec::new();
        while self.rest.len() >= LARGEST {
            let window = &self.rest[..LARGEST];
            let line_end = window.iter().rposition(|byte| *byte == b'\n').map(|end| end + 1);
            let cut = line_end.unwrap_or_else(|| text::whole(window));
            records.push(Record {
                text: self.rest.drain(..cut).collect(),
                partial: line_end.is_none(),
            });
        }
        if let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') {
            records.push(Record { text: self.rest.drain(..=end).collect(), partial: false });
        }
        records
    }

    /// Whether part of a line waits for its end.
    pub fn has_rest(&self) -> bool {
        !self.rest.is_empty()
    }

    /// The part of a line that nothing has completed in time, without a character that is not whole
    /// yet.
    pub fn take_whole(&mut self) -> Option<Record> {
        let text: Vec<u8> = self.rest.drain(..text::whole(&self.rest)).collect();
        Some(Record { text, partial: false }).filter(|record| !record.text.is_empty())
    }

    /// All that nothing has completed: nothing more comes.
    pub fn take_rest(&mut self) -> Option<Record> {
        let text = std::mem::take(&mut self.rest);
        Some(Record { text, partial: false }).filter(|record| !record.text.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &[u8]) -> Record {
        Record { text: text.to_vec(), partial: false }
    }

    #[test]
    fn records_end_with_lines_and_are_bounded() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"a\nb\nc"), [record(b"a\nb\n")]);
        assert!(lines.has_rest());
        assert_eq!(lines.push(b"d\n"), [record(b"cd\n")]);
        assert!(!lines.has_rest() && lines.take_rest().is_none());
        let long = vec![b'x'; 2 * LARGEST + 5];
        let records = lines.push(&long);
        assert!(
            records.iter().all(|record| record.text.len() == LARGEST && record.partial)
                && records.len() == 2
        );
        assert_eq!(lines.take_rest().unwrap().text.len(), 5);
    }

    #[test]
    fn no_record_ends_within_a_character_unless_the_stream_does() {
        for character in ["ż", "日", "🐢"] {
            for before in 0..4 {
                let text = [&vec![b'x'; before][..], character.repeat(LARGEST).as_bytes()].concat();
                let mut lines = Lines::default();
                let mut all = Vec::new();
                for bytes in text.chunks(1000) {
                    for record in lines.push(bytes).into_iter().chain(lines.take_whole()) {
                        assert!(std::str::from_utf8(&record.text).is_ok());
                        all.extend(record.text);
                    }
                }
                assert!(all == text && lines.take_rest().is_none(), "{character}, {before}");
            }
        }
        let mut lines = Lines::default();
        assert_eq!(lines.push("Gr\u{fc}".as_bytes()[..3].as_ref()), []);
        assert_eq!(lines.take_whole(), Some(record(b"Gr")));
        assert_eq!(lines.take_whole(), None);
        assert_eq!(lines.push(b"\xbc\xff"), []);
        assert_eq!(
            lines.take_whole(),
            Some(record(b"\xc3\xbc\xff")),
            "what is no character waits for nothing"
        );
        assert_eq!(lines.push(b"\xe6"), []);
        assert_eq!((lines.take_whole(), lines.take_rest()), (None, Some(record(b"\xe6"))));
    }
}
