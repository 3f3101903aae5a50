//! The hash by which large directories are indexed: MD4 cut down to three rounds of eight steps.

/// Its number in superblock and directories.
pub(crate) const HALF_MD4: u8 = 1;

/// A hash that marks the end of a directory for readers and is never a name's.
const END: u32 = 0x7fff_ffff << 1;

/// What the hashes of a file system start from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HashSeed {
    words: [u32; 4],
    /// Whether bytes of names above 127 count as negative. It depends on the processor that made
    /// the file system.
    signed: bool,
}

/// A name's place in its directory. The first word is in the index.
pub(crate) type Hash = (u32, u32);

impl HashSeed {
    pub(crate) fn new(words: [u32; 4], signed: bool) -> Self {
        let words = if words == [0; 4] {
            [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476]
        } else {
            words
        };
        Self { words, signed }
    }

    pub(crate) fn hash(&self, name: &[u8]) -> Hash {
        let mut state = self.words;
        let mut rest = name;
        // A name of a multiple of 32 bytes has no empty chunk at its end.
        while !rest.is_empty() {
            transform(&mut state, &self.chunk(rest));
            rest = &rest[rest.len().min(32)..];
        }
        // The lowest bit says in the index that names with this hash continue in the next block.
        let major = state[1] & !1;
        (if major == END { END - 2 } else { major }, state[2])
    }

    /// Eight words of a name's next 32 bytes, padded with what is left of its length.
    fn chunk(&self, rest: &[u8]) -> [u32; 8] {
        // A name has at most 255 bytes.
        let padding = rest.len() as u32 * 0x0101_0101;
        let mut words = [padding; 8];
        for (word, bytes) in words.iter_mut().zip(rest.chunks(4)) {
            for byte in bytes {
                let value =
                    if self.signed { i32::from(*byte as i8) as u32 } else { u32::from(*byte) };
                *word = value.wrapping_add(*word << 8);
            }
        }
        words
    }
}

fn transform(state: &mut [u32; 4], input: &[u32; 8]) {
    const ROUNDS: [(Function, u32, [usize; 8], [u32; 4]); 3] = [
        (|x, y, z| z ^ (x & (y ^ z)), 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (
            |x, y, z| (x & y).wrapping_add((x ^ y) & z),
            0x5a82_7999,
            [1, 3, 5, 7, 0, 2, 4, 6],
            [3, 5, 9, 13],
        ),
        (|x, y, z| x ^ y ^ z, 0x6ed9_eba1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (function, constant, order, shifts) in ROUNDS {
        for (step, index) in order.into_iter().enumerate() {
            let sum =
                a.wrapping_add(function(b, c, d)).wrapping_add(input[index]).wrapping_add(constant);
            (a, b, c, d) = (d, sum.rotate_left(shifts[step % 4]), b, c);
        }
    }
    for (word, value) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(value);
    }
}

type Function = fn(u32, u32, u32) -> u32;

#[cfg(test)]
mod tests {
    use super::*;

    /// From `debugfs -R "dx_hash -h half_md4 -s SEED NAME"`.
    #[test]
    fn hashes_are_those_of_e2fsprogs() {
        let seed = HashSeed::new([0x6745_2301, 0xde8c_ab89, 0x5634_1280, 0x3412_9078], true);
        for (name, major, minor) in [
            ("a", 0x9917_384c, 0x050f_cd7a),
            ("abc", 0x6a5a_bbb6, 0x3447_c8e1),
            ("foo.txt", 0xa149_8956, 0xfe9d_e851),
            ("12345678901234567890123456789012", 0x34d0_5a88, 0x46dc_7c8b),
            (&"x".repeat(255), 0xb8e8_7bc2, 0x0925_bc01),
            ("ä", 0x9567_642c, 0x35a2_352f),
        ] {
            assert_eq!(seed.hash(name.as_bytes()), (major, minor), "{name}");
        }
        assert_eq!(
            HashSeed::new([0; 4], true).hash(b"abc"),
            (0xd196_a868, 0xc420_eb28),
            "without a seed"
        );
    }

    #[test]
    fn only_names_with_bytes_above_127_depend_on_the_sign() {
        let [signed, unsigned] = [true, false].map(|signed| HashSeed::new([1, 2, 3, 4], signed));
        assert_eq!(signed.hash(b"plain"), unsigned.hash(b"plain"));
        assert_ne!(signed.hash("ä".as_bytes()), unsigned.hash("ä".as_bytes()));
    }
}
