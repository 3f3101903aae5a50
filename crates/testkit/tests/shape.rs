//! The shape of the crates: no modules that import each other in a circle, no long files, no long
//! lines.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Crates whose modules do so still.
const CIRCULAR: [&str; 4] = ["network", "proxy", "testkit", "worker"];

/// Lines of a file, but for its tests.
const LONGEST: usize = 500;

/// Characters of a line, but for inline snapshots.
const WIDEST: usize = 100;

type Imports = BTreeMap<String, BTreeSet<String>>;

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

fn without_tests(path: &Path) -> String {
    let mut text = fs::read_to_string(path).unwrap();
    text.truncate(text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len()));
    text
}

/// What of a file is no comment and no test.
fn code(path: &Path) -> String {
    let text = without_tests(path);
    let lines = text.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// The directories with sources of crates, by the names of these.
fn crates() -> BTreeMap<String, PathBuf> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let all = fs::read_dir(crates).unwrap().map(|entry| entry.unwrap());
    let named =
        all.map(|entry| (entry.file_name().into_string().unwrap(), entry.path().join("src")));
    named.filter(|(_, source)| source.is_dir()).collect()
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// The first words of the paths in `{a::B, c::{D, E}}`, or of the one path that a text begins with.
fn first_words(text: &str) -> Vec<&str> {
    let Some(group) = text.strip_prefix('{') else { return words(text).take(1).collect() };
    let (mut depth, mut paths, mut begin) = (0, Vec::new(), 0);
    for (at, character) in group.char_indices() {
        match character {
            '}' if depth == 0 => {
                paths.push(&group[begin..at]);
                break;
            }
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                paths.push(&group[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    paths.into_iter().filter_map(|path| words(path).next()).collect()
}

/// Which modules of a crate import which: those right below its root, with all that is in them.
fn imports(source: &Path) -> Imports {
    let root = code(&source.join("lib.rs"));
    let files: Vec<_> = sources(source)
        .into_iter()
        .filter(|path| is_rust(path))
        .map(|path| (path.strip_prefix(source).unwrap().with_extension(""), code(&path)))
        .collect();
    let name = |path: &Path| path.iter().next().unwrap().to_str().unwrap().to_owned();
    let mut imports: Imports =
        files.iter().map(|(path, _)| (name(path), BTreeSet::new())).collect();
    imports.retain(|module, _| !["lib", "main", "bin"].contains(&module.as_str()));
    // Where the root has it from.
    let mut exported = BTreeMap::new();
    for line in root.split(';').filter_map(|line| line.rsplit_once("use ")) {
        let mut path = words(line.1);
        let Some(module) = path.next().filter(|module| imports.contains_key(*module)) else {
            continue;
        };
        exported.extend(path.map(|word| (word, module.to_owned())));
    }
    for (path, code) in files.iter().filter(|(path, _)| !path.ends_with("tests")) {
        let found: BTreeSet<_> = code
            .split("crate::")
            .skip(1)
            .flat_map(first_words)
            .filter_map(|word| match imports.contains_key(word) {
                true => Some(word.to_owned()),
                false => exported.get(word).cloned(),
            })
            .collect();
        let module = name(path);
        if let Some(imported) = imports.get_mut(&module) {
            imported.extend(found.into_iter().filter(|other| *other != module));
        }
    }
    imports
}

/// What is left without modules that import none of the others, or that none of them imports.
fn circles(mut imports: Imports) -> Imports {
    loop {
        let imported: BTreeSet<_> = imports.values().flatten().cloned().collect();
        let free: Vec<_> = imports
            .iter()
            .filter(|(module, others)| others.is_empty() || !imported.contains(*module))
            .map(|(module, _)| module.clone())
            .collect();
        if free.is_empty() {
            return imports;
        }
        imports.retain(|module, _| !free.contains(module));
        imports.values_mut().for_each(|others| others.retain(|other| !free.contains(other)));
    }
}

#[test]
fn modules_do_not_import_each_other_in_circles() {
    let mut crates = crates();
    crates.retain(|_, source| source.join("lib.rs").is_file());
    assert!(crates.len() > 15, "{crates:?}");
    let circular = crates.iter().map(|(name, source)| (name, circles(imports(source))));
    let circular: Vec<_> = circular.filter(|(_, circles)| !circles.is_empty()).collect();
    let names: Vec<_> = circular.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, CIRCULAR, "{circular:#?}");
}

#[test]
fn no_file_is_long() {
    for source in crates().values() {
        for path in sources(source).iter().filter(|path| is_rust(path)) {
            let lines = without_tests(path).lines().count();
            assert!(lines <= LONGEST, "{} has {lines} lines", path.display());
        }
    }
}

/// What is before and after the first inline snapshot: its lines are those of what it shows.
fn around_snapshot(text: &str) -> Option<(&str, &str)> {
    let begins = text.match_indices('@').filter(|(at, _)| text[..*at].ends_with([' ', '(']));
    begins.map(|(at, _)| at).find_map(|at| {
        let literal = &text[at + 1..];
        let raw = literal.strip_prefix('r');
        let hashes = raw.map_or("", |raw| &raw[..raw.len() - raw.trim_start_matches('#').len()]);
        let content = raw.map_or(literal, |raw| &raw[hashes.len()..]).strip_prefix('"')?;
        let mut is_escaped = false;
        let closes = |character: char| {
            let closes = character == '"' && !is_escaped;
            is_escaped = character == '\\' && !is_escaped;
            closes
        };
        let end = match raw {
            Some(_) => content.find(&format!("\"{hashes}")),
            None => content.find(closes),
        };
        Some((&text[..at], &content[end? + 1 + hashes.len()..]))
    })
}

fn without_snapshots(text: &str) -> String {
    let (mut kept, mut rest) = (String::new(), text);
    while let Some((before, after)) = around_snapshot(rest) {
        kept.extend([before, "\n"]);
        rest = after;
    }
    kept + rest
}

#[test]
fn no_line_is_wide() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let directories = ["crates", "tests", "benches"].map(|name| root.join(name));
    let files: Vec<_> = directories.iter().flat_map(|directory| sources(directory)).collect();
    let files: Vec<_> = files.iter().filter(|path| is_rust(path)).collect();
    assert!(files.len() > 500, "{files:?}");
    for path in files {
        let text = without_snapshots(&fs::read_to_string(path).unwrap());
        let wide = text.lines().find(|line| line.chars().count() > WIDEST);
        assert_eq!(wide, None, "in {}", path.display());
    }
}

#[test]
fn snapshots_are_left_out_and_nothing_else_is() {
    let text = "a(b, @\"c \\\" c\nc\");\nd(e,\n @r##\"f\"# f\"##);\nlet g = \"h@\"; i(@\"j\")\n";
    assert_eq!(without_snapshots(text), "a(b, \n);\nd(e,\n \n);\nlet g = \"h@\"; i(\n)\n");
}

#[test]
fn a_circle_is_found_whatever_is_around_it() {
    let of = |text: &str| -> Imports {
        let modules = text.split(' ').map(|module| module.split_once(':').unwrap());
        let others = |text: &str| words(text).map(str::to_owned).collect();
        modules.map(|(module, imported)| (module.to_owned(), others(imported))).collect()
    };
    assert_eq!(circles(of("a:b,c b:c c: d:a")), Imports::new());
    assert_eq!(circles(of("a:b b:c,d c:b d: e:a")), of("b:c c:b"));
    assert_eq!(first_words("{a::{B, C}, d::E, F}; use crate::g"), ["a", "d", "F"]);
    assert_eq!(first_words("a::{B, C};"), ["a"]);
}
