//! How something is compressed, told by how it starts, since media types and names of files lie at
//! times.

use crate::ImageError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    /// One that images don't have, by name.
    Other(&'static str),
}

/// Starts of what is not read here.
const OTHERS: [(&[u8], &str); 8] = [
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"LZIP", "lzip"),
    (b"\x5d\0\0", "lzma"),
    (b"\x1f\x9d", "compress"),
    (b"PK\x03\x04", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
];

impl Compression {
    /// By the first few bytes.
    pub(crate) fn of(start: &[u8]) -> Self {
        let skippable =
            start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18];
        if start.starts_with(&[0x1f, 0x8b]) {
            Self::Gzip
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || skippable {
            Self::Zstd
        } else {
            OTHERS
                .iter()
                .find(|(magic, _)| start.starts_with(magic))
                .map_or(Self::None, |(_, name)| Self::Other(name))
        }
    }
}

/// What is said of a compression that is not read here.
pub(crate) fn refused(what: &str, name: &str) -> ImageError {
    ImageError::unsupported(
        format!("{what}, compressed with {name},"),
        "it must be plain, or compressed with gzip or zstd",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_known_by_its_start_and_a_tar_is_none_of_them() {
        for (start, expected) in [
            (&b"\x1f\x8b\x08\0"[..], Compression::Gzip),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (b"\x50\x2a\x4d\x18", Compression::Zstd),
            (b"\x5f\x2a\x4d\x18", Compression::Zstd),
            (b"\xfd7zXZ\0\0\0", Compression::Other("xz")),
            (b"BZh91AY&", Compression::Other("bzip2")),
            (b"PK\x03\x04", Compression::Other("zip")),
            (b"", Compression::None),
            (b"\x1f", Compression::None),
            (b"\x60\x2a\x4d\x18", Compression::None),
            (b"etc/pass", Compression::None),
            (&[0; 8], Compression::None),
        ] {
            assert_eq!(Compression::of(start), expected, "{start:?}");
        }
    }
}
