//! Sizes on the command line.

/// A number of `unit`s, or a size with a unit of its own. Binary units. `None` for what is neither.
pub fn parse(text: &str, unit: u64) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..digits].parse::<u64>().ok()?;
    let factor = match text[digits..].trim().trim_end_matches('b').trim_end_matches('i') {
        "" if digits == text.len() => return Some(number),
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return None,
    };
    Some(number.checked_mul(factor)?.div_ceil(unit))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn sizes_have_the_named_unit_or_their_own() {
        for (text, expected) in [
            ("512", Some(512)),
            ("512mb", Some(512)),
            ("2gb", Some(2048)),
            ("1GiB", Some(1024)),
            ("-1", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(parse(text, 1 << 20), expected, "{text}");
        }
    }
}
