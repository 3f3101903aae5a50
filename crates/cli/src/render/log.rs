//! Lines of a log.

use caddis_api::logs::LogAttributes;

use super::paint::Paint;

/// Ends a line that is too long for one entry.
const CUT: &str = " [line cut, continues]";

/// `2026-08-21T10:00:00Z app[ID] REGION [info]message`, as the field's command line writes it.
pub fn line(attributes: &LogAttributes, paint: Paint) -> String {
    let provider = &attributes.meta.event.provider;
    let source = if provider.is_empty() {
        attributes.instance.clone()
    } else {
        format!("{provider}[{}]", attributes.instance)
    };
    let time = attributes
        .timestamp
        .split_once('.')
        .map_or(attributes.timestamp.clone(), |(time, _)| format!("{time}Z"));
    let level = match attributes.level.as_str() {
        "error" => paint.error("error"),
        level => level.to_owned(),
    };
    let cut = if attributes.partial { CUT } else { "" };
    format!("{time} {source} {} [{level}]{}{cut}", attributes.region, tame(&attributes.message))
}

/// What a program writes must not move the cursor of who reads it, nor anything else but colour its
/// own words.
fn tame(message: &str) -> String {
    let mut tame = String::with_capacity(message.len());
    let (mut rest, mut coloured) = (message, false);
    while let Some(character) = rest.chars().next() {
        let colour = rest.strip_prefix("\u{1b}[").and_then(|parameters| {
            let length = parameters.find(|c: char| !c.is_ascii_digit() && c != ';')?;
            parameters[length..].starts_with('m').then(|| &rest[..2 + length + 1])
        });
        if let Some(colour) = colour {
            tame.push_str(colour);
            coloured = true;
            rest = &rest[colour.len()..];
            continue;
        }
        if !character.is_control() || character == '\t' {
            tame.push(character);
        }
        rest = &rest[character.len_utf8()..];
    }
    if coloured {
        tame.push_str("\u{1b}[0m");
    }
    tame
}

#[cfg(test)]
mod tests {
    use caddis_api::{
        RegionCode,
        logs::{LogAttributes, LogEntryMeta, LogProvider},
    };

    use super::{line, tame};
    use crate::render::paint::Paint;

    #[test]
    fn a_line_that_was_cut_says_so() {
        let attributes = |partial| LogAttributes {
            timestamp: "2026-08-21T10:00:00.5Z".to_owned(),
            message: "text".to_owned(),
            partial,
            level: "info".to_owned(),
            instance: "1".to_owned(),
            region: RegionCode::from_trusted("here"),
            meta: LogEntryMeta {
                instance: "1".to_owned(),
                region: RegionCode::from_trusted("here"),
                event: LogProvider::default(),
            },
        };
        let paint = Paint::default();
        assert_eq!(line(&attributes(false), paint), "2026-08-21T10:00:00Z 1 here [info]text");
        assert_eq!(
            line(&attributes(true), paint),
            "2026-08-21T10:00:00Z 1 here [info]text [line cut, continues]"
        );
    }

    #[test]
    fn colours_stay_and_end_with_the_line_and_all_else_that_steers_a_terminal_goes() {
        for (message, expected) in [
            ("plain\ttext ü", "plain\ttext ü"),
            ("\u{1b}[1;31mred", "\u{1b}[1;31mred\u{1b}[0m"),
            ("\u{1b}[2J\u{1b}[H\u{1b}]0;title\u{7}\r\u{9b}x\u{1b}", "[2J[H]0;titlex"),
            ("\u{1b}[31", "[31"),
        ] {
            assert_eq!(tame(message), expected);
        }
    }
}
