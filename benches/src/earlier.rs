//! The figures of an earlier run, `target/bench/last.json`, for the table to compare with: those of
//! the last release, where somebody kept them (`bench --keep`). On another make of processor only
//! ratios say anything.

use std::{collections::HashMap, path::Path};

use serde_json::Value;

use crate::{
    report::{Line, Promise},
    statistics::Summary,
};

/// What an earlier run gave.
#[derive(Debug, Default)]
pub struct Earlier {
    lines: HashMap<String, Summary>,
    same_processor: bool,
}

/// How a line compares with it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    /// The median of then.
    pub before: f64,
    /// All of then was better than the median of now, and the median of then better than all of
    /// now.
    pub is_worse: bool,
}

impl Earlier {
    /// Reads a run; what can't be read, or is not there, gives nothing to compare with.
    pub fn read(file: &Path, model: &Value) -> Self {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        Self::parse(&serde_json::from_str(&text).unwrap_or_default(), model)
    }

    fn parse(run: &Value, model: &Value) -> Self {
        let line = |line: &Value| {
            let number = |key: &str| line[key].as_f64();
            let summary = Summary {
                median: number("median")?,
                least: number("least")?,
                most: number("most")?,
            };
            Some((line["key"].as_str()?.to_owned(), summary))
        };
        let lines = run["lines"].as_array().into_iter().flatten().filter_map(line).collect();
        Self { lines, same_processor: &run["about"]["host"]["model"] == model }
    }

    /// Whether there is anything to compare with.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// How a line has changed.
    pub fn change(&self, line: &Line) -> Option<Change> {
        let (before, now) = (self.lines.get(&line.key)?, line.summary()?);
        if !self.same_processor && line.unit != "×" {
            return None;
        }
        let more_is_better = line.unit == "/s" || matches!(line.promise, Promise::AtLeast(_));
        let is_worse = if more_is_better {
            now.median < before.least && now.most < before.median
        } else {
            now.median > before.most && now.least > before.median
        };
        Some(Change { before: before.median, is_worse })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::report::Outcome;

    fn line(key: &str, unit: &'static str, promise: Promise, samples: &[f64]) -> Line {
        Line {
            key: key.to_owned(),
            text: String::new(),
            unit,
            promise,
            outcome: Outcome::Samples(samples.to_vec()),
        }
    }

    #[test]
    fn worse_is_what_lies_beyond_the_noise_of_both_runs() {
        let run = json!({
            "about": { "host": { "model": "x" } },
            "lines": [
                { "key": "time", "median": 10.0, "least": 9.0, "most": 12.0 },
                { "key": "rate", "median": 10.0, "least": 9.0, "most": 12.0 },
            ],
        });
        let earlier = Earlier::parse(&run, &json!("x"));
        let is_worse = |line: &Line| earlier.change(line).unwrap().is_worse;
        assert!(is_worse(&line("time", "ms", Promise::None, &[12.5, 13.0, 14.0])));
        assert!(
            !is_worse(&line("time", "ms", Promise::None, &[9.5, 13.0, 14.0])),
            "some of now were as quick"
        );
        assert!(
            !is_worse(&line("time", "ms", Promise::None, &[11.0, 11.5, 14.0])),
            "some of then were as slow"
        );
        assert!(is_worse(&line("rate", "/s", Promise::None, &[8.0, 8.5, 9.0])));
        assert!(!is_worse(&line("rate", "/s", Promise::None, &[13.0])));
        assert_eq!(earlier.change(&line("other", "ms", Promise::None, &[1.0])), None);
        let elsewhere = Earlier::parse(&run, &json!("y"));
        assert_eq!(elsewhere.change(&line("time", "ms", Promise::None, &[99.0])), None);
        assert!(elsewhere.change(&line("time", "×", Promise::None, &[99.0])).unwrap().is_worse);
    }
}
