//! Medians, percentiles and ratios of samples. Pure.

/// What a list of samples comes to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

/// Nothing of an empty list.
pub fn summary(samples: &[f64]) -> Option<Summary> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (least, most) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    let median = if sorted.len() % 2 == 1 {
        upper
    } else {
        f64::midpoint(*sorted.get(middle.checked_sub(1)?)?, upper)
    };
    Some(Summary { median, least, most })
}

/// What each sample is more than the one that was taken in the same round.
pub fn differences(of: &[f64], from: &[f64]) -> Vec<f64> {
    of.iter().zip(from).map(|(of, from)| of - from).collect()
}

/// The smallest sample that `percent` of all do not exceed (nearest rank).
pub fn percentile(samples: &[f64], percent: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// How `over` relates to `under`: the ratio of their medians, and the least and the most of the
/// ratios of samples that were taken in the same round.
pub fn ratio(over: &[f64], under: &[f64]) -> Option<Summary> {
    let rounds: Vec<f64> = over.iter().zip(under).map(|(over, under)| over / under).collect();
    let rounds = summary(&rounds)?;
    Some(Summary { median: summary(over)?.median / summary(under)?.median, ..rounds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        for (samples, median) in
            [(&[3.0, 1.0, 2.0][..], 2.0), (&[4.0, 1.0, 2.0, 9.0], 3.0), (&[7.0], 7.0)]
        {
            assert_eq!(summary(samples).unwrap().median, median, "{samples:?}");
        }
        let all = summary(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((all.least, all.most), (1.0, 3.0));
        assert_eq!(summary(&[]), None);
    }

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        for (percent, expected) in [(50.0, 50.0), (99.0, 99.0), (100.0, 100.0), (0.0, 1.0)] {
            assert_eq!(percentile(&hundred, percent), Some(expected), "{percent}");
        }
        assert_eq!(percentile(&[5.0, 6.0], 99.0), Some(6.0));
        assert_eq!(percentile(&[], 50.0), None);
    }

    #[test]
    fn a_ratio_is_of_medians_and_its_bounds_are_of_rounds() {
        let ratio = ratio(&[2.0, 4.0, 6.0], &[1.0, 1.0, 2.0]).unwrap();
        assert_eq!((ratio.median, ratio.least, ratio.most), (4.0, 2.0, 4.0));
        assert_eq!(super::ratio(&[], &[1.0]), None);
    }
}
