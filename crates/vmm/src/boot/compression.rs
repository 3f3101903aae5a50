//! Unpacks what kernels and their modules are packed with, told apart by their first bytes.

use std::io::{self, Read};

/// Larger than any kernel or module; a bound for damaged files.
const LARGEST: u64 = 512 << 20;
/// What a block of LZ4's old container unpacks to at most.
const LZ4_BLOCK: usize = 8 << 20;

/// The content, unpacked if it is packed. Bytes after the packed stream are ignored: the kernel's
/// build appends the length. The reason when it can't be done.
pub(super) fn unpack(packed: &[u8]) -> Result<Vec<u8>, String> {
    let unpacked = match packed {
        [0x7f, b'E', b'L', b'F', ..] => return Ok(packed.to_vec()),
        [0x1f, 0x8b, ..] => read(flate2::read::GzDecoder::new(packed)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => read(lzma_rust2::XzReader::new(packed, false)),
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => lz4(blocks),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            zstd::Decoder::new(packed).and_then(|decoder| read(decoder.single_frame()))
        }
        _ => {
            return Err("unknown compression: use a kernel compressed with gzip, lz4, xz or zstd"
                .to_owned());
        }
    };
    unpacked.map_err(|error| format!("it can't be unpacked, is the file complete? {error}"))
}

/// The blocks of LZ4's old container, which the kernel's build uses: each its length, then what
/// unpacks to 8 MiB, the last to less.
fn lz4(mut blocks: &[u8]) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut unpacked = vec![0; LZ4_BLOCK];
    while let Some((length, rest)) = blocks.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some(block) = rest.get(..length).filter(|block| !block.is_empty()) else {
            // What is left after the last block is the appended length.
            if rest.is_empty() && !content.is_empty() {
                break;
            }
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let count =
            lz4_flex::block::decompress_into(block, &mut unpacked).map_err(io::Error::other)?;
        content.extend_from_slice(&unpacked[..count]);
        if content.len() as u64 > LARGEST {
            return Err(io::Error::other(format!("more than {LARGEST} bytes")));
        }
        blocks = &rest[length..];
    }
    Ok(content)
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
        let block = lz4_flex::block::compress(CONTENT);
        let length = u32::try_from(block.len()).unwrap().to_le_bytes();
        let lz4 = [&[0x02, 0x21, 0x4c, 0x18][..], &length, &block].concat();
        assert!(unpack(&lz4[..lz4.len() - 1]).is_err());
        for mut packed in
            [lz4, gzip.finish().unwrap(), zstd::encode_all(CONTENT, 1).unwrap(), CONTENT.to_vec()]
        {
            if packed != CONTENT {
                packed.extend(21_u32.to_le_bytes());
            }
            assert_eq!(unpack(&packed).unwrap(), CONTENT);
        }
    }

    #[test]
    fn damaged_and_unknown_input_is_an_error() {
        let packed = zstd::encode_all(CONTENT, 1).unwrap();
        assert!(unpack(&packed[..packed.len() - 4]).unwrap_err().contains("complete"));
        assert!(unpack(b"LZO!").unwrap_err().contains("unknown compression"));
        assert!(unpack(b"").is_err());
    }
}
