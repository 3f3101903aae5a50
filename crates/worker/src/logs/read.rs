//! Reading log files back.
//!
//! Numbers rise from line to line and from segment to segment of a machine, so that a reader who
//! goes on from a number finds the place by halving instead of reading all that comes before it.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Seek as _, SeekFrom},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use caddis_api::EventId;

use super::Line;

/// Halving ends here: so much is read faster than looked for.
const NEAR_BYTES: u64 = 64 * 1024;

/// Which lines of a machine.
#[derive(Debug, Clone, Copy)]
pub struct Selection {
    /// After this number.
    pub after: u64,
    /// Up to this number.
    pub until: u64,
    /// Not of before this time, nanoseconds since the Unix epoch.
    pub since_ns: u64,
    /// Not of after this time.
    pub until_ns: u64,
    /// So many at most.
    pub limit: usize,
    /// The last ones, not the first ones.
    pub newest: bool,
}

impl Selection {
    /// All lines of any time.
    #[cfg(test)]
    pub const ALL: Self = Self {
        after: 0,
        until: u64::MAX,
        since_ns: 0,
        until_ns: u64::MAX,
        limit: usize::MAX,
        newest: false,
    };

    fn holds(&self, line: &Line) -> bool {
        line.number > self.after
            && line.number <= self.until
            && (self.since_ns..=self.until_ns).contains(&line.time_ns)
    }
}

/// Lines of the machine whose files are in `directory`, oldest first.
pub fn select(directory: &Path, selection: &Selection) -> io::Result<Vec<Line>> {
    let mut lines = VecDeque::new();
    each(directory, selection.after, |line| {
        if line.number > selection.until || (!selection.newest && lines.len() >= selection.limit) {
            return ControlFlow::Break(());
        }
        if selection.holds(&line) {
            lines.push_back(line);
            if lines.len() > selection.limit {
                lines.pop_front();
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(lines.into())
}

/// Files of a machine with their numbers, oldest first.
pub fn segments(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let number =
            path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        if let Some(number) = number {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Calls `each` with lines in order until it breaks off; those after `after` are among them, few
/// others.
pub fn each(
    directory: &Path,
    after: u64,
    mut each: impl FnMut(Line) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut files = Vec::new();
    for (_, path) in segments(directory)?.into_iter().rev() {
        let file = match File::open(&path) {
            Ok(file) => file,
            // Removed meanwhile because newer ones filled up.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let mut reader = BufReader::new(file);
        let first = next(&mut reader)?;
        let begins_before = first.is_some_and(|(_, line)| line.number <= after);
        files.push(reader);
        if begins_before {
            break;
        }
    }
    for mut reader in files.into_iter().rev() {
        let begin = near(&mut reader, after)?;
        reader.seek(SeekFrom::Start(begin))?;
        while let Some((_, line)) = next(&mut reader)? {
            if each(line).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The number of the last line in a file, 0 when there is none.
pub fn last_number(path: &Path) -> io::Result<u64> {
    let mut reader = BufReader::new(File::open(path)?);
    let begin = near(&mut reader, u64::MAX)?;
    reader.seek(SeekFrom::Start(begin))?;
    let mut last = 0;
    while let Some((_, line)) = next(&mut reader)? {
        last = last.max(line.number);
    }
    Ok(last)
}

/// What was written last of a machine.
#[derive(Debug, Default)]
pub struct Newest {
    /// Number of its last line, 0 when there is none.
    pub number: u64,
    /// The last event that a line tells of.
    pub event: Option<EventId>,
}

/// What was written last of the machine whose files are in `directory`. Reads their ends, mostly.
pub fn newest(directory: &Path) -> io::Result<Newest> {
    let mut found = Newest::default();
    for (_, path) in segments(directory)?.into_iter().rev() {
        let mut reader = BufReader::new(File::open(path)?);
        let near = near(&mut reader, u64::MAX)?;
        // Mostly it is near the end; all else is read when it is not.
        for begin in [near, 0].into_iter().take(if near > 0 { 2 } else { 1 }) {
            reader.seek(SeekFrom::Start(begin))?;
            while let Some((_, line)) = next(&mut reader)? {
                found.number = found.number.max(line.number);
                found.event = line.event.or(found.event);
            }
            if found.event.is_some() {
                return Ok(found);
            }
        }
    }
    Ok(found)
}

/// The next line that can be read, and how many bytes it and those before it that can't have. The
/// last one may be half written, now or because this process was killed.
fn next(reader: &mut BufReader<File>) -> io::Result<Option<(u64, Line)>> {
    let (mut bytes, mut text) = (0, Vec::new());
    loop {
        let read = reader.read_until(b'\n', &mut text)?;
        if read == 0 {
            return Ok(None);
        }
        bytes += read as u64;
        if let Ok(line) = serde_json::from_slice(&text) {
            return Ok(Some((bytes, line)));
        }
        text.clear();
    }
}

/// Where to begin in a file so that no line after `after` is missed: the start of some line.
fn near(reader: &mut BufReader<File>, after: u64) -> io::Result<u64> {
    let (mut low, mut high) = (0, reader.seek(SeekFrom::End(0))?);
    while after > 0 && high - low > NEAR_BYTES {
        let middle = low + (high - low) / 2;
        reader.seek(SeekFrom::Start(middle))?;
        let begun = reader.skip_until(b'\n')? as u64;
        match next(reader)? {
            Some((_, line)) if line.number <= after => low = middle + begun,
            _ => high = middle,
        }
    }
    Ok(low)
}
