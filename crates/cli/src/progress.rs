//! Shows how far something long is: a bar on a terminal, otherwise a line per step.

use std::time::Duration;

use caddis_api::MachineId;
use caddis_client::{Client, OperationUpdate};
use futures::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};

use crate::{Printer, render::size};

const TICK: Duration = Duration::from_millis(120);

/// Something long.
pub struct Progress {
    printer: Printer,
    bar: Option<ProgressBar>,
    step: String,
}

impl Progress {
    pub fn new(printer: &Printer) -> Self {
        let bar = (printer.draws_progress() && printer.tells_progress()).then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(spinner());
            bar.enable_steady_tick(TICK);
            bar
        });
        Self { printer: printer.clone(), bar, step: String::new() }
    }

    /// It is at this step, with so many bytes of it done; `total` is 0 when unknown.
    pub fn show(&mut self, step: &str, done: u64, total: u64) {
        // What has no words takes no time worth telling.
        let Some(words) = words(step) else { return };
        if !self.printer.tells_progress() {
            return;
        }
        let is_new = self.step != step;
        self.step = step.to_owned();
        let Some(bar) = &self.bar else {
            if is_new {
                let of =
                    if total > 0 { format!(" ({})", size::decimal(total)) } else { String::new() };
                // A line about progress that can't be written is not worth an error.
                let _ = self.printer.note(format_args!("  {words}{of}"));
            }
            return;
        };
        if is_new {
            bar.set_style(if total > 0 { bytes() } else { spinner() });
            bar.set_message(words.to_owned());
        }
        if total > 0 {
            bar.set_length(total);
            bar.set_position(done);
        }
    }
}

/// Does what has the server look up an image, and shows on a terminal that it takes a while.
pub async fn looking_up<T>(printer: &Printer, request: impl Future<Output = T>) -> T {
    let mut progress = Progress::new(printer);
    if printer.draws_progress() {
        progress.show("resolve", 0, 0);
    }
    request.await
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::default_spinner()
}

fn bytes() -> ProgressStyle {
    let template =
        "{spinner} {msg} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A step of the server in words.
fn words(step: &str) -> Option<&'static str> {
    Some(match step {
        "resolve" => "Looking up the image",
        "pull" => "Pulling the image",
        "unpack" => "Unpacking the image",
        "build" => "Building the root disk",
        "upload" => "Uploading the archive",
        "create_volume" => "Creating the volume",
        "restore_volume" => "Restoring the volume",
        "fill_volume" => "Filling the volume",
        "take_snapshot" => "Taking the snapshot",
        "prepare_root" => "Preparing the root disk",
        "launch" => "Starting the VM",
        "boot" => "Booting",
        "configure" => "Starting the program",
        "back_off" | "queue" => "Waiting for its turn",
        "await_exit" => "Waiting for the program to end",
        _ => return None,
    })
}

/// Shows what is done to a machine for as long as it is polled; never ends.
pub async fn follow(printer: &Printer, client: &Client, app: &str, machine: &MachineId) {
    let mut progress = Progress::new(printer);
    // Progress is a courtesy: without it one waits all the same.
    if let Ok(mut updates) = client.follow_operation(app, machine).await {
        while let Some(Ok(update)) = updates.next().await {
            if let OperationUpdate::Progress(operation) = update {
                progress.show(&operation.step, operation.bytes_done, operation.bytes_total);
            }
        }
    }
    std::future::pending().await
}
