//! Whether what was read of registers, each with values written once only, can be explained by an
//! order in which each operation happened at one instant between its request and its answer.
//!
//! With such values it is known which write a read saw, and it is enough to look at each value by
//! itself (P. Gibbons, E. Korach, "Testing Shared Memories", 1997): a value must have been the
//! register's from the first answer about it to the last request about it, if these are in that
//! order (it *lasts*); otherwise it may have been there for an instant only, anywhere between the
//! last request and the first answer (it *flashes*). No two values last at the same time, and none
//! has nothing left to flash in but the time of another.

use std::collections::BTreeMap;

/// A time by the clock of the history.
pub type Time = u64;

/// What one client knows of one register.
#[derive(Debug, Clone)]
pub struct Operation {
    /// When it was asked.
    pub begun: Time,
    /// When it was answered; `Time::MAX` for a write of which nobody knows whether it was, or will
    /// be.
    pub ended: Time,
    /// The value; `None` is what the register held before all writes.
    pub value: Option<String>,
    /// It was written, not read.
    pub write: bool,
}

struct Value {
    begun: Time,
    written: bool,
    first_answer: Time,
    last_request: Time,
}

/// # Errors
/// Why there is no such order.
pub fn check(operations: &[Operation]) -> Result<(), String> {
    let mut values = BTreeMap::<&Option<String>, Value>::new();
    values.insert(&None, Value { begun: 0, written: true, first_answer: 0, last_request: 0 });
    for operation in operations {
        let value = values.entry(&operation.value).or_insert(Value {
            begun: 0,
            written: false,
            first_answer: Time::MAX,
            last_request: 0,
        });
        value.first_answer = value.first_answer.min(operation.ended);
        value.last_request = value.last_request.max(operation.begun);
        if operation.write {
            (value.begun, value.written) = (operation.begun, true);
        }
    }
    // Nobody has seen it: it may never have been written.
    values.retain(|_, value| value.first_answer != Time::MAX);
    for (name, value) in &values {
        if !value.written {
            return Err(format!("{name:?} was read and never written"));
        }
        if value.first_answer < value.begun {
            return Err(format!("{name:?} was read before it was written"));
        }
    }
    let lasts = |value: &Value| value.first_answer < value.last_request;
    let mut lasting: Vec<_> = values.iter().filter(|(_, value)| lasts(value)).collect();
    lasting.sort_by_key(|(_, value)| value.first_answer);
    for pair in lasting.windows(2) {
        let ((one, first), (two, second)) = (pair[0], pair[1]);
        if second.first_answer < first.last_request {
            return Err(format!("{one:?} was there before and after {two:?}"));
        }
    }
    for (name, value) in values.iter().filter(|(_, value)| !lasts(value)) {
        let within = |(_, long): &&(&&Option<String>, &Value)| {
            long.first_answer < value.last_request && value.first_answer < long.last_request
        };
        if let Some((other, _)) = lasting.iter().find(within) {
            return Err(format!("{name:?} came while {other:?} was there"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(begun: Time, ended: Time, value: &str) -> Operation {
        Operation { begun, ended, value: Some(value.to_owned()), write: true }
    }

    fn read(begun: Time, ended: Time, value: Option<&str>) -> Operation {
        Operation { begun, ended, value: value.map(str::to_owned), write: false }
    }

    #[test]
    fn what_can_be_explained_passes() {
        check(&[read(1, 2, None), write(3, 4, "a"), read(5, 6, Some("a")), write(7, 8, "b")])
            .unwrap();
        // Both orders of two writes at once.
        for last in ["a", "b"] {
            check(&[write(1, 4, "a"), write(2, 3, "b"), read(5, 6, Some(last))]).unwrap();
        }
        // One that was never answered, seen late or never.
        check(&[write(1, Time::MAX, "a"), read(5, 6, None), read(7, 8, Some("a"))]).unwrap();
        check(&[write(1, Time::MAX, "a"), read(5, 6, None)]).unwrap();
    }

    #[test]
    fn what_can_not_is_found() {
        for history in [
            vec![read(1, 2, Some("a"))],
            vec![read(1, 2, Some("a")), write(3, 4, "a")],
            // A write that was answered is not seen.
            vec![write(1, 2, "a"), read(3, 4, None)],
            vec![write(1, 2, "a"), write(3, 4, "b"), read(5, 6, Some("a"))],
            // Back and forth.
            vec![
                write(1, 2, "a"),
                write(1, 9, "b"),
                read(3, 4, Some("b")),
                read(5, 6, Some("a")),
                read(7, 8, Some("b")),
            ],
        ] {
            check(&history).unwrap_err();
        }
    }
}
