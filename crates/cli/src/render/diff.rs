//! What differs between two configurations, in lines of JSON: a gutter of two characters, a little
//! of what stays the same around each difference, and how much of it was left out.

use serde_json::Value;
use similar::{ChangeTag, TextDiff};

use super::paint::Paint;

/// Lines shown around a difference, as many as the reference shows.
const CONTEXT: usize = 2;

/// The difference, with a line end after each line.
pub fn json(paint: Paint, old: &Value, new: &Value) -> String {
    let (old, new) = (lines(old), lines(new));
    let (old_lines, new_lines) = (alike(&old), alike(&new));
    let (old_refs, new_refs) = (refs(&old_lines), refs(&new_lines));
    let diff = TextDiff::from_slices(&old_refs, &new_refs);
    let line = |change: similar::Change<&str>| match (change.old_index(), change.new_index()) {
        (_, Some(at)) => new[at].clone(),
        (Some(at), None) => old[at].clone(),
        (None, None) => change.value().to_owned(),
    };
    let changes: Vec<_> =
        diff.iter_all_changes().map(|change| (change.tag(), line(change))).collect();
    let differs: Vec<_> = changes.iter().map(|(tag, _)| *tag != ChangeTag::Equal).collect();
    let near = |index: usize| {
        let (from, to) = (index.saturating_sub(CONTEXT), (index + CONTEXT + 1).min(differs.len()));
        differs[from..to].contains(&true)
    };
    let (mut text, mut skipped) = (String::new(), Vec::new());
    for (index, (tag, line)) in changes.iter().enumerate() {
        if !near(index) {
            skipped.push(line);
            continue;
        }
        leave_out(&mut text, &mut skipped);
        let shown = match tag {
            ChangeTag::Equal => format!("  {line}"),
            ChangeTag::Delete => paint.error(&format!("- {line}")),
            ChangeTag::Insert => paint.added(&format!("+ {line}")),
        };
        text.push_str(&shown);
        text.push('\n');
    }
    leave_out(&mut text, &mut skipped);
    text
}

/// Tells of lines that are the same. One alone takes no more room than what would be said of it.
fn leave_out(text: &mut String, skipped: &mut Vec<&String>) {
    match skipped.as_slice() {
        [] => {}
        [line] => *text += &format!("  {line}\n"),
        lines => {
            let indent: String = lines[0].chars().take_while(|c| *c == ' ').collect();
            *text += &format!("  {indent}... // {} identical lines\n", lines.len());
        }
    }
    skipped.clear();
}

fn refs(lines: &[String]) -> Vec<&str> {
    lines.iter().map(String::as_str).collect()
}

/// One value or bracket each.
fn lines(value: &Value) -> Vec<String> {
    serde_json::to_string_pretty(value).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// The lines without the commas at their ends, as what follows a value makes no difference.
fn alike(lines: &[String]) -> Vec<String> {
    lines.iter().map(|line| line.trim_end_matches(',').to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_have_a_gutter_and_a_little_around_them() {
        let old = json!({ "auto_destroy": false, "dns": {}, "env": { "A": "1" },
                          "guest": { "cpus": 1, "memory_mb": 256 },
                          "image": "nginx:1", "init": {}, "metadata": {} });
        let mut new = old.clone();
        new["env"]["B"] = json!("2");
        new["guest"]["memory_mb"] = json!(512);
        let paint = Paint::default();
        assert_eq!(
            json(paint, &old, &new),
            "  ... // 3 identical lines\n    \"env\": {\n      \"A\": \"1\",\n\
             +     \"B\": \"2\"\n    },\n    \"guest\": {\n      \"cpus\": \
             1,\n-     \"memory_mb\": 256\n\
             +     \"memory_mb\": 512\n    },\n    \"image\": \"nginx:1\",\n    ... // 3 identical \
             lines\n"
        );
        assert_eq!(json(paint, &old, &old), "  ... // 14 identical lines\n");
    }
}
