//! What a snapshot consists of: a manifest names segments, each of which lists chunks.

use serde::{Deserialize, Serialize};

use super::{
    Inner,
    keys::{Id, Keys, Kind, OVERHEAD},
    objects::Fault,
};
use crate::{Snapshot, SnapshotError, SnapshotName};

/// Chunks per segment. Part of the format.
pub(super) const SEGMENT: usize = 1024;
const ENTRY: usize = 36;
/// How large an object of a segment can be.
pub(super) const SEGMENT_LIMIT: usize = SEGMENT * ENTRY;
/// What a manifest begins with; the id of the key follows, with its length.
const MAGIC: &[u8; 8] = b"CADDISNP";
/// How large a manifest can be, bytes.
const MANIFEST_LIMIT: usize = 64 << 20;
/// Sizes that chunks may have.
pub(super) const CHUNK_SIZES: std::ops::RangeInclusive<u32> = 4 << 10..=16 << 20;

/// A chunk, as a segment lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// All zeroes for a chunk of zeroes, of which there is no object.
    pub(super) id: Id,
    /// Size of its object, bytes.
    pub(super) stored: u32,
}

impl Entry {
    pub(super) const ZERO: Self = Self { id: Id([0; 32]), stored: 0 };

    pub(super) fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }
}

/// What a manifest says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) snapshot: Snapshot,
    /// Bytes.
    pub(super) chunk_size: u32,
    /// Ids; none where all is zeroes.
    pub(super) segments: Vec<Option<String>>,
}

/// A segment of a snapshot.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    /// None where all is zeroes.
    pub(super) id: Option<Id>,
    /// How many chunks it has.
    pub(super) count: usize,
    /// Where in the volume it begins, bytes.
    begin: u64,
    end: u64,
}

/// How many chunks a volume has.
pub(super) fn count(volume_size: u64, chunk_size: u32) -> u64 {
    volume_size.div_ceil(u64::from(chunk_size))
}

impl Manifest {
    /// The segment with this index.
    pub(super) fn segment(&self, index: usize) -> Segment {
        let length = SEGMENT as u64 * u64::from(self.chunk_size);
        let begin = index as u64 * length;
        let end = begin.saturating_add(length).min(self.snapshot.volume_size);
        // At most `SEGMENT`.
        let count = end.saturating_sub(begin).div_ceil(u64::from(self.chunk_size)) as usize;
        let id = self.segments.get(index).and_then(|id| Id::parse(id.as_deref()?));
        Segment { id, count, begin, end }
    }

    fn is_consistent(&self) -> bool {
        let chunks = count(self.snapshot.volume_size, self.chunk_size);
        self.chunk_size.is_power_of_two()
            && CHUNK_SIZES.contains(&self.chunk_size)
            && self.segments.len() as u64 == chunks.div_ceil(SEGMENT as u64)
            && self.segments.iter().flatten().all(|id| Id::parse(id).is_some())
    }
}

pub(super) fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * ENTRY);
    for entry in entries {
        bytes.extend_from_slice(&entry.id.0);
        bytes.extend_from_slice(&entry.stored.to_le_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> Vec<Entry> {
    let (entries, _) = bytes.as_chunks::<ENTRY>();
    let entry = |bytes: &[u8; ENTRY]| {
        let mut id = [0; 32];
        id.copy_from_slice(&bytes[..32]);
        let stored = u32::from_le_bytes([bytes[32], bytes[33], bytes[34], bytes[35]]);
        Entry { id: Id(id), stored }
    };
    entries.iter().map(entry).collect()
}

/// What is authenticated with a manifest.
fn address(name: &SnapshotName, key: &str) -> Vec<u8> {
    format!("{}/{}/{}/{key}", name.organization, name.volume, name.id).into_bytes()
}

impl Inner {
    /// Writes a manifest, by which a snapshot begins to be.
    pub(super) async fn put_manifest(
        &self,
        keys: &Keys,
        manifest: &Manifest,
    ) -> Result<(), SnapshotError> {
        let name = &manifest.snapshot.name;
        let refused = |reason: &dyn std::fmt::Display| {
            SnapshotError::Store(format!("the manifest of {} {reason}", name.id))
        };
        let contents = serde_json::to_vec(manifest).map_err(|error| refused(&error))?;
        let length = u8::try_from(keys.id.len())
            .map_err(|_| SnapshotError::InvalidStore("the id of the key is too long".to_owned()))?;
        let address = address(name, &keys.id);
        let sealed = keys
            .seal(Kind::Manifest, &address, &contents, self.options.level)
            .map_err(|reason| refused(&reason))?;
        let mut object = MAGIC.to_vec();
        object.push(length);
        object.extend_from_slice(keys.id.as_bytes());
        object.extend_from_slice(&sealed);
        Ok(self.objects.put(&Self::manifest_key(name), object).await?)
    }

    pub(super) async fn manifest(
        &self,
        keys: &Keys,
        name: &SnapshotName,
    ) -> Result<Manifest, SnapshotError> {
        let damaged = |reason: &str| SnapshotError::Damaged {
            name: name.clone(),
            reason: format!("its manifest {reason}"),
        };
        let key = Self::manifest_key(name);
        let object = match self.objects.get(&key, MANIFEST_LIMIT).await {
            Ok(object) => object,
            Err(Fault::Missing) => return Err(SnapshotError::NotFound(name.clone())),
            Err(Fault::TooLarge) => return Err(damaged("is larger than it can be")),
            Err(fault) => return Err(fault.into()),
        };
        let rest = object.strip_prefix(MAGIC).ok_or_else(|| damaged("is of another format"))?;
        let (length, rest) = rest.split_first().ok_or_else(|| damaged("is cut short"))?;
        let (key, sealed) =
            rest.split_at_checked(usize::from(*length)).ok_or_else(|| damaged("is cut short"))?;
        if key != keys.id.as_bytes() {
            let expected = std::str::from_utf8(key)
                .ok()
                .filter(|key| key.bytes().all(|byte| byte.is_ascii_graphic()))
                .ok_or_else(|| damaged("is of another format"))?
                .to_owned();
            let found = keys.id.clone();
            return Err(SnapshotError::OtherKey { name: name.clone(), expected, found });
        }
        let contents = keys
            .open(Kind::Manifest, &address(name, &keys.id), sealed, MANIFEST_LIMIT)
            .map_err(damaged)?;
        let manifest: Manifest =
            serde_json::from_slice(&contents).map_err(|_| damaged("can't be parsed"))?;
        if manifest.snapshot.name != *name || !manifest.is_consistent() {
            return Err(damaged("contradicts itself"));
        }
        Ok(manifest)
    }

    /// The chunks of a segment of a snapshot.
    pub(super) async fn entries(
        &self,
        keys: &Keys,
        name: &SnapshotName,
        segment: &Segment,
    ) -> Result<Vec<Entry>, SnapshotError> {
        let Segment { id, count, begin, end } = segment;
        let Some(id) = id else {
            return Ok(vec![Entry::ZERO; *count]);
        };
        let damaged = |reason: &str| SnapshotError::Damaged {
            name: name.clone(),
            reason: format!("the list of chunks of bytes {begin} to {end} {reason}"),
        };
        let key = Self::segment_key(&name.organization, id);
        let object = match self.objects.get(&key, SEGMENT_LIMIT + OVERHEAD).await {
            Ok(object) => object,
            Err(Fault::Missing) => return Err(damaged("is missing")),
            Err(Fault::TooLarge) => return Err(damaged("is larger than it can be")),
            Err(fault) => return Err(fault.into()),
        };
        let contents =
            keys.open_addressed(Kind::Segment, id, &object, SEGMENT_LIMIT).map_err(damaged)?;
        if contents.len() != count * ENTRY {
            return Err(damaged("is of another length"));
        }
        Ok(decode(&contents))
    }
}
