//! Tables as the field's command line draws them: one leading space, cells padded and joined by ` │ `, no border.

use std::fmt::Write as _;

const JOINT: &str = " │ ";

/// A table with a column per header, or without any header line when `headers` is empty. Ends with an empty line.
pub fn horizontal(title: &str, headers: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = headers.iter().map(|header| header.to_uppercase()).collect();
    let lines: Vec<&Vec<String>> = (!header.is_empty()).then_some(&header).into_iter().chain(rows).collect();
    let columns = lines.iter().map(|line| line.len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| lines.iter().filter_map(|line| line.get(column)).map(|cell| width(cell)).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    if !title.is_empty() {
        let _ = writeln!(text, "{title}");
    }
    for line in lines {
        let cells: Vec<String> = widths
            .iter()
            .enumerate()
            .map(|(column, width)| pad(line.get(column).map_or("", String::as_str), *width))
            .collect();
        let _ = writeln!(text, " {}", cells.join(JOINT));
    }
    text.push('\n');
    text
}

/// A table with a line per label. Ends with an empty line.
pub fn vertical(title: &str, rows: &[(&str, String)]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|(label, value)| vec![(*label).to_owned(), value.clone()]).collect();
    horizontal(title, &[], &rows)
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn pad(text: &str, to: usize) -> String {
    // A line break or a control character from a name, a label or a log must not break the table or the terminal.
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let missing = to.saturating_sub(width(&clean));
    format!("{clean}{}", " ".repeat(missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_padded_and_joined() {
        let rows = vec![vec!["1".to_owned(), "grün".to_owned()], vec!["22".to_owned(), String::new()]];
        assert_eq!(horizontal("app", &["ID", "Name"], &rows), "app\n ID │ NAME\n 1  │ grün\n 22 │     \n\n");
        assert_eq!(vertical("VM", &[("ID", "1".to_owned())]), "VM\n ID │ 1\n\n");
        assert_eq!(horizontal("", &["ID"], &[vec!["a\n\u{1b}[2Jb".to_owned()]]), " ID     \n a  [2Jb\n\n");
    }
}
