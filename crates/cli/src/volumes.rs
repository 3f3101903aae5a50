//! What commands about volumes have in common.

mod filled;
mod missing;

use std::time::Duration;

use caddis_api::{
    Volume, VolumeId,
    config::Guest,
    volume::{CreateVolumeRequest, VolumeOperation, VolumeSnapshot, VolumeState},
};
use caddis_client::Client;
use clap::Args;
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Map, Value, json};

pub use self::{
    filled::WaitFlags,
    missing::{make_missing, remain},
};
use crate::{
    CliError, Printer, complete,
    globals::AppArgs,
    progress::Progress,
    prompt,
    render::size,
    session::Session,
    spec::{self, VmFlags},
};

/// What is made faster is not worth a word.
pub const TIMEOUT: Duration = Duration::from_secs(1);
/// How often a volume that is being made is looked at: nothing tells of it.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(300);

/// One volume.
#[derive(Debug, Args)]
pub struct Which {
    /// ID of the volume.
    #[arg(value_name = "ID", add = complete::volumes())]
    id: Option<String>,
    #[command(flatten)]
    app: AppArgs,
}

/// On which hosts a new volume may be.
#[derive(Debug, Args)]
pub struct ZoneFlags {
    /// Not on a host that has a volume of this name [default: true where there are several hosts].
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub require_unique_zone: Option<bool>,
    /// Not on a host that has any volume of the app.
    #[arg(long)]
    unique_zone_app_wide: bool,
}

impl ZoneFlags {
    /// As requests have it.
    pub fn app_wide(&self) -> Option<bool> {
        self.unique_zone_app_wide.then_some(true)
    }
}

impl Which {
    /// The client, the app and the id of a volume that is not deleted; the user is asked for it
    /// where possible.
    pub async fn find(self, session: &Session) -> Result<(Client, String, String), CliError> {
        self.find_where(session, |volume| !volume.state.is_deleted()).await
    }

    /// The same; those are offered of which this holds.
    pub async fn find_where(
        self,
        session: &Session,
        holds: impl Fn(&Volume) -> bool,
    ) -> Result<(Client, String, String), CliError> {
        let (app, client) = (session.app(&self.app)?, session.client()?);
        let unasked = "volume ID must be specified when not running interactively";
        let id = match self.id {
            Some(id) => checked(&app, id)?,
            None => choose(session, &client, &app, (unasked, &holds)).await?,
        };
        Ok((client, app, id))
    }
}

/// What is an id of a volume, if there is one or not.
pub fn checked(app: &str, id: String) -> Result<String, CliError> {
    match id.parse::<VolumeId>() {
        Ok(_) => Ok(id),
        Err(_) => Err(CliError::with_hint(
            format!("invalid volume ID, '{}'", id.escape_debug()),
            format!("'caddis volumes list -a {app}' shows the IDs of volumes."),
        )),
    }
}

/// A volume by its id; an error names it.
pub async fn get(client: &Client, app: &str, id: &str) -> Result<Volume, CliError> {
    let volume = client.get_volume(app, id).await;
    volume.map_err(|error| CliError::attempted(format!("failed to get volume {id}"), error))
}

/// Has the user choose one of the volumes of which something holds. `unasked` is the error when
/// there is nobody to ask.
pub async fn choose(
    session: &Session,
    client: &Client,
    app: &str,
    (unasked, holds): (&str, &impl Fn(&Volume) -> bool),
) -> Result<String, CliError> {
    if !session.printer.is_interactive() {
        return Err(CliError::new(unasked));
    }
    let mut volumes = client.list_volumes(app).await?;
    volumes.retain(holds);
    if volumes.is_empty() {
        return Err(CliError::new(format!("no volumes found in app '{app}'")));
    }
    let words = |volume: &Volume| {
        format!("{} {} {} {}GB", volume.id, volume.name, volume.state.as_str(), volume.size_gb)
    };
    let options: Vec<_> = volumes.iter().map(words).collect();
    let chosen = prompt::choose(&session.printer, "Select volume", &options, unasked).await?;
    Ok(volumes[chosen].id.to_string())
}

/// A size in GB: `4`, `7gb`.
pub fn gib(text: &str) -> Result<u32, CliError> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let factor = match unit.trim() {
        "" | "g" | "gb" | "gib" => Some(1),
        "t" | "tb" | "tib" => Some(1000),
        _ => None,
    };
    let number = number.parse::<u32>().ok().zip(factor);
    number
        .and_then(|(number, factor)| number.checked_mul(factor))
        .ok_or_else(|| CliError::new(format!("invalid size '{text}' for a volume: write 4 or 4gb")))
}

/// The machine that a host must have room for, if flags describe one.
pub fn compute(flags: &VmFlags) -> Result<Option<Guest>, CliError> {
    let mut config = Map::new();
    spec::set_vm(&mut config, flags)?;
    let Some(guest) = config.remove("guest") else { return Ok(None) };
    let guest = serde_json::from_value(guest);
    guest.map(Some).map_err(|e| CliError::new(format!("invalid machine size: {e}")))
}

/// Makes a volume, and waits until it is there. Tells how far it is when that takes long.
pub async fn make(
    session: &Session,
    client: &Client,
    app: &str,
    request: &CreateVolumeRequest,
) -> Result<Volume, CliError> {
    make_as(session, client, app, (request, "failed creating volume")).await
}

/// The same, with what is attempted in front of the server's error.
async fn make_as(
    session: &Session,
    client: &Client,
    app: &str,
    (request, what): (&CreateVolumeRequest, &str),
) -> Result<Volume, CliError> {
    let created = client.create_volume(app, request).await;
    let mut volume = created.map_err(|error| CliError::attempted(what, error))?;
    let id = volume.id.clone();
    let mut unfinished =
        Unfinished { printer: &session.printer, app, volume: &id, doing: "created", over: false };
    let begun = tokio::time::Instant::now();
    let mut progress = None;
    while matches!(volume.state, VolumeState::Creating | VolumeState::Restoring) {
        if begun.elapsed() >= TIMEOUT {
            let progress = progress.get_or_insert_with(|| Progress::new(&session.printer));
            let step = match volume.state {
                VolumeState::Restoring => "restore_volume",
                _ => "create_volume",
            };
            let (done, total) = extent(volume.operation.as_ref());
            progress.show(step, done, total);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
        volume = client.get_volume(app, volume.id.as_str()).await?;
    }
    unfinished.over = true;
    if volume.state == VolumeState::Failed { Err(failed(app, volume)) } else { Ok(volume) }
}

/// A volume that could not be made, or not be filled.
fn failed(app: &str, volume: Volume) -> CliError {
    let reason = volume.operation.and_then(|operation| operation.error);
    CliError::with_hint(
        format!(
            "volume {} could not be created: {}",
            volume.id,
            reason.unwrap_or_else(|| "the server's log says why".to_owned())
        ),
        format!("'caddis volumes destroy {} -a {app}' removes it.", volume.id),
    )
}

/// Bytes done, and how many are to do; 0 where that is not known.
pub fn extent(operation: Option<&VolumeOperation>) -> (u64, u64) {
    operation.map_or((0, 0), |operation| {
        (operation.bytes_done.unwrap_or(0), operation.bytes_total.unwrap_or(0))
    })
}

/// Says which volume there is when the wait for it is broken off.
struct Unfinished<'a> {
    printer: &'a Printer,
    app: &'a str,
    volume: &'a VolumeId,
    doing: &'static str,
    over: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let (volume, app, doing) = (self.volume, self.app, self.doing);
        if !self.over {
            // Nobody may be there to read it.
            let _ = self.printer.note(format_args!(
                "Volume {volume} is being {doing} in app {app}; 'caddis volumes show {volume} -a \
                 {app}' shows it."
            ));
        }
    }
}

/// Prints a volume.
pub fn print(session: &Session, app: &str, volume: &Volume) -> Result<(), CliError> {
    let mut facts = vec![
        ("ID", volume.id.to_string()),
        ("Name", volume.name.clone()),
        ("App", app.to_owned()),
        ("Region", volume.region.to_string()),
        ("Zone", volume.zone.clone()),
        ("Size GB", volume.size_gb.to_string()),
        ("Encrypted", volume.encrypted.to_string()),
        ("File system", volume.fstype.as_str().to_owned()),
        ("Created at", rfc_822(&volume.created_at)),
        ("Snapshot retention", volume.snapshot_retention.to_string()),
        ("Scheduled snapshots", volume.auto_backup_enabled.to_string()),
        ("State", volume.state.as_str().to_owned()),
    ];
    if volume.bytes_total > 0 {
        let (used, total) = (size::binary(volume.bytes_used), size::binary(volume.bytes_total));
        facts.push(("Used", format!("{used} of {total}")));
    }
    if let Some(machine) = &volume.attached_machine_id {
        facts.push(("Attached VM", machine.to_string()));
    }
    if let Some(until) = &volume.deleted_until {
        facts.push(("Can be undeleted until", until.clone()));
    }
    if let Some(at) = &volume.last_snapshot_at {
        let behind = volume.bytes_since_snapshot.filter(|bytes| *bytes > 0);
        let behind = behind.map(|bytes| format!(" ({} changed since)", size::binary(bytes)));
        facts.push(("Last snapshot", rfc_822(at) + &behind.unwrap_or_default()));
    }
    match &volume.operation {
        Some(VolumeOperation { error: Some(error), .. }) => facts.push(("Error", error.clone())),
        Some(operation) => {
            let of = match extent(Some(operation)) {
                (_, 0) => String::new(),
                (done, total) => format!(" ({} of {})", size::binary(done), size::binary(total)),
            };
            facts.push(("In progress", format!("{}{of}", operation.kind)));
        }
        None => {}
    }
    for (label, value) in facts {
        session.printer.out(format_args!("{label:>20}: {value}"))?;
    }
    Ok(())
}

/// Prints which snapshots failed or are delayed, and why.
pub fn tell_of_troubles(session: &Session, snapshots: &[VolumeSnapshot]) -> Result<(), CliError> {
    for snapshot in snapshots {
        if let Some(error) = snapshot.operation.as_ref().and_then(|row| row.error.as_ref()) {
            let (id, status) = (&snapshot.id, snapshot.status.as_str());
            session.printer.note(format_args!("Snapshot {id} is {status}: {error}"))?;
        }
    }
    Ok(())
}

/// `02 Jan 06 15:04 UTC`; what can't be read as it is.
fn rfc_822(text: &str) -> String {
    let time = text.parse::<Timestamp>();
    let written = time.map(|time| time.to_zoned(TimeZone::UTC).strftime("%d %b %y %H:%M UTC"));
    written.map_or_else(|_| text.to_owned(), |time| time.to_string())
}

/// A mount of a volume.
pub fn mount(volume: &Volume, path: &str, earlier: Option<&Map<String, Value>>) -> Value {
    let mut mount = earlier.cloned().unwrap_or_default();
    ["name", "size_gb", "encrypted"].iter().for_each(|name| drop(mount.remove(*name)));
    mount.insert("volume".to_owned(), json!(volume.id));
    mount.insert("path".to_owned(), json!(path));
    Value::Object(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_gb_with_or_without_their_unit() {
        for (text, expected) in
            [("4", Some(4)), ("7gb", Some(7)), ("7 GB", Some(7)), ("1tb", Some(1000)), ("", None)]
        {
            assert_eq!(gib(text).ok(), expected, "{text}");
        }
        for wrong in ["-1", "4mb", "x", "99999999999"] {
            assert!(gib(wrong).unwrap_err().to_string().contains("write 4 or 4gb"), "{wrong}");
        }
    }

    #[test]
    fn times_are_told_as_the_reference_does() {
        assert_eq!(rfc_822("2026-03-02T12:00:09.123Z"), "02 Mar 26 12:00 UTC");
        assert_eq!(rfc_822("soon"), "soon");
    }
}
