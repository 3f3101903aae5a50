//! Sizes for people.

/// Decimal units, as image sizes are given: `30 MB`, `1.2 GB`.
pub fn decimal(bytes: u64) -> String {
    scaled(bytes, 1000.0, ["B", "kB", "MB", "GB", "TB"])
}

/// Binary units, as sizes of snapshots are given: `30 MiB`, `1.2 GiB`.
pub fn binary(bytes: u64) -> String {
    scaled(bytes, 1024.0, ["B", "KiB", "MiB", "GiB", "TiB"])
}

fn scaled(bytes: u64, factor: f64, units: [&str; 5]) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= factor - 0.5 && unit + 1 < units.len() {
        value /= factor;
        unit += 1;
    }
    if unit > 0 && value < 9.95 {
        format!("{value:.1} {}", units[unit])
    } else {
        format!("{value:.0} {}", units[unit])
    }
}

/// Binary units, as memory is given: `71 MiB`.
pub fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::{binary, decimal};

    #[test]
    fn units_are_binary() {
        for (bytes, text) in [
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (3 << 30, "3.0 GiB"),
            (100 << 20, "100 MiB"),
            ((1 << 30) - 1, "1.0 GiB"),
        ] {
            assert_eq!(binary(bytes), text);
        }
    }

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
