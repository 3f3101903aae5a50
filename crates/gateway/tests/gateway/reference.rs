//! The reference's operations, parameters, codes and fields, and what of them we have: the table in
//! `reference.tsv`.

use std::{collections::BTreeSet, path::Path};

use crate::support::{
    contract::DOCUMENT,
    facts::facts,
    table::{Mark, Table},
};

/// Managed Postgres: 24 operations that are no subject of ours.
const OUT_OF_SCOPE: &str = "/v1/postgres";

fn table() -> Table {
    Table::read(include_str!("reference.tsv"))
}

#[test]
fn our_document_has_what_the_table_says_and_nothing_else() {
    let (table, ours) = (table(), facts(&DOCUMENT, OUT_OF_SCOPE));
    let mut problems = Vec::new();
    let (mut explained, mut added) = (BTreeSet::new(), BTreeSet::new());
    for line in &table.lines {
        for place in table.places(line) {
            match (&line.mark, ours.get(&place)) {
                (Mark::Same(_), None) => {
                    problems.push(format!("{place}: the table says same, but we have none"))
                }
                (Mark::Same(_), Some(kind)) => {
                    let expected = table.kind(line);
                    if *kind != expected {
                        problems.push(format!(
                            "{place}: the table says {expected:?}, we have {kind:?}"
                        ));
                    }
                    explained.insert(place);
                }
                (Mark::Missing, Some(_)) => {
                    problems.push(format!("{place}: the table says missing, but we have it"))
                }
                (Mark::Missing, None) => {}
                (Mark::Added, _) => {
                    added.insert(place);
                }
            }
        }
    }
    let mut of_use = BTreeSet::new();
    for place in ours.keys().filter(|place| !explained.contains(*place)) {
        let explanations = explanations(place);
        match explanations.iter().find(|explanation| added.contains(*explanation)) {
            Some(explanation) => drop(of_use.insert(explanation.clone())),
            None => {
                problems.push(format!("{place}: not in the table; mark it as added, and say why"))
            }
        }
    }
    let idle = added.difference(&of_use).filter(|place| !ours.contains_key(*place));
    problems.extend(idle.map(|place| format!("{place}: the table says added, but we have none")));
    assert!(problems.is_empty(), "reference.tsv and the document differ:\n{}", problems.join("\n"));
}

/// Lines of the table that explain a place: itself, what it belongs to, and any operation.
fn explanations(place: &str) -> Vec<String> {
    let words: Vec<_> = place.split(' ').collect();
    let head = if words[0].bytes().all(|byte| byte.is_ascii_uppercase()) && words.len() > 1 {
        2
    } else {
        1
    };
    let (head, below) = words.split_at(head);
    vec![place.to_owned(), head.join(" "), format!("* {}", below.join(" "))]
}

#[test]
fn the_table_has_all_of_the_reference_where_that_is_at_hand() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/reference/openapi3.json");
    let Ok(text) = std::fs::read(path) else { return };
    let reference = facts(&serde_json::from_slice(&text).unwrap(), OUT_OF_SCOPE);
    let table = table();
    let lines =
        table.lines.iter().filter(|line| line.mark != Mark::Added && line.place != OUT_OF_SCOPE);
    let told: std::collections::BTreeMap<_, _> =
        lines.map(|line| (line.place.clone(), line.kind.clone())).collect();
    let mut problems = Vec::new();
    for (place, kind) in &reference {
        match told.get(place) {
            None => problems.push(format!("{place}\t{kind}: not in the table")),
            Some(told) if told != kind => {
                problems.push(format!("{place}: the table says {told:?}, it has {kind:?}"))
            }
            Some(_) => {}
        }
    }
    problems.extend(
        told.keys()
            .filter(|place| !reference.contains_key(*place))
            .map(|place| format!("{place}: invented")),
    );
    assert!(
        problems.is_empty(),
        "reference.tsv and the reference differ:\n{}",
        problems.join("\n")
    );
}

#[test]
fn the_table_has_all_operations_of_the_reference_but_managed_postgres() {
    let table = table();
    let operations = table.lines.iter().filter(|line| line.is_head && line.place.contains(" /"));
    assert_eq!(operations.filter(|line| line.mark != Mark::Added).count(), 76);
}
