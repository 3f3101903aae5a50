//! `caddis machine top`.

use std::{collections::BTreeMap, io, time::Duration};

use caddis_api::{
    Machine, MachineId, WorkerId,
    traffic::{AppTraffic, MachineTraffic},
    usage::{MachineUsage, UsageSample},
};
use caddis_client::{Client, ListMachines};
use clap::Args;
use futures::{Stream, StreamExt as _, stream};
use jiff::Timestamp;
use parking_lot::Mutex;

use super::watch::{self, Form};
use crate::{
    CliError, Printer,
    globals::AppArgs,
    render::{machine as cell, size, table, time},
    session::Session,
};

/// Pause before a server that went away is asked again.
const BACKOFF: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct Top {
    #[command(flatten)]
    app: AppArgs,
    /// Refresh interval in seconds, 1 to 60.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 2,
        value_parser = clap::value_parser!(u64).range(1..=60)
    )]
    interval: u64,
    /// Print once and exit; the default without a terminal.
    #[arg(long, conflicts_with = "json")]
    once: bool,
    /// Print a JSON document per refresh, one per line, with the usage of each machine with a VM.
    #[arg(short, long)]
    json: bool,
}

/// Processor time and memory by machine, as each host told it last.
#[derive(Default)]
struct Usage {
    hosts: Mutex<BTreeMap<WorkerId, Vec<MachineUsage>>>,
    /// What the proxy knows, if it knows the app.
    traffic: Mutex<Option<AppTraffic>>,
}

impl Usage {
    /// Takes a sample in, with the traffic of its time.
    async fn take(&self, client: &Client, app: &str, sample: UsageSample) {
        // It matters less than the rest: without it that is shown all the same.
        let traffic = client.app_traffic(app).await.ok().flatten();
        *self.traffic.lock() = traffic;
        self.hosts.lock().insert(sample.worker, sample.machines);
    }

    fn by_machine(&self) -> BTreeMap<MachineId, Used> {
        let (hosts, traffic) = (self.hosts.lock(), self.traffic.lock());
        let used = |usage: &MachineUsage| {
            let traffic = traffic.as_ref().and_then(|app| app.machines.get(&usage.id).cloned());
            (usage.id.clone(), Used { usage: usage.clone(), traffic })
        };
        hosts.values().flatten().map(used).collect()
    }
}

/// What is known of a machine that has a VM.
struct Used {
    usage: MachineUsage,
    traffic: Option<MachineTraffic>,
}

pub async fn run(top: Top, session: &Session) -> Result<(), CliError> {
    let (app, client, printer) = (session.app(&top.app)?, session.client()?, &session.printer);
    let interval = Duration::from_secs(top.interval);
    let usage = Usage::default();
    if top.json {
        let mut samples = client.machine_usage(&app, interval).await?;
        while let Some(sample) = samples.next().await {
            let sample = sample?;
            printer.out(serde_json::to_string(&sample).map_err(io::Error::other)?)?;
        }
        return Err(CliError::new(format!(
            "the server closed the connection, or app {app} was deleted"
        )));
    }
    let draw = |machines: &[Machine]| draw(printer, &app, machines, &usage.by_machine());
    if top.once || Form::of(false, session) == Form::Lines {
        // Processor time is told from the second look on.
        let (mut samples, mut told) =
            (client.machine_usage(&app, interval).await?, BTreeMap::new());
        while let Some(sample) = samples.next().await {
            let sample = sample?;
            *told.entry(sample.worker.clone()).or_insert(0) += 1;
            usage.take(&client, &app, sample).await;
            if told.values().all(|times| *times >= 2) {
                break;
            }
        }
        let machines = client.list_machines(&app, &ListMachines::default()).await?;
        return Ok(printer.raw_out(&draw(&machines))?);
    }
    let redraws = follow(&client, &app, interval, &usage);
    watch::machines(session, &client, &app, Form::Screen, redraws, draw).await
}

/// Takes in samples, also of a server that comes back; an item for each.
fn follow<'a>(
    client: &'a Client,
    app: &'a str,
    interval: Duration,
    usage: &'a Usage,
) -> impl Stream<Item = ()> + 'a {
    let connections = stream::unfold(true, move |first| async move {
        if !first {
            tokio::time::sleep(BACKOFF).await;
        }
        // A host that went away does not come back for this.
        usage.hosts.lock().clear();
        // What is wrong the watch beside it tells.
        let samples =
            client.machine_usage(app, interval).await.unwrap_or_else(|_| stream::empty().boxed());
        Some((samples, false))
    });
    let samples = connections.flatten().filter_map(async |sample| sample.ok());
    samples.then(move |sample| usage.take(client, app, sample))
}

/// The busiest first.
fn draw(
    printer: &Printer,
    app: &str,
    machines: &[Machine],
    used: &BTreeMap<MachineId, Used>,
) -> String {
    let mut machines: Vec<_> =
        machines.iter().map(|machine| (machine, used.get(&machine.id))).collect();
    let load = |used: Option<&Used>| used.and_then(|used| used.usage.cpu_percent).unwrap_or(-1.0);
    machines.sort_by(|(a, one), (b, other)| {
        load(*other).total_cmp(&load(*one)).then_with(|| a.id.cmp(&b.id))
    });
    let now = Timestamp::now();
    let has_traffic = used.values().any(|used| used.traffic.is_some());
    let rows: Vec<_> =
        machines.iter().map(|(machine, used)| row(machine, *used, has_traffic, now)).collect();
    let mut headers = vec!["ID", "Name", "State", "CPU", "CPU Time", "Memory", "Of", "DNS"];
    if has_traffic {
        headers.extend(["Active", "Conns", "Reqs", "Waiting", "In", "Out"]);
    }
    headers.push("Last Event");
    table::horizontal(printer.screen(), &printer.title(app), &headers, &rows)
}

fn row(machine: &Machine, used: Option<&Used>, has_traffic: bool, now: Timestamp) -> Vec<String> {
    let usage = used.map(|used| &used.usage);
    let guest = cell::config(machine).guest.unwrap_or_default();
    let event = machine.events.iter().flatten().next().map(|event| {
        let at = Timestamp::from(event.timestamp).to_string();
        format!("{} {}", event.kind, time::relative(&at, now))
    });
    let mut cells = vec![
        machine.id.to_string(),
        machine.name.clone(),
        machine.state.to_string(),
        usage
            .and_then(|usage| usage.cpu_percent)
            .map(|percent| format!("{percent:.1}%"))
            .unwrap_or_default(),
        usage.map(|usage| format!("{:.1}s", usage.cpu_seconds)).unwrap_or_default(),
        usage.map(|usage| size::mebibytes(usage.memory_bytes)).unwrap_or_default(),
        format!("{} MiB", guest.memory_mb.unwrap_or(256)),
        usage.map(|usage| usage.dns_queries.to_string()).unwrap_or_default(),
    ];
    if has_traffic {
        let cell = |number: fn(&MachineTraffic) -> String| {
            used.and_then(|used| used.traffic.as_ref()).map(number).unwrap_or_default()
        };
        cells.extend([
            cell(|traffic| traffic.in_progress.to_string()),
            cell(|traffic| traffic.connections.to_string()),
            cell(|traffic| traffic.requests.to_string()),
            cell(|traffic| traffic.waiting.to_string()),
            cell(|traffic| size::decimal(traffic.bytes_in)),
            cell(|traffic| size::decimal(traffic.bytes_out)),
        ]);
    }
    cells.push(event.unwrap_or_default());
    cells
}
