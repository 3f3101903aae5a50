//! Cuts what a program writes into records: at line ends where there are any.

/// Largest record, bytes.
pub const LARGEST: usize = 16 * 1024;

/// What was read of one stream and is not yet a record.
#[derive(Debug, Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Takes bytes and gives the records they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.rest.extend_from_slice(bytes);
        let mut records = Vec::new();
        while self.rest.len() >= LARGEST {
            let window = &self.rest[..LARGEST];
            let cut = window.iter().rposition(|byte| *byte == b'\n').map_or(LARGEST, |end| end + 1);
            records.push(self.rest.drain(..cut).collect());
        }
        if let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') {
            records.push(self.rest.drain(..=end).collect());
        }
        records
    }

    /// Whether part of a line waits for its end.
    pub fn has_rest(&self) -> bool {
        !self.rest.is_empty()
    }

    /// The part of a line that nothing has completed.
    pub fn take_rest(&mut self) -> Option<Vec<u8>> {
        Some(std::mem::take(&mut self.rest)).filter(|rest| !rest.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_end_with_lines_and_are_bounded() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"a\nb\nc"), [b"a\nb\n".to_vec()]);
        assert!(lines.has_rest());
        assert_eq!(lines.push(b"d\n"), [b"cd\n".to_vec()]);
        assert!(!lines.has_rest() && lines.take_rest().is_none());
        let long = vec![b'x'; 2 * LARGEST + 5];
        let records = lines.push(&long);
        assert_eq!(records.iter().map(Vec::len).collect::<Vec<_>>(), [LARGEST, LARGEST]);
        assert_eq!(lines.take_rest().unwrap().len(), 5);
    }
}
