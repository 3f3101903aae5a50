//! Unpacks what kernels and their modules are packed with, told apart by their first bytes.

use std::io::{self, Read};

/// Larger than any kernel or module; a bound for damaged files.
const LARGEST: u64 = 512 << 20;

/// The content, unpacked if it is packed. Bytes after the packed stream are ignored: the kernel's build appends the
/// length. The reason when it can't be done.
pub(super) fn unpack(packed: &[u8]) -> Result<Vec<u8>, String> {
    let unpacked = match packed {
        [0x7f, b'E', b'L', b'F', ..] => return Ok(packed.to_vec()),
        [0x1f, 0x8b, ..] => read(flate2::read::GzDecoder::new(packed)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => read(lzma_rust2::XzReader::new(packed, false)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd::Decoder::new(packed).and_then(|decoder| read(decoder.single_frame())),
        _ => return Err("its compression is not known: gzip, xz and zstd are; use a kernel packed with one".to_owned()),
    };
    unpacked.map_err(|error| format!("it can't be unpacked, is the file whole? {error}"))
}

fn read(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    reader.take(LARGEST + 1).read_to_end(&mut content)?;
    if content.len() as u64 > LARGEST {
        return Err(io::Error::other(format!("more than {LARGEST} bytes")));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const CONTENT: &[u8] = b"\x7fELF and what follows";

    #[test]
    fn every_format_is_unpacked_and_a_trailing_length_ignored() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(CONTENT).unwrap();
        for mut packed in [gzip.finish().unwrap(), zstd::encode_all(CONTENT, 1).unwrap(), CONTENT.to_vec()] {
            if packed != CONTENT {
                packed.extend(21_u32.to_le_bytes());
            }
            assert_eq!(unpack(&packed).unwrap(), CONTENT);
        }
    }

    #[test]
    fn damaged_and_unknown_input_is_an_error() {
        let packed = zstd::encode_all(CONTENT, 1).unwrap();
        assert!(unpack(&packed[..packed.len() - 4]).unwrap_err().contains("whole"));
        assert!(unpack(b"LZ4!").unwrap_err().contains("not known"));
        assert!(unpack(b"").is_err());
    }
}
