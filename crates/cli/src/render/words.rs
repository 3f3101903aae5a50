//! Numbers and lists in sentences.

/// Names that are listed; there may be a hundred.
const LISTED: usize = 5;

/// `1 machine`, `2 machines`.
pub fn count(number: usize, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{ending}")
}

/// The first few names, and how many more there are.
pub fn few(names: &[String]) -> String {
    let listed = names[..names.len().min(LISTED)].join(", ");
    match names.len().saturating_sub(LISTED) {
        0 => listed,
        more => format!("{listed} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural_and_many_names_are_cut_short() {
        assert_eq!(count(1, "machine"), "1 machine");
        assert_eq!([0, 2].map(|number| count(number, "app")), ["0 apps", "2 apps"]);
        let names = Vec::from_iter((1..=7).map(|number| format!("a:{number}")));
        assert_eq!(few(&names[..1]), "a:1");
        assert_eq!(few(&names[..5]), "a:1, a:2, a:3, a:4, a:5");
        assert_eq!(few(&names), "a:1, a:2, a:3, a:4, a:5 and 2 more");
    }
}
