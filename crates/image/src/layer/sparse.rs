//! Sparse files in tar archives: GNU's old headers and the three ways to say it in pax records.
//! (Formats: GNU tar manual, "Storing Sparse Files".)

use std::io::{self, BufRead, Read};

use super::pax;

/// More pieces than this in one file is an attack on memory.
const MOST_SEGMENTS: usize = 1 << 18;

/// Where data goes in the file; all else is a hole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SparseMap {
    /// Offset and length, in order.
    pub(crate) segments: Vec<(u64, u64)>,
    /// Size of the file with its holes.
    pub(crate) file_size: u64,
}

impl SparseMap {
    /// Whether the pieces are in order, within the file, and as much as the archive holds.
    pub(crate) fn is_sound(&self, data_size: u64) -> bool {
        let mut end = 0u64;
        let mut sum = 0u64;
        for (offset, length) in &self.segments {
            let Some(next) = offset.checked_add(*length) else { return false };
            if *offset < end || next > self.file_size {
                return false;
            }
            end = next;
            sum += length;
        }
        sum == data_size
    }
}

/// The map of an old GNU header (type `S`), whose further blocks follow in the stream.
pub(crate) fn from_gnu_header(
    header: &tar::GnuHeader,
    stream: &mut impl Read,
) -> io::Result<SparseMap> {
    let mut segments = Vec::new();
    let mut push = |piece: &tar::GnuSparseHeader| -> io::Result<()> {
        if !piece.is_empty() {
            segments.push((piece.offset()?, piece.length()?));
        }
        if segments.len() > MOST_SEGMENTS { Err(too_many()) } else { Ok(()) }
    };
    for piece in &header.sparse {
        push(piece)?;
    }
    let mut more = header.is_extended();
    while more {
        let mut block = tar::GnuExtSparseHeader::new();
        stream.read_exact(block.as_mut_bytes())?;
        for piece in block.sparse() {
            push(piece)?;
        }
        more = block.is_extended();
    }
    Ok(SparseMap { segments, file_size: header.real_size()? })
}

/// What pax records say about a sparse file.
#[derive(Debug, Default)]
pub(crate) struct PaxSparse {
    major: Option<u64>,
    size: Option<u64>,
    offsets: Vec<u64>,
    lengths: Vec<u64>,
    bad: bool,
    /// The file's real name (its header holds a made-up one).
    pub(crate) name: Option<Vec<u8>>,
}

impl PaxSparse {
    /// Takes in one record whose key starts with `GNU.sparse.`.
    pub(crate) fn record(&mut self, key: &[u8], value: &[u8]) {
        let number = pax::number(value);
        match key {
            b"major" => self.major = number,
            b"size" | b"realsize" => self.size = number,
            b"name" => self.name = Some(value.to_vec()),
            b"offset" => self.offsets.extend(number),
            b"numbytes" => self.lengths.extend(number),
            b"map" => {
                for (index, part) in value.split(|byte| *byte == b',').enumerate() {
                    match (pax::number(part), index % 2) {
                        (Some(number), 0) => self.offsets.push(number),
                        (Some(number), _) => self.lengths.push(number),
                        (None, _) => self.bad |= !value.is_empty(),
                    }
                }
            }
            _ => {}
        }
    }

    /// The map, read from the start of the entry's data for version 1.0; also how many bytes of
    /// data that took. `None` when the records speak of no sparse file.
    pub(crate) fn into_map(self, data: &mut impl BufRead) -> io::Result<Option<(SparseMap, u64)>> {
        let Some(file_size) = self.size else { return Ok(None) };
        if self.major == Some(1) {
            let (segments, used) = read_map(data)?;
            return Ok(Some((SparseMap { segments, file_size }, used)));
        }
        if self.bad || self.offsets.len() != self.lengths.len() {
            return Err(malformed());
        }
        let segments = self.offsets.into_iter().zip(self.lengths).collect();
        Ok(Some((SparseMap { segments, file_size }, 0)))
    }
}

/// Decimal numbers, one a line: how many pieces, then offset and length of each; padded to whole
/// blocks.
fn read_map(data: &mut impl BufRead) -> io::Result<(Vec<(u64, u64)>, u64)> {
    let mut used = 0u64;
    let mut number = || -> io::Result<u64> {
        let mut line = Vec::new();
        data.by_ref().take(24).read_until(b'\n', &mut line)?;
        used += line.len() as u64;
        line.strip_suffix(b"\n").and_then(pax::number).ok_or_else(malformed)
    };
    let count = number()?;
    if count > MOST_SEGMENTS as u64 {
        return Err(too_many());
    }
    let mut segments = Vec::new();
    for _ in 0..count {
        segments.push((number()?, number()?));
    }
    let padding = used.next_multiple_of(512) - used;
    let mut ignored = [0; 512];
    data.read_exact(&mut ignored[..padding as usize])?;
    Ok((segments, used + padding))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the map of a sparse file is malformed")
}

fn too_many() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the map of a sparse file has too many pieces")
}
