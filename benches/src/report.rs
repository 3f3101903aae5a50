//! What was measured: lines of samples and of ratios between them, and lines that could not be
//! measured.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::statistics::{Summary, ratio, summary};

/// What SPECIFICATION.md says of a value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Promise {
    /// Nothing.
    None,
    /// It is at most this.
    AtMost(f64),
    /// It is at least this.
    AtLeast(f64),
}

impl Promise {
    /// Whether `value` keeps it; nothing when there is none.
    pub fn held(self, value: f64) -> Option<bool> {
        match self {
            Self::None => None,
            Self::AtMost(limit) => Some(value <= limit),
            Self::AtLeast(limit) => Some(value >= limit),
        }
    }
}

/// How a line came about.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Samples of one thing, in `unit`.
    Samples(Vec<f64>),
    /// Samples of two things, taken in the same rounds; the first over the second.
    Ratio(Vec<f64>, Vec<f64>),
    /// It was to be measured and could not be.
    Failed(String),
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Its name in the JSON.
    pub key: String,
    /// What it says to people.
    pub text: String,
    /// `ms`, `MiB`, …; `×` for ratios.
    pub unit: &'static str,
    /// The promise, if any.
    pub promise: Promise,
    /// The figures.
    pub outcome: Outcome,
}

impl Line {
    /// Median, least and most; nothing when it failed.
    pub fn summary(&self) -> Option<Summary> {
        match &self.outcome {
            Outcome::Samples(samples) => summary(samples),
            Outcome::Ratio(over, under) => ratio(over, under),
            Outcome::Failed(_) => None,
        }
    }

    /// How many samples it stands on.
    pub fn runs(&self) -> usize {
        match &self.outcome {
            Outcome::Samples(samples) => samples.len(),
            Outcome::Ratio(over, under) => over.len().min(under.len()),
            Outcome::Failed(_) => 0,
        }
    }
}

/// All lines, in the order in which they were added.
#[derive(Debug, Default)]
pub struct Report {
    lines: Vec<Line>,
    seconds: BTreeMap<String, f64>,
}

impl Report {
    /// Adds the median of samples.
    pub fn samples(
        &mut self,
        key: &str,
        text: &str,
        unit: &'static str,
        promise: Promise,
        samples: &[f64],
    ) {
        let outcome = match samples {
            [] => Outcome::Failed("no sample was taken".to_owned()),
            samples => Outcome::Samples(samples.to_vec()),
        };
        self.lines.push(Line {
            key: key.to_owned(),
            text: text.to_owned(),
            unit,
            promise,
            outcome,
        });
    }

    /// Adds the ratio of two lists of samples taken in the same rounds. Where one is missing, its
    /// own line says why.
    pub fn ratio(&mut self, key: &str, text: &str, promise: Promise, over: &[f64], under: &[f64]) {
        if over.is_empty() || under.is_empty() {
            return self.failed(key, text, "one side was not measured");
        }
        let outcome = Outcome::Ratio(over.to_vec(), under.to_vec());
        self.lines.push(Line {
            key: key.to_owned(),
            text: text.to_owned(),
            unit: "×",
            promise,
            outcome,
        });
    }

    /// Adds something that could not be measured.
    pub fn failed(&mut self, key: &str, text: &str, reason: &str) {
        let outcome = Outcome::Failed(reason.to_owned());
        self.lines.push(Line {
            key: key.to_owned(),
            text: text.to_owned(),
            unit: "",
            promise: Promise::None,
            outcome,
        });
    }

    /// Notes how long a row took.
    pub fn took(&mut self, row: &str, seconds: f64) {
        self.seconds.insert(row.to_owned(), seconds);
    }

    /// All lines.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// What could not be measured.
    pub fn failures(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| matches!(line.outcome, Outcome::Failed(_)))
    }

    /// Everything, with every sample; `about` says where and beside what it was measured.
    pub fn json(&self, about: &Value) -> Value {
        let lines: Vec<Value> = self.lines.iter().map(line_json).collect();
        json!({ "about": about, "seconds": self.seconds, "lines": lines })
    }

    /// Writes [`Self::json`].
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, about: &Value, file: &Path) -> Result<()> {
        if let Some(directory) = file.parent() {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("making {}", directory.display()))?;
        }
        let text = format!("{:#}\n", self.json(about));
        std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
    }
}

fn line_json(line: &Line) -> Value {
    let mut value = json!({ "key": line.key, "text": line.text });
    if let Some(summary) = line.summary() {
        value["unit"] = json!(line.unit);
        value["median"] = json!(summary.median);
        value["least"] = json!(summary.least);
        value["most"] = json!(summary.most);
        match line.promise {
            Promise::None => {}
            Promise::AtMost(limit) => value["at_most"] = json!(limit),
            Promise::AtLeast(limit) => value["at_least"] = json!(limit),
        }
        value["held"] = json!(line.promise.held(summary.median));
    }
    match &line.outcome {
        Outcome::Samples(samples) => value["samples"] = json!(samples),
        Outcome::Ratio(over, under) => value["ratio_of"] = json!([over, under]),
        Outcome::Failed(reason) => value["failed"] = json!(reason),
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_are_kept_at_their_limit() {
        assert_eq!(Promise::AtMost(1.0).held(1.0), Some(true));
        assert_eq!(Promise::AtMost(1.0).held(1.1), Some(false));
        assert_eq!(Promise::AtLeast(4.0).held(3.9), Some(false));
        assert_eq!(Promise::None.held(3.9), None);
    }

    #[test]
    fn the_json_has_every_sample_and_every_failure() {
        let mut report = Report::default();
        report.samples("a", "A", "ms", Promise::AtMost(2.0), &[1.0, 3.0, 2.0]);
        report.ratio("b", "B", Promise::None, &[4.0], &[2.0]);
        report.samples("c", "C", "ms", Promise::None, &[]);
        let json = report.json(&json!({}));
        assert_eq!(json["lines"][0]["samples"], json!([1.0, 3.0, 2.0]));
        assert_eq!(json["lines"][0]["held"], json!(true));
        assert_eq!(json["lines"][1]["median"], json!(2.0));
        assert!(json["lines"][2]["failed"].is_string());
        assert_eq!(report.failures().count(), 1);
    }
}
