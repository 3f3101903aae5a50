//! `caddis platform vm-sizes`.

use serde_json::{Map, json};

use crate::{CliError, session::Session, spec};

pub fn run(json: bool, session: &Session) -> Result<(), CliError> {
    let printer = &session.printer;
    let presets = spec::presets();
    if json {
        let sizes: Map<_, _> = presets
            .into_iter()
            .map(|p| {
                (p.name, json!({ "cpu_kind": p.kind, "cpus": p.cpus, "memory_mb": p.memory_mb }))
            })
            .collect();
        printer.json(&sizes)?;
        return Ok(());
    }
    for (title, kind) in [("Machines platform", "shared"), ("", "performance")] {
        let of_kind = presets.iter().filter(|preset| preset.kind == kind);
        let rows: Vec<_> = of_kind
            .map(|p| vec![p.name.clone(), p.cpus.to_string(), format!("{} MB", p.memory_mb)])
            .collect();
        printer.table(title, &["Name", "CPU Cores", "Memory"], &rows)?;
    }
    Ok(())
}
