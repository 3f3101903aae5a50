//! The volumes of a clone: each has its own.

use caddis_api::{
    Machine, Volume,
    config::Guest,
    volume::{CreateVolumeRequest, SnapshotStatus},
};
use caddis_client::Client;
use serde_json::{Map, Value};

use super::Clone;
use crate::{CliError, session::Session, volumes};

/// The volumes that a clone is to have.
pub(super) struct Wanted<'a> {
    pub clone: &'a Clone,
    pub source: &'a Machine,
    /// The volume that is to be attached, and where.
    attached: Option<(Volume, Option<String>)>,
}

impl<'a> Wanted<'a> {
    /// Looks up the volume that is to be attached.
    pub async fn new(
        clone: &'a Clone,
        source: &'a Machine,
        client: &Client,
        app: &str,
    ) -> Result<Self, CliError> {
        let Some(given) = &clone.attach_volume else {
            return Ok(Self { clone, source, attached: None });
        };
        let (id, path) = match given.split_once(':') {
            Some((id, path)) => (id, Some(path.to_owned()).filter(|path| !path.is_empty())),
            None => (given.as_str(), None),
        };
        let volume = client.get_volume(app, id).await;
        let volume =
            volume.map_err(|error| CliError::attempted("could not get existing volume", error))?;
        if let Some(region) = clone.region.as_ref().filter(|region| **region != *volume.region) {
            return Err(CliError::new(format!(
                "specified region {region} but volume is in region {}, use the same region as the \
                 volume",
                volume.region
            )));
        }
        if volume.attached_machine_id.is_some() {
            return Err(CliError::new(format!("volume {id} is already attached to a machine")));
        }
        Ok(Self { clone, source, attached: Some((volume, path)) })
    }

    /// Where the clone is to be.
    pub fn region(&self) -> String {
        let attached = self.attached.as_ref().map(|(volume, _)| volume.region.to_string());
        let given = self.clone.region.clone().or(attached);
        given.unwrap_or_else(|| self.source.region.to_string())
    }

    /// Puts volumes into its mounts, making those that are to be new. Gives these.
    pub async fn set(
        &self,
        config: &mut Map<String, Value>,
        session: &Session,
        client: &Client,
        app: &str,
    ) -> Result<Vec<Volume>, CliError> {
        let mounts = config.get("mounts").and_then(Value::as_array).cloned().unwrap_or_default();
        if let Some((volume, path)) = &self.attached {
            let mount = self.attach(session, volume, path.as_deref(), &mounts)?;
            config.insert("mounts".to_owned(), Value::Array(vec![mount]));
            return Ok(Vec::new());
        }
        if mounts.len() > 1 && self.clone.from_snapshot.as_deref().is_some_and(|id| id != "last") {
            return Err(CliError::new(
                "Can't use --from-snapshot with an ID for Machines with more than 1 volume: use \
                 'last'.",
            ));
        }
        let guest =
            config.get("guest").cloned().and_then(|guest| serde_json::from_value(guest).ok());
        let (mut filled, mut made) = (Vec::new(), Vec::new());
        for mount in &mounts {
            let old = mount["volume"].as_str().unwrap_or_default();
            let path = mount["path"].as_str().unwrap_or_default();
            let old = client.get_volume(app, old).await;
            let old =
                old.map_err(|error| CliError::attempted("could not get existing volume", error))?;
            let volume = self.like(session, client, app, (&old, guest.as_ref())).await;
            let volume = volume.inspect_err(|_| volumes::remain(session, app, &made))?;
            filled.push(volumes::mount(&volume, path, mount.as_object()));
            made.push(volume);
        }
        if !filled.is_empty() {
            config.insert("mounts".to_owned(), Value::Array(filled));
        }
        Ok(made)
    }

    fn attach(
        &self,
        session: &Session,
        volume: &Volume,
        path: Option<&str>,
        mounts: &[Value],
    ) -> Result<Value, CliError> {
        let printer = &session.printer;
        printer.out(format_args!("Attaching existing volume {}", volume.id))?;
        let (before, earlier) = match mounts {
            [] => (None, None),
            [mount] => (mount["path"].as_str(), mount.as_object()),
            _ => {
                return Err(CliError::new(
                    "Can't use --attach-volume for Machines with more than 1 volume.",
                ));
            }
        };
        let Some(chosen) = path.or(before) else {
            return Err(CliError::new(format!(
                "Please specify a mount path on '{}' using <volume_id>:/path/inside/machine",
                volume.id
            )));
        };
        if let Some(before) = before.filter(|before| *before != chosen) {
            printer.note(format_args!(
                "Info: --attach-volume is overriding previous mount point from `{before}` to \
                 `{chosen}`."
            ))?;
        }
        Ok(volumes::mount(volume, chosen, earlier))
    }

    /// A new volume like the one that the source has.
    async fn like(
        &self,
        session: &Session,
        client: &Client,
        app: &str,
        (old, guest): (&Volume, Option<&Guest>),
    ) -> Result<Volume, CliError> {
        let printer = &session.printer;
        let snapshot = match self.clone.from_snapshot.as_deref() {
            Some("last") => {
                let snapshots = client.list_volume_snapshots(app, old.id.as_str()).await?;
                let there =
                    snapshots.into_iter().filter(|one| one.status == SnapshotStatus::Created);
                let last = there.max_by(|a, b| a.created_at.cmp(&b.created_at));
                match &last {
                    Some(last) => printer.out(format_args!(
                        "Creating new volume from snapshot {} of {}",
                        last.id, old.id
                    ))?,
                    None => printer.out(format_args!(
                        "No snapshot for source volume {}, the new volume will start empty",
                        old.id
                    ))?,
                }
                last.map(|last| last.id.to_string())
            }
            Some(id) => {
                printer.out(format_args!("Creating new volume from snapshot: {id}"))?;
                Some(id.to_owned())
            }
            None => {
                printer.out(format_args!("Volume '{}' will start empty", old.name))?;
                None
            }
        };
        let request = CreateVolumeRequest {
            name: old.name.clone(),
            region: Some(self.region()),
            size_gb: Some(old.size_gb),
            // One from a snapshot is as that was.
            encrypted: snapshot.is_none().then_some(old.encrypted),
            snapshot_id: snapshot,
            require_unique_zone: self.clone.volume_requires_unique_zone,
            compute: guest.cloned(),
            compute_image: Some(crate::render::machine::full_image(&self.source.image_ref)),
            ..CreateVolumeRequest::default()
        };
        volumes::make(session, client, app, &request).await
    }
}
