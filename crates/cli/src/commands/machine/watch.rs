//! `--watch` of `caddis machine list` and `status`, and `machine top`: the machines of an app as
//! they change, by push from the server.

use std::{collections::BTreeMap, time::Duration};

use caddis_api::{Machine, MachineId, watch::MachinesUpdate};
use caddis_client::Client;
use futures::{Stream, StreamExt as _, stream};
use serde_json::json;

use crate::{CliError, session::Session, terminal};

/// First and longest pause before a server that went away is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Moves the cursor to the corner and clears what is below it.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// How changes are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One JSON document per line.
    Json,
    /// All of it anew at each change.
    Screen,
    /// One line per change.
    Lines,
}

impl Form {
    pub fn of(json: bool, session: &Session) -> Self {
        if json {
            Self::Json
        } else if session.printer.is_interactive() {
            Self::Screen
        } else {
            Self::Lines
        }
    }
}

/// What is known of an app's machines.
#[derive(Default)]
struct Known {
    machines: BTreeMap<MachineId, Machine>,
    /// Machines of a snapshot that are still to come, and those it had so far.
    coming: u64,
    snapshot: BTreeMap<MachineId, Machine>,
}

/// What there is to be shown.
#[derive(Debug, PartialEq)]
enum News {
    Changed(Box<Machine>),
    Removed(MachineId),
}

impl Known {
    /// Takes an update in. `None` while a snapshot is incomplete.
    fn take(&mut self, update: MachinesUpdate) -> Option<Vec<News>> {
        match update {
            MachinesUpdate::Snapshot { machines } => {
                self.snapshot.clear();
                self.coming = machines;
                (machines == 0).then(|| self.exchange())
            }
            MachinesUpdate::Machine(machine) if self.coming > 0 => {
                self.coming -= 1;
                self.snapshot.insert(machine.id.clone(), *machine);
                (self.coming == 0).then(|| self.exchange())
            }
            MachinesUpdate::Machine(machine) => {
                self.machines.insert(machine.id.clone(), (*machine).clone());
                Some(vec![News::Changed(machine)])
            }
            MachinesUpdate::Removed(id) => {
                self.machines.remove(&id);
                Some(vec![News::Removed(id)])
            }
        }
    }

    /// A snapshot is complete: what is different from before it.
    fn exchange(&mut self) -> Vec<News> {
        let before = std::mem::replace(&mut self.machines, std::mem::take(&mut self.snapshot));
        let gone =
            before.keys().filter(|id| !self.machines.contains_key(*id)).cloned().map(News::Removed);
        let changed =
            self.machines.values().filter(|machine| before.get(&machine.id) != Some(*machine));
        gone.chain(changed.cloned().map(|machine| News::Changed(Box::new(machine)))).collect()
    }
}

/// Shows the machines of an app until it is gone, or `q` or Ctrl-C comes. `table` draws them on a
/// terminal, and anew for each item of `redraws`.
pub async fn machines(
    session: &Session,
    client: &Client,
    app: &str,
    form: Form,
    redraws: impl Stream<Item = ()>,
    table: impl Fn(&[Machine]) -> String,
) -> Result<(), CliError> {
    let quit = async {
        match form {
            Form::Screen => terminal::until_q().await,
            _ => std::future::pending().await,
        }
    };
    tokio::select! {
        // Keys and signals are watched before anything is shown.
        biased;
        quit = quit => quit,
        ended = follow(session, client, app, form, redraws, table) => ended,
    }
}

async fn follow(
    session: &Session,
    client: &Client,
    app: &str,
    form: Form,
    redraws: impl Stream<Item = ()>,
    table: impl Fn(&[Machine]) -> String,
) -> Result<(), CliError> {
    let mut redraws = std::pin::pin!(redraws.chain(stream::pending()));
    let mut known = Known::default();
    let mut pause = BACKOFF.0;
    // The first time a server that is not there is an error; later it may be one that is started
    // again.
    let mut updates = client.watch_machines(app).await?;
    loop {
        loop {
            let update = tokio::select! {
                update = updates.next() => update,
                _ = redraws.next() => {
                    show(session, form, &[], &known, &table)?;
                    continue;
                }
            };
            let update = match update {
                Some(Ok(update)) => update,
                Some(Err(error)) if !error.is_transient() => return Err(error.into()),
                Some(Err(_)) | None => break,
            };
            pause = BACKOFF.0;
            if let Some(news) = known.take(update) {
                show(session, form, &news, &known, &table)?;
            }
        }
        session.printer.note("The server closed the connection, reconnecting...")?;
        updates = loop {
            tokio::time::sleep(pause).await;
            match client.watch_machines(app).await {
                Ok(updates) => break updates,
                Err(error) if error.is_transient() => pause = BACKOFF.1.min(pause * 2),
                Err(error) => return Err(error.into()),
            }
        };
        session.printer.note("Reconnected.")?;
    }
}

fn show(
    session: &Session,
    form: Form,
    news: &[News],
    known: &Known,
    table: impl Fn(&[Machine]) -> String,
) -> Result<(), CliError> {
    let printer = &session.printer;
    if form == Form::Screen {
        let machines: Vec<_> = known.machines.values().cloned().collect();
        printer
            .raw_out(&format!("{CLEAR}{}", fitted(&table(&machines), terminal::screen_size())))?;
        return Ok(());
    }
    for news in news {
        match (form, news) {
            (Form::Json, News::Changed(machine)) => printer.out(json!({ "machine": machine }))?,
            (Form::Json, News::Removed(id)) => printer.out(json!({ "removed": id }))?,
            (_, News::Changed(machine)) => printer.out(line(machine))?,
            (_, News::Removed(id)) => printer.out(format_args!("{id} removed"))?,
        }
    }
    Ok(())
}

/// As much as a screen shows at once, without a line that wraps, and how much is left out.
fn fitted(text: &str, (columns, lines): (usize, usize)) -> String {
    // The cursor stands in the last.
    let room = lines.saturating_sub(1).max(2);
    let all: Vec<_> = text.trim_end_matches('\n').lines().collect();
    let shown = if all.len() > room { room - 1 } else { all.len() };
    let mut fitted: String = all[..shown].iter().map(|line| cut(line, columns) + "\n").collect();
    if shown < all.len() {
        fitted.push_str(&format!("and {} more lines\n", all.len() - shown));
    }
    fitted
}

/// So many characters of a line; colours take no room, and none goes on beyond it.
fn cut(line: &str, columns: usize) -> String {
    let (mut text, mut taken, mut in_sequence) = (String::new(), 0, false);
    for c in line.chars() {
        if c == '\u{1b}' {
            in_sequence = true;
        } else if !in_sequence {
            taken += 1;
        }
        if in_sequence || taken <= columns {
            text.push(c);
        }
        in_sequence &= !c.is_ascii_alphabetic();
    }
    text
}

/// Id, state and name: what is looked for first.
fn line(machine: &Machine) -> String {
    // A control character in a name must not reach the terminal.
    let name: String = machine.name.chars().filter(|c| !c.is_control()).collect();
    format!("{} {} {name}", machine.id, machine.state)
}

#[cfg(test)]
mod tests {
    use caddis_api::MachineState;

    use super::*;

    fn machine(id: &str, state: MachineState) -> Machine {
        let text = json!({
            "id": id, "name": "m", "state": state, "region": "local", "instance_id": "v",
            "version": "v",
            "private_ip": "", "created_at": "", "updated_at": "",
            "image_ref": {"registry": "", "repository": "", "digest": ""}, "config": {}
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn what_does_not_fit_the_screen_is_left_out_and_counted() {
        assert_eq!(fitted("a\nb\n\n", (80, 24)), "a\nb\n");
        assert_eq!(fitted("a\nb\nc\nd\n", (80, 5)), "a\nb\nc\nd\n");
        assert_eq!(fitted("a\nb\nc\nd\n", (80, 4)), "a\nb\nand 2 more lines\n");
        assert_eq!(
            fitted("\u{1b}[1mtitle\u{1b}[0m\nlong\n", (3, 24)),
            "\u{1b}[1mtit\u{1b}[0m\nlon\n"
        );
        assert_eq!(fitted("a\nb\nc\n", (80, 1)), "a\nand 2 more lines\n");
    }

    #[test]
    fn a_second_snapshot_tells_only_what_is_different() {
        let (a, b, c) = (
            machine("a", MachineState::Started),
            machine("b", MachineState::Started),
            machine("c", MachineState::Stopped),
        );
        let of = |machine: &Machine| MachinesUpdate::Machine(Box::new(machine.clone()));
        let changed = |machine: &Machine| News::Changed(Box::new(machine.clone()));
        let mut known = Known::default();
        assert_eq!(known.take(MachinesUpdate::Snapshot { machines: 2 }), None);
        assert_eq!(known.take(of(&a)), None);
        assert_eq!(known.take(of(&b)), Some(vec![changed(&a), changed(&b)]));
        assert_eq!(known.take(MachinesUpdate::Snapshot { machines: 2 }), None);
        assert_eq!(known.take(of(&a)), None);
        assert_eq!(
            known.take(of(&c)),
            Some(vec![News::Removed(b.id.clone()), changed(&c)]),
            "a is as it was"
        );
        assert_eq!(
            known.take(MachinesUpdate::Removed(c.id.clone())),
            Some(vec![News::Removed(c.id)])
        );
        assert_eq!(
            known.take(MachinesUpdate::Snapshot { machines: 0 }),
            Some(vec![News::Removed(a.id)])
        );
        assert!(known.machines.is_empty());
    }
}
