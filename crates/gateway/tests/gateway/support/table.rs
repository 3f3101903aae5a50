//! Reads `reference.tsv`; its head says what stands in it.

use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq)]
pub enum Mark {
    /// With types or a type of ours when they differ.
    Same(Option<String>),
    Missing,
    Added,
}

#[derive(Debug, Clone)]
pub struct Line {
    pub place: String,
    /// In the reference.
    pub kind: String,
    pub mark: Mark,
    /// Whether it has what belongs to it below.
    pub is_head: bool,
}

pub struct Table {
    pub lines: Vec<Line>,
    /// Names of our types by the reference's.
    names: BTreeMap<String, Vec<String>>,
}

impl Table {
    pub fn read(text: &str) -> Self {
        let mut lines: Vec<Line> = Vec::new();
        let mut head =
            Line { place: String::new(), kind: String::new(), mark: Mark::Added, is_head: true };
        for text in text.lines().filter(|text| !text.is_empty() && !text.starts_with('#')) {
            let mut columns = text.split('\t');
            let [place, kind, mark] = [(); 3].map(|()| columns.next().unwrap_or_default());
            assert_eq!(columns.next(), None, "three columns: {text}");
            let (place, kind) = (place.to_owned(), kind.to_owned());
            if let Some(below) = place.strip_prefix("  ") {
                let mark = self::mark(mark).unwrap_or_else(|| match head.mark {
                    Mark::Same(_) => Mark::Same(None),
                    ref mark => mark.clone(),
                });
                lines.push(Line {
                    place: format!("{} {below}", head.place),
                    kind,
                    mark,
                    is_head: false,
                });
                continue;
            }
            let mark = self::mark(mark).unwrap_or_else(|| panic!("no mark: {text}"));
            head = Line { place, kind, mark, is_head: true };
            match head.kind.strip_prefix('{').and_then(|fields| fields.strip_suffix('}')) {
                // A type in one line.
                Some(fields) if !head.kind.starts_with("{string: ") => {
                    let fields = split(fields).into_iter().map(|(name, kind)| Line {
                        place: format!("{} {name}", head.place),
                        kind: kind.to_owned(),
                        mark: head.mark.clone(),
                        is_head: false,
                    });
                    lines.push(Line { kind: String::new(), ..head.clone() });
                    lines.extend(fields);
                }
                _ => lines.push(head.clone()),
            }
        }
        let names = lines.iter().filter(|line| line.is_head && !line.place.contains(' '));
        let names = names.filter_map(|line| match &line.mark {
            Mark::Same(None) => Some((line.place.clone(), vec![line.place.clone()])),
            Mark::Same(Some(ours)) => {
                Some((line.place.clone(), ours.split(", ").map(str::to_owned).collect()))
            }
            _ => None,
        });
        Self { names: names.collect(), lines }
    }

    /// Where a line's place is with us: several where a type of the reference is several of ours.
    pub fn places(&self, line: &Line) -> Vec<String> {
        let (head, below) = match line.place.split_once(' ') {
            Some((head, below)) => (head, format!(" {below}")),
            None => (line.place.as_str(), String::new()),
        };
        match self.names.get(head) {
            Some(names) => names.iter().map(|name| format!("{name}{below}")).collect(),
            None => vec![line.place.clone()],
        }
    }

    /// What the type of a line is with us.
    pub fn kind(&self, line: &Line) -> String {
        match &line.mark {
            Mark::Same(Some(ours)) if !line.is_head => ours.clone(),
            _ => self.translate(&line.kind),
        }
    }

    fn translate(&self, kind: &str) -> String {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '_';
        let mut translated = String::new();
        let mut rest = kind;
        while let Some(start) = rest.find(is_name) {
            let end =
                rest[start..].find(|c| !is_name(c)).map_or(rest.len(), |length| start + length);
            let name = &rest[start..end];
            translated.push_str(&rest[..start]);
            translated.push_str(self.names.get(name).map_or(name, |names| &names[0]));
            rest = &rest[end..];
        }
        translated + rest
    }
}

fn mark(text: &str) -> Option<Mark> {
    let (word, rest) = text.split_once(':').unwrap_or((text, ""));
    let (word, note) = word.split_once(';').unwrap_or((word, ""));
    let (kind, _) = rest.split_once(';').unwrap_or((rest, ""));
    let kind = Some(kind.trim().to_owned()).filter(|kind| !kind.is_empty() && note.is_empty());
    Some(match (word.trim(), kind) {
        ("", None) => return None,
        ("same", kind) => Mark::Same(kind),
        ("missing", Some(_)) => Mark::Missing,
        ("added", Some(_)) => Mark::Added,
        _ => panic!("no such mark: {text}"),
    })
}

/// `a: string, b: {c: [d]}` at its outer commas.
fn split(fields: &str) -> Vec<(&str, &str)> {
    let mut depth = 0;
    let outer = |c: char| {
        depth += i32::from("{[(".contains(c)) - i32::from("}])".contains(c));
        c == ',' && depth == 0
    };
    fields.split(outer).map(|field| field.trim().split_once(": ").unwrap()).collect()
}
