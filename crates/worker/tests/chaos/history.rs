//! What all clients know together.

use std::collections::BTreeMap;

use crate::{
    guards::{self, Change, Lease, Update},
    registers::{self, Operation, Time},
};

#[derive(Default)]
pub struct History {
    registers: BTreeMap<(String, &'static str), Vec<Operation>>,
    leases: BTreeMap<String, Vec<Lease>>,
    changes: BTreeMap<String, Vec<Change>>,
    updates: BTreeMap<String, Vec<Update>>,
    answers: BTreeMap<(&'static str, u16), usize>,
}

impl History {
    pub fn answered(&mut self, what: &'static str, status: u16) {
        *self.answers.entry((what, status)).or_default() += 1;
    }

    pub fn register(&mut self, machine: &str, key: &'static str, operation: Operation) {
        self.registers.entry((machine.to_owned(), key)).or_default().push(operation);
    }

    pub fn lease(&mut self, machine: &str, lease: Lease) {
        self.leases.entry(machine.to_owned()).or_default().push(lease);
    }

    /// Leases of a machine, or this one, may have ended from then on.
    pub fn leases_end(&mut self, machine: &str, nonce: Option<&str>, at: Time) {
        for lease in self.leases.get_mut(machine).into_iter().flatten() {
            if nonce.is_none_or(|nonce| nonce == lease.nonce) {
                lease.until = lease.until.min(at);
            }
        }
    }

    pub fn change(&mut self, machine: &str, change: Change) {
        self.changes.entry(machine.to_owned()).or_default().push(change);
    }

    pub fn update(&mut self, machine: &str, update: Update) {
        self.updates.entry(machine.to_owned()).or_default().push(update);
    }

    /// How often each request was answered so.
    pub fn answers(&self) -> &BTreeMap<(&'static str, u16), usize> {
        &self.answers
    }

    /// How many requests of a kind were granted.
    pub fn succeeded(&self, what: &str) -> usize {
        let granted =
            self.answers.iter().filter(|((kind, status), _)| *kind == what && *status < 300);
        granted.map(|(_, count)| count).sum()
    }

    /// # Errors
    /// What can't be.
    pub fn check(&self) -> Result<(), String> {
        for ((machine, key), operations) in &self.registers {
            registers::check(operations).map_err(|e| {
                format!("metadata {key} of machine {machine}: {e}: {operations:#?}")
            })?;
        }
        for (machine, leases) in &self.leases {
            let changes = self.changes.get(machine).map_or(&[][..], Vec::as_slice);
            guards::check_leases(leases, changes).map_err(|e| format!("machine {machine}: {e}"))?;
        }
        for (machine, updates) in &self.updates {
            guards::check_updates(updates).map_err(|e| format!("machine {machine}: {e}"))?;
        }
        Ok(())
    }
}
