//! Numbers and checksums of tar headers, as writers of fifty years have put them: octal between
//! blanks and NULs, nothing at all for 0, or binary when they are too large for that (GNU).

use std::{io, ops::Range};

use tar::Header;

/// Where the fields are (POSIX, "ustar Interchange Format").
pub(crate) const MODE: Range<usize> = 100..108;
pub(crate) const UID: Range<usize> = 108..116;
pub(crate) const GID: Range<usize> = 116..124;
pub(crate) const SIZE: Range<usize> = 124..136;
const CHECKSUM: Range<usize> = 148..156;
pub(crate) const MAJOR: Range<usize> = 329..337;
pub(crate) const MINOR: Range<usize> = 337..345;

/// The number in a field.
pub(crate) fn number(header: &Header, field: Range<usize>) -> io::Result<u64> {
    let bytes = &header.as_bytes()[field];
    let malformed =
        || io::Error::new(io::ErrorKind::InvalidData, "a number in a tar header is malformed");
    if bytes[0] & 0x80 != 0 {
        // Binary, in two's complement below the mark. None of these may be negative.
        let first = Some(u64::from(bytes[0] & 0x7f))
            .filter(|first| first & 0x40 == 0)
            .ok_or_else(malformed)?;
        let mut rest = bytes[1..].iter().map(|byte| u64::from(*byte));
        return rest
            .try_fold(first, |number, byte| number.checked_mul(256)?.checked_add(byte))
            .ok_or_else(malformed);
    }
    let blank = |byte: &u8| matches!(byte, 0 | b' ');
    let start = bytes.iter().position(|byte| !blank(byte)).unwrap_or(bytes.len());
    let digits = bytes[start..].split(blank).next().unwrap_or_default();
    let digit = |byte: u8| byte.checked_sub(b'0').filter(|digit| *digit < 8).map(u64::from);
    digits
        .iter()
        .try_fold(0u64, |number, byte| number.checked_mul(8)?.checked_add(digit(*byte)?))
        .ok_or_else(malformed)
}

/// Whether the checksum is right. Some old writers took bytes for signed.
pub(crate) fn is_sound(header: &Header) -> bool {
    let Ok(said) = number(header, CHECKSUM) else { return false };
    let bytes = header.as_bytes();
    // The checksum counts its own field as spaces.
    let counted = || bytes[..CHECKSUM.start].iter().chain(&bytes[CHECKSUM.end..]);
    let blanks = 8 * i64::from(b' ');
    let unsigned = counted().map(|byte| i64::from(*byte)).sum::<i64>() + blanks;
    let signed = counted().map(|byte| i64::from(byte.cast_signed())).sum::<i64>() + blanks;
    i64::try_from(said).is_ok_and(|said| said == unsigned || said == signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(field: Range<usize>, text: &[u8]) -> Header {
        let mut header = Header::new_old();
        header.as_mut_bytes()[field.start..field.start + text.len()].copy_from_slice(text);
        header
    }

    #[test]
    fn numbers_are_read_between_blanks_and_nuls_and_nothing_is_0() {
        for (text, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"644 \0xyz", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"\0 \0 755\0", Some(0o755)),
            (b"77777777", Some(0o77_777_777)),
            (b"\x80\0\0\0\0\x01\0\0", Some(65536)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"0000648\0", None),
            (b"-1\0\0\0\0\0\0", None),
            (b"0x1\0\0\0\0\0", None),
        ] {
            assert_eq!(number(&with(MODE, text), MODE).ok(), expected, "{}", text.escape_ascii());
        }
        let large = [0x80, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(number(&with(SIZE, &large), SIZE).ok(), Some(1 << 56));
    }

    #[test]
    fn checksums_may_be_of_signed_bytes() {
        let mut header = with(0..100, b"caf\xc3\xa9");
        header.set_cksum();
        assert!(is_sound(&header));
        let unsigned = number(&header, CHECKSUM).unwrap();
        let signed = format!("{:06o}\0 ", unsigned - 2 * 256);
        header.as_mut_bytes()[CHECKSUM].copy_from_slice(signed.as_bytes());
        assert!(is_sound(&header));
        header.as_mut_bytes()[0] ^= 1;
        assert!(!is_sound(&header));
        header.as_mut_bytes()[CHECKSUM].copy_from_slice(b"nonsense");
        assert!(!is_sound(&header));
    }
}
