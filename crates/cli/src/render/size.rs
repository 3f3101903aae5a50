//! Sizes for people.

/// Decimal units, as image sizes are given: `30 MB`, `1.2 GB`.
pub fn decimal(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit > 0 && value < 9.95 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

/// Binary units, as memory is given: `71 MiB`.
pub fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::decimal;

    #[test]
    fn units_are_decimal() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (30_123_456, "30 MB"),
            (999_999, "1.0 MB"),
            (1_230_000_000, "1.2 GB"),
        ] {
            assert_eq!(decimal(bytes), text);
        }
    }
}
