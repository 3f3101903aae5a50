//! The table that people see: markdown, one line per figure.

use std::fmt::Write as _;

use crate::{
    earlier::Earlier,
    report::{Line, Outcome, Promise, Report},
};

/// The whole table, with what an earlier run gave where there is one.
pub fn table(report: &Report, earlier: &Earlier) -> String {
    let mut text = String::new();
    let (last, rule) = if earlier.is_empty() { ("", "") } else { (" before |", "---|") };
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "| what | median | least–most | runs | promised |{last}\n|---|---|---|---|---|{rule}"
    );
    for line in report.lines() {
        let last = if earlier.is_empty() {
            String::new()
        } else {
            format!(" {} |", before(line, earlier))
        };
        let _ = writeln!(text, "{}{last}", row(line));
    }
    text
}

fn before(line: &Line, earlier: &Earlier) -> String {
    let Some(change) = earlier.change(line) else { return String::new() };
    let (digits, mark) = (digits(change.before), if change.is_worse { ", **worse**" } else { "" });
    format!("{:.digits$} {}{mark}", change.before, line.unit)
}

fn row(line: &Line) -> String {
    let text = &line.text;
    let Some(all) = line.summary() else {
        let reason = match &line.outcome {
            Outcome::Failed(reason) => reason.as_str(),
            _ => "no sample",
        };
        let reason = reason.replace('|', "\\|").replace('\n', " ");
        return format!("| {text} | **not measured**: {reason} | | | |");
    };
    let unit = line.unit;
    let digits = digits(all.median);
    format!(
        "| {text} | {:.digits$} {unit} | {:.digits$}–{:.digits$} | {} | {} |",
        all.median,
        all.least,
        all.most,
        line.runs(),
        promise(line.promise, all.median, unit),
    )
}

/// Three figures that count are as many as a busy host allows.
fn digits(value: f64) -> usize {
    match value.abs() {
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    }
}

fn promise(promise: Promise, value: f64, unit: &str) -> String {
    let limit = match promise {
        Promise::None => return String::new(),
        Promise::AtMost(limit) => format!("≤ {limit} {unit}"),
        Promise::AtLeast(limit) => format!("≥ {limit} {unit}"),
    };
    let verdict = if promise.held(value) == Some(true) { "held" } else { "**not held**" };
    format!("{limit}: {verdict}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_their_figures_promise_and_failure() {
        let mut report = Report::default();
        report.samples("start", "start", "ms", Promise::None, &[120.0, 100.0, 110.4]);
        report.ratio(
            "ratio",
            "start against podman",
            Promise::AtMost(1.0),
            &[2.0, 3.0],
            &[2.0, 2.0],
        );
        report.failed("suspend", "suspend", "404\nno | such endpoint");
        assert_eq!(
            table(&report, &Earlier::default()),
            "| what | median | least–most | runs | promised |\n|---|---|---|---|---|\n\
             | start | 110 ms | 100–120 | 3 |  |\n\
             | start against podman | 1.25 × | 1.00–1.50 | 2 | ≤ 1 ×: **not held** |\n\
             | suspend | **not measured**: 404 no \\| such endpoint | | | |\n"
        );
    }
}
