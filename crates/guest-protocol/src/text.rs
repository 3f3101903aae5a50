//! Text that comes in pieces.

/// How much of `bytes` ends with a whole character of UTF-8: what follows is the beginning of one
/// that may yet come. Bytes that are no UTF-8 are whole as they are.
pub fn whole(bytes: &[u8]) -> usize {
    // A character has four bytes at most.
    for back in 1..=bytes.len().min(3) {
        let at = bytes.len() - back;
        if bytes[at] & 0b1100_0000 == 0b1000_0000 {
            continue;
        }
        let begun =
            std::str::from_utf8(&bytes[at..]).is_err_and(|error| error.error_len().is_none());
        return if begun { at } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::whole;

    #[test]
    fn characters_are_never_cut_and_what_is_none_is_left_alone() {
        for character in ["a", "ż", "日", "🐢"] {
            let text = format!("x{character}").into_bytes();
            for end in 1..text.len() {
                assert_eq!(whole(&text[..end]), 1, "{character}, {end} bytes");
            }
            assert_eq!(whole(&text), text.len());
        }
        for bytes in
            [&b""[..], b"\xff", b"a\x80\x80\x80\x80", b"\xc3\xc3x", b"\xf5\x80", b"\xe0\x80"]
        {
            assert_eq!(whole(bytes), bytes.len(), "{bytes:?}");
        }
        // The first is none, the second has begun.
        assert_eq!(whole(b"\xc3\xc3"), 1);
    }
}
