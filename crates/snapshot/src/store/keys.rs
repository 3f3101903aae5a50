//! Keys, ids and encryption of objects.
//!
//! ```text
//!  store key ‖ organisation ──derive──▶ organisation's key ──derive──▶ ids of chunks, segments
//!                                                          ├─────────▶ key per object: AES-256-GCM
//!                                                          └─────────▶ nonces
//! ```
//! Each object has a key of its own, from its kind and address (an id, or the name of a manifest).
//! Its nonce is a keyed hash of what is encrypted: the same bytes give the same object, and other
//! bytes at the same address (another version of zstd; a manifest that is replaced) another nonce.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::StoreKey;

/// Of the format of objects.
const FORMAT: u8 = 1;
/// Format, kind, codec, 0, and the length of what is in it, 4 bytes, little-endian.
const HEADER: usize = 8;
const NONCE: usize = 12;
const TAG: usize = 16;
/// Bytes that an object has beside what is in it, when that is not compressed.
pub(super) const OVERHEAD: usize = HEADER + NONCE + TAG;

const STORED: u8 = 0;
const ZSTD: u8 = 1;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Chunk = 1,
    Segment = 2,
    Manifest = 3,
}

/// Content address: keyed BLAKE3 of the contents, with a key of the organisation.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Id(pub(super) [u8; 32]);

impl Id {
    pub(super) fn parse(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(|hash| Self(*hash.as_bytes()))
    }

    /// Half of it, for sets: two ids that are equal in 128 bits do not occur.
    pub(super) fn short(&self) -> u128 {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.0[..16]);
        u128::from_le_bytes(bytes)
    }

    /// The first byte of that whose half this is.
    pub(super) fn first(short: &u128) -> u8 {
        short.to_le_bytes()[0]
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The keys of an organisation; their memory is wiped.
pub(super) struct Keys {
    chunk_ids: Zeroizing<[u8; 32]>,
    segment_ids: Zeroizing<[u8; 32]>,
    digests: Zeroizing<[u8; 32]>,
    objects: Zeroizing<[u8; 32]>,
    nonces: Zeroizing<[u8; 32]>,
    /// Id of the store's key.
    pub(super) id: String,
}

impl Keys {
    pub(super) fn new(key: &StoreKey, organization: &str) -> Self {
        let mut material = Zeroizing::new(Vec::with_capacity(32 + organization.len()));
        material.extend_from_slice(key.bytes.as_ref());
        material.extend_from_slice(organization.as_bytes());
        let own = Zeroizing::new(blake3::derive_key("caddis snapshots 1 organization", &material));
        let derive = |context| Zeroizing::new(blake3::derive_key(context, own.as_ref()));
        Self {
            chunk_ids: derive("caddis snapshots 1 ids of chunks"),
            segment_ids: derive("caddis snapshots 1 ids of segments"),
            digests: derive("caddis snapshots 1 digests"),
            objects: derive("caddis snapshots 1 encryption of objects"),
            nonces: derive("caddis snapshots 1 nonces of objects"),
            id: key.id.clone(),
        }
    }

    pub(super) fn chunk_id(&self, contents: &[u8]) -> Id {
        Id(*blake3::keyed_hash(&self.chunk_ids, contents).as_bytes())
    }

    pub(super) fn segment_id(&self, contents: &[u8]) -> Id {
        Id(*blake3::keyed_hash(&self.segment_ids, contents).as_bytes())
    }

    /// Makes the digest of a volume of the ids of its chunks, in their order.
    pub(super) fn digest(&self) -> blake3::Hasher {
        blake3::Hasher::new_keyed(&self.digests)
    }

    fn cipher(&self, kind: Kind, address: &[u8]) -> Result<LessSafeKey, &'static str> {
        let mut hasher = blake3::Hasher::new_keyed(&self.objects);
        let key = hasher.update(&[kind as u8]).update(address).finalize();
        let key = Zeroizing::new(*key.as_bytes());
        let key = UnboundKey::new(&AES_256_GCM, key.as_ref()).map_err(|_| "can't be keyed")?;
        Ok(LessSafeKey::new(key))
    }

    /// Compresses, where that gains 1/16, and encrypts. `contents` are at most 4 GiB.
    pub(super) fn seal(
        &self,
        kind: Kind,
        address: &[u8],
        contents: &[u8],
        level: i32,
    ) -> Result<Vec<u8>, &'static str> {
        let length = u32::try_from(contents.len()).map_err(|_| "is too large")?;
        let compressed =
            zstd::bulk::compress(contents, level).map_err(|_| "can't be compressed")?;
        let gains = compressed.len() < contents.len() - contents.len() / 16;
        let (codec, payload) = if gains { (ZSTD, &compressed[..]) } else { (STORED, contents) };
        self.seal_as(kind, address, codec, length, payload)
    }

    fn seal_as(
        &self,
        kind: Kind,
        address: &[u8],
        codec: u8,
        length: u32,
        payload: &[u8],
    ) -> Result<Vec<u8>, &'static str> {
        let mut object = Vec::with_capacity(OVERHEAD + payload.len());
        object.extend_from_slice(&[FORMAT, kind as u8, codec, 0]);
        object.extend_from_slice(&length.to_le_bytes());
        let nonce = blake3::Hasher::new_keyed(&self.nonces)
            .update(&object)
            .update(&(address.len() as u64).to_le_bytes())
            .update(address)
            .update(payload)
            .finalize();
        let mut bytes = [0; NONCE];
        bytes.copy_from_slice(&nonce.as_bytes()[..NONCE]);
        let bound = bound(&object, address);
        object.extend_from_slice(&bytes);
        object.extend_from_slice(payload);
        let tag = self
            .cipher(kind, address)?
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(bytes),
                bound,
                &mut object[HEADER + NONCE..],
            )
            .map_err(|_| "can't be encrypted")?;
        object.extend_from_slice(tag.as_ref());
        Ok(object)
    }

    /// Decrypts what is at most `limit` bytes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn open(
        &self,
        kind: Kind,
        address: &[u8],
        object: &[u8],
        limit: usize,
    ) -> Result<Vec<u8>, &'static str> {
        if object.len() < OVERHEAD {
            return Err("is cut short");
        }
        let (header, rest) = object.split_at(HEADER);
        let (nonce, sealed) = rest.split_at(NONCE);
        if header[0] != FORMAT || header[1] != kind as u8 {
            return Err("is of another format");
        }
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        if length > limit || sealed.len() > limit + TAG {
            return Err("is larger than it can be");
        }
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| "is of another format")?;
        let mut sealed = sealed.to_vec();
        let opened = self
            .cipher(kind, address)?
            .open_in_place(nonce, bound(header, address), &mut sealed)
            .map_err(|_| "was changed, or is of another key")?
            .len();
        sealed.truncate(opened);
        let contents = match header[2] {
            STORED => sealed,
            // Never makes more than `length` bytes.
            ZSTD => zstd::bulk::decompress(&sealed, length).map_err(|_| "can't be decompressed")?,
            _ => return Err("is of another format"),
        };
        if contents.len() != length {
            return Err("is not as long as it says");
        }
        Ok(contents)
    }

    /// Decrypts what is addressed by its contents.
    pub(super) fn open_addressed(
        &self,
        kind: Kind,
        id: &Id,
        object: &[u8],
        limit: usize,
    ) -> Result<Vec<u8>, &'static str> {
        let contents = self.open(kind, &id.0, object, limit)?;
        let found = match kind {
            Kind::Segment => self.segment_id(&contents),
            _ => self.chunk_id(&contents),
        };
        if found == *id { Ok(contents) } else { Err("is not what its name says") }
    }
}

/// What is authenticated beside an object's contents.
fn bound(header: &[u8], address: &[u8]) -> Aad<Vec<u8>> {
    Aad::from([b"caddis snapshots ", header, address].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(organization: &str) -> Keys {
        let bytes = Zeroizing::new([5; 32]);
        Keys::new(&StoreKey { bytes, id: "one".to_owned() }, organization)
    }

    const LIMIT: usize = 1 << 20;

    #[test]
    fn what_is_sealed_is_opened_and_what_does_not_compress_is_stored() {
        let keys = keys("acme");
        let noise = *blake3::hash(b"noise").as_bytes();
        for contents in [&b""[..], b"a", &noise, &b"again and ".repeat(1000)] {
            let id = keys.chunk_id(contents);
            let object = keys.seal(Kind::Chunk, &id.0, contents, 3).unwrap();
            assert!(object.len() <= contents.len() + OVERHEAD);
            let opened = keys.open_addressed(Kind::Chunk, &id, &object, LIMIT).unwrap();
            assert_eq!(opened, contents);
            // The same again is the same object.
            assert_eq!(object, keys.seal(Kind::Chunk, &id.0, contents, 3).unwrap());
        }
    }

    #[test]
    fn the_same_contents_have_nothing_in_common_between_organizations_and_kinds() {
        let (acme, other) = (keys("acme"), keys("other"));
        let contents = [7; 100];
        let ids =
            [&acme, &other].map(|keys| [keys.chunk_id(&contents), keys.segment_id(&contents)]);
        for (index, id) in ids.as_flattened().iter().enumerate() {
            assert!(!ids.as_flattened()[..index].contains(id));
        }
        let id = acme.chunk_id(&contents);
        let object = acme.seal(Kind::Chunk, &id.0, &contents, 3).unwrap();
        let foreign = other.open(Kind::Chunk, &id.0, &object, LIMIT);
        assert_eq!(foreign, Err("was changed, or is of another key"));
        assert!(acme.open(Kind::Segment, &id.0, &object, LIMIT).is_err());
        assert!(acme.open(Kind::Chunk, &[0; 32], &object, LIMIT).is_err());
    }

    #[test]
    fn other_bytes_at_one_address_have_another_nonce() {
        let keys = keys("acme");
        let nonce = |payload: &[u8]| {
            let object = keys.seal_as(Kind::Chunk, &[1; 32], ZSTD, 9, payload).unwrap();
            object[HEADER..HEADER + NONCE].to_vec()
        };
        assert_eq!(nonce(b"one"), nonce(b"one"));
        assert_ne!(nonce(b"one"), nonce(b"two"));
    }

    #[test]
    fn no_more_is_decompressed_than_fits() {
        let keys = keys("acme");
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        assert!(bomb.len() < LIMIT / 100);
        let id = [1; 32];
        for length in [64 << 20, u32::MAX] {
            let object = keys.seal_as(Kind::Chunk, &id, ZSTD, length, &bomb).unwrap();
            let opened = keys.open(Kind::Chunk, &id, &object, LIMIT);
            assert_eq!(opened, Err("is larger than it can be"));
        }
        // It says that it is small.
        let object = keys.seal_as(Kind::Chunk, &id, ZSTD, 100, &bomb).unwrap();
        let opened = keys.open(Kind::Chunk, &id, &object, LIMIT);
        assert_eq!(opened, Err("can't be decompressed"));
        // It is smaller than it says.
        let short = zstd::bulk::compress(b"short", 3).unwrap();
        let object = keys.seal_as(Kind::Chunk, &id, ZSTD, 100, &short).unwrap();
        let opened = keys.open(Kind::Chunk, &id, &object, LIMIT);
        assert_eq!(opened, Err("is not as long as it says"));
    }

    #[test]
    fn what_is_not_what_its_name_says_is_told() {
        let keys = keys("acme");
        let id = keys.chunk_id(b"one");
        let object = keys.seal(Kind::Chunk, &id.0, b"two", 3).unwrap();
        let opened = keys.open_addressed(Kind::Chunk, &id, &object, LIMIT);
        assert_eq!(opened, Err("is not what its name says"));
    }
}
