//! Which image of an archive is meant: by name, by `@` and its place in the list (as
//! containers-transports(5) has it), or the only one that there is.

use crate::{ImageError, reference::parse_reference};

/// Registry of names in archives that have none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Names that an error lists.
const MOST_LISTED: usize = 50;

/// An image, or a build of one, that an archive lists.
pub(super) trait Named {
    /// Whether entries of one name, or none, are builds of one image for several platforms.
    const ARE_BUILDS: bool;

    /// Same for those that are the same.
    fn content(&self) -> &str;

    /// What it is called, the best name first.
    fn names(&self) -> Vec<&str>;
}

/// The entries meant: several are builds of one image for different platforms, or names of one
/// build.
pub(super) fn pick<'a, T: Named>(
    entries: &'a [T],
    wanted: Option<&str>,
) -> Result<Vec<&'a T>, ImageError> {
    let picked: Vec<&T> = match wanted {
        Some(wanted) => {
            match wanted.strip_prefix('@').and_then(|place| place.parse::<usize>().ok()) {
                Some(place) => entries.get(place).into_iter().collect(),
                None => {
                    let called =
                        |entry: &&T| entry.names().iter().any(|name| is_same(name, wanted));
                    entries.iter().filter(called).collect()
                }
            }
        }
        None if is_one(entries) => entries.iter().collect(),
        None => Vec::new(),
    };
    if picked.is_empty() { Err(not_one(entries, wanted)) } else { Ok(picked) }
}

fn is_one<T: Named>(entries: &[T]) -> bool {
    let all = |alike: fn(&T, &T) -> bool| entries.windows(2).all(|pair| alike(&pair[0], &pair[1]));
    all(|one, other| one.content() == other.content())
        || T::ARE_BUILDS && all(|one, other| one.names() == other.names())
}

fn is_same(name: &str, wanted: &str) -> bool {
    let whole =
        |text| parse_reference(text, DEFAULT_REGISTRY).ok().map(|parsed| parsed.canonical());
    name == wanted || whole(name).is_some_and(|name| whole(wanted) == Some(name))
}

fn not_one<T: Named>(entries: &[T], wanted: Option<&str>) -> ImageError {
    let known = entries.iter().enumerate().take(MOST_LISTED).map(|(place, entry)| {
        match entry.names().first() {
            Some(name) => name.chars().filter(|c| !c.is_control()).take(300).collect(),
            None => format!("@{place}"),
        }
    });
    let known = known.collect::<Vec<String>>().join(", ");
    let (what, how) = (
        wanted.unwrap_or("(no name given)"),
        "docker-archive:FILE:NAME, oci-archive:FILE:NAME or oci:DIRECTORY:NAME",
    );
    let hint = match (entries.len(), wanted) {
        (0, _) => "the archive contains no image".to_owned(),
        (_, Some(_)) => format!("the archive contains {known}"),
        (_, None) => {
            format!("the archive contains several; choose one as in {how}: {known}")
        }
    };
    ImageError::NotFound { what: what.to_owned(), hint }
}
