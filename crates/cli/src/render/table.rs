//! Tables as the field's command line draws them: one leading space, cells padded and joined by
//! ` │ `, no border.
//!
//! On a terminal they fit: columns without any text are dropped, and where that is not enough the
//! wide ones come last, the last that has room is wrapped, and a line below names those that have
//! none.

use std::fmt::Write as _;

const JOINT: &str = " │ ";
/// What is wider comes last where there is no room for all.
const WIDE: usize = 20;
/// A column is not made narrower.
const NARROWEST: usize = 16;
/// Columns with these headers have colours by what they say.
const COLOURED: [&str; 2] = ["STATE", "STATUS"];

/// Where a table is shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Screen {
    /// Columns of the terminal; without it a table is as wide as what is in it.
    pub columns: Option<usize>,
    /// Colours are wanted.
    pub colour: bool,
}

/// A column: its header, when the table has any, then a cell per row.
struct Column {
    cells: Vec<String>,
    width: usize,
}

/// A table with a column per header, or without any header line when `headers` is empty. Ends with
/// an empty line.
pub fn horizontal(screen: Screen, title: &str, headers: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = headers.iter().map(|header| header.to_uppercase()).collect();
    let lines: Vec<&Vec<String>> =
        (!header.is_empty()).then_some(&header).into_iter().chain(rows).collect();
    let count = lines.iter().map(|line| line.len()).max().unwrap_or(0);
    let column = |at: usize| {
        let cells: Vec<_> =
            lines.iter().map(|line| clean(line.get(at).map_or("", String::as_str))).collect();
        Column { width: cells.iter().map(|cell| width(cell)).max().unwrap_or(0), cells }
    };
    let mut columns: Vec<_> = (0..count).map(column).collect();
    let left_out = match screen.columns {
        Some(room) if !header.is_empty() => fit(&mut columns, room),
        _ => Vec::new(),
    };
    let mut text = String::new();
    if !title.is_empty() {
        let _ = writeln!(text, "{title}");
    }
    for row in 0..lines.len() {
        draw(&mut text, &columns, row, screen.colour);
    }
    if !left_out.is_empty() {
        let _ = writeln!(text, " Not shown, the terminal is too narrow: {}", left_out.join(", "));
    }
    text.push('\n');
    text
}

/// A table with a line per label. Ends with an empty line.
pub fn vertical(screen: Screen, title: &str, rows: &[(&str, String)]) -> String {
    let paint = |label: &str, value: &str| match screen.colour
        && COLOURED.contains(&label.to_uppercase().as_str())
    {
        true => painted(value, value),
        false => value.to_owned(),
    };
    let labels = rows.iter().map(|(label, _)| width(label)).max().unwrap_or(0);
    let widest = rows.iter().map(|(_, value)| width(value)).max().unwrap_or(0);
    // On a terminal without blanks at the end, which would be lines of their own.
    let room = screen
        .columns
        .map(|columns| columns.saturating_sub(1 + labels + width(JOINT)).max(NARROWEST));
    let mut text = String::new();
    if !title.is_empty() {
        let _ = writeln!(text, "{title}");
    }
    for (label, value) in rows {
        let value = clean(value);
        let Some(room) = room else {
            let padding = " ".repeat(widest - width(&value));
            let _ =
                writeln!(text, " {}{JOINT}{}{padding}", pad(label, labels), paint(label, &value));
            continue;
        };
        for (line, part) in wrapped(&value, room).iter().enumerate() {
            let label = if line == 0 { label } else { "" };
            let _ = writeln!(text, " {}{JOINT}{}", pad(label, labels), paint(label, part));
        }
    }
    text.push('\n');
    text
}

/// Leaves what fits into so many columns of a terminal, and gives the headers of what was in it and
/// has no room.
fn fit(columns: &mut Vec<Column>, room: usize) -> Vec<String> {
    if columns.iter().any(|column| column.cells.len() > 1) {
        columns.retain(|column| column.cells[1..].iter().any(|cell| !cell.is_empty()));
    }
    let joint = width(JOINT);
    let total = |columns: &[Column]| {
        columns.iter().map(|column| column.width + joint).sum::<usize>() + 1 - joint
    };
    if columns.is_empty() || total(columns) <= room {
        return Vec::new();
    }
    // What rows are known by stays the first.
    columns[1..].sort_by_key(|column| column.width > WIDE);
    let fitting =
        (1..=columns.len()).rev().find(|count| total(&columns[..*count]) <= room).unwrap_or(1);
    let left = room.saturating_sub(total(&columns[..fitting]) + joint);
    let mut shown = fitting;
    if let Some(next) = columns.get_mut(fitting).filter(|_| left >= NARROWEST) {
        next.width = left;
        shown += 1;
    }
    columns.drain(shown..).map(|column| column.cells[0].clone()).collect()
}

/// One row; a cell that is wider than its column has lines below.
fn draw(text: &mut String, columns: &[Column], row: usize, colour: bool) {
    let cells: Vec<_> =
        columns.iter().map(|column| wrapped(&column.cells[row], column.width)).collect();
    let height = cells.iter().map(Vec::len).max().unwrap_or(0);
    for line in 0..height {
        let shown = columns.iter().zip(&cells).map(|(column, cell)| {
            let padded = pad(cell.get(line).map_or("", String::as_str), column.width);
            let is_coloured = colour && row > 0 && COLOURED.contains(&column.cells[0].as_str());
            if is_coloured { painted(&column.cells[row], &padded) } else { padded }
        });
        let _ = writeln!(text, " {}", shown.collect::<Vec<_>>().join(JOINT));
    }
}

/// A text in the colour of the state that it shows: green for what works, red for what does not,
/// yellow in between.
fn painted(state: &str, text: &str) -> String {
    let code = match state {
        "started" | "passing" => "32",
        "failed" | "destroyed" | "critical" => "31",
        "warning" => "33",
        // What goes on.
        state if state.ends_with("ing") => "33",
        _ => return text.to_owned(),
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// The lines of a cell: broken between words, or within one that is too long for a line.
fn wrapped(cell: &str, to: usize) -> Vec<String> {
    if width(cell) <= to {
        return vec![cell.to_owned()];
    }
    let mut lines = vec![String::new()];
    for word in cell.split_inclusive(' ') {
        let mut word: Vec<char> = word.chars().collect();
        while !word.is_empty() {
            let line = lines.last_mut().map_or(0, |line| width(line));
            let needed = word.iter().rev().skip_while(|c| **c == ' ').count();
            if line > 0 && line + needed > to {
                lines.push(String::new());
                continue;
            }
            let rest = word.split_off(word.len().min(to - line));
            if let Some(line) = lines.last_mut() {
                line.extend(&word);
            }
            // A space that has no room is none that counts.
            word = if needed <= to - line { Vec::new() } else { rest };
        }
    }
    lines
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// A line break or a control character from a name, a label or a log must not break the table or
/// the terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn pad(text: &str, to: usize) -> String {
    let missing = to.saturating_sub(width(text));
    format!("{text}{}", " ".repeat(missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPE: Screen = Screen { columns: None, colour: false };

    fn rows(rows: &[&[&str]]) -> Vec<Vec<String>> {
        rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect()
    }

    fn on(columns: usize, headers: &[&str], cells: &[&[&str]]) -> String {
        horizontal(Screen { columns: Some(columns), colour: false }, "", headers, &rows(cells))
    }

    #[test]
    fn cells_are_padded_and_joined() {
        let two = rows(&[&["1", "grün"], &["22", ""]]);
        assert_eq!(
            horizontal(PIPE, "app", &["ID", "Name"], &two),
            "app\n ID │ NAME\n 1  │ grün\n 22 │     \n\n"
        );
        assert_eq!(vertical(PIPE, "VM", &[("ID", "1".to_owned())]), "VM\n ID │ 1\n\n");
        let wild = rows(&[&["a\n\u{1b}[2Jb"]]);
        assert_eq!(horizontal(PIPE, "", &["ID"], &wild), " ID     \n a  [2Jb\n\n");
        assert_eq!(vertical(PIPE, "", &[("ID", "a\n\u{1b}[2J".to_owned())]), " ID │ a  [2J\n\n");
    }

    #[test]
    fn on_a_terminal_columns_without_text_are_dropped() {
        let cells: &[&[&str]] = &[&["1", "", "x"], &["2", "", ""]];
        assert_eq!(
            on(80, &["ID", "Role", "Name"], cells),
            " ID │ NAME\n 1  │ x   \n 2  │     \n\n"
        );
        assert_eq!(on(80, &["ID", "Role"], &[]), " ID │ ROLE\n\n", "nothing to go by");
    }

    #[test]
    fn what_has_no_room_comes_last_is_wrapped_and_then_named() {
        let image = "docker.io/library/nginx:1";
        let cells: &[&[&str]] = &[&["1", image, "started", "fdaa:0:0:0:0:0:0:0:0:2"]];
        let headers = ["ID", "Image", "State", "IP Address"];
        let whole = " ID │ IMAGE                     │ STATE   │ IP ADDRESS            \n";
        assert!(on(67, &headers, cells).starts_with(whole), "{}", on(67, &headers, cells));
        assert_eq!(
            on(50, &headers, cells),
            " ID │ STATE   │ IMAGE                    \n 1  │ started │ \
             docker.io/library/nginx:1\n Not shown, the terminal is too narrow: IP ADDRESS\n\n"
        );
        assert_eq!(
            on(33, &headers, cells),
            " ID │ STATE   │ IMAGE            \n 1  │ started │ docker.io/library\n    │         │ \
             /nginx:1         \n Not shown, the terminal is too narrow: IP ADDRESS\n\n"
        );
        for columns in 1..70 {
            for line in
                on(columns, &headers, cells).lines().filter(|line| !line.contains("Not shown"))
            {
                assert!(width(line) <= columns.max(3), "{columns}: {line:?}");
            }
        }
    }

    #[test]
    fn facts_fit_too() {
        let facts = [
            ("ID", "1".to_owned()),
            ("Image", "docker.io/library/nginx:1@sha256:0123456789".to_owned()),
        ];
        let narrow = Screen { columns: Some(30), colour: false };
        assert_eq!(
            vertical(narrow, "", &facts),
            " ID    │ 1\n Image │ docker.io/library/ngi\n       │ nx:1@sha256:012345678\n       │ \
             9\n\n"
        );
    }

    #[test]
    fn words_stay_whole_where_they_can() {
        let words = |text, to| {
            wrapped(text, to).iter().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(words("one two three", 7), ["one two", "three"]);
        assert_eq!(words("one two three", 8), ["one two", "three"]);
        assert_eq!(words("a abcdefgh b", 4), ["a", "abcd", "efgh", "b"]);
        assert_eq!(words("abcd", 4), ["abcd"]);
        assert_eq!(words("", 4), [""]);
    }

    #[test]
    fn states_have_colours_that_take_no_room() {
        let coloured = Screen { columns: None, colour: true };
        let states = rows(&[&["started", "started"], &["stopped", ""], &["stopping", ""]]);
        assert_eq!(
            horizontal(coloured, "", &["State", "Name"], &states),
            " STATE    │ NAME   \n \u{1b}[32mstarted \u{1b}[0m │ started\n stopped  │        \n \
             \u{1b}[33mstopping\u{1b}[0m │        \n\n"
        );
        let facts = [("State", "failed".to_owned()), ("Name", "failed".to_owned())];
        assert_eq!(
            vertical(coloured, "", &facts),
            " State │ \u{1b}[31mfailed\u{1b}[0m\n Name  │ failed\n\n"
        );
    }
}
