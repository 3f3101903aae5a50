//! Records of pax extended headers: `LENGTH KEY=VALUE\n`. Read by their length, since values
//! (extended attributes) may hold any byte.

/// The records, in order; `None` when the block is malformed.
pub(crate) fn records(mut block: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    while !block.is_empty() {
        if block.iter().all(|byte| *byte == 0) {
            break; // padding that some writers count in
        }
        let space = block.iter().take(20).position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&block[..space]).ok()?.parse().ok()?;
        let record = block.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        records.push((&record[..equals], &record[equals + 1..]));
        block = &block[length..];
    }
    Some(records)
}

/// A decimal number.
pub(crate) fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

/// A time in seconds, possibly negative and with a fraction; nanoseconds are kept.
pub(crate) fn time(value: &[u8]) -> Option<(i64, i64)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: i64 = digits.parse().ok().filter(|nanoseconds| *nanoseconds >= 0)?;
    Some(if whole.starts_with('-') && nanoseconds > 0 {
        (seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)
    } else {
        (seconds, nanoseconds)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_newlines_and_equals_signs() {
        assert_eq!(
            records(b"12 path=a\nb\n9 k=v=\nw\n\0\0").unwrap(),
            [(&b"path"[..], &b"a\nb"[..]), (&b"k"[..], &b"v=\nw"[..])]
        );
    }

    #[test]
    fn malformed_records_are_refused() {
        for block in [
            &b"5 a=b"[..],
            b"99 a=b\n",
            b"x a=b\n",
            b"6 abc\n",
            b"0 a=b\n",
            b"-1 a=b\n",
            b"99999999999999999999 a",
        ] {
            assert!(records(block).is_none(), "{}", String::from_utf8_lossy(block));
        }
    }

    #[test]
    fn times_keep_their_fraction_and_sign() {
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"7"), Some((7, 0)));
        assert_eq!(time(b"abc"), None);
    }
}
