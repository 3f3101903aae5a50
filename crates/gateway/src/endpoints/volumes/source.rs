//! What a new volume is made from: another volume, a snapshot, or nothing.

use caddis_api::{
    ApiError, ErrorCode, RegionCode, WorkerId,
    volume::{CreateVolumeRequest, Filesystem, SnapshotStatus},
};
use caddis_bus::message::{SnapshotRecord, VolumeRecord};
use caddis_catalog::AppRecord;

use crate::http::{authorization::AppPath, caller::Caller, context::Context};

/// Bytes of a GiB.
const GIB: u64 = 1 << 30;

/// See the module's text.
pub(super) enum Source {
    /// A volume of the same app, copied on its host.
    Volume(Box<VolumeRecord>),
    /// A snapshot of the same organization, and who told of it.
    Snapshot(WorkerId, Box<SnapshotRecord>),
}

impl Source {
    /// Looks up what a request names, if anything, and checks that a volume can be made from it.
    pub async fn find(
        context: &Context,
        caller: &Caller,
        app: &AppPath,
        request: &CreateVolumeRequest,
    ) -> Result<Option<Self>, ApiError> {
        if let Some(id) = request.source_volume_id.as_deref().filter(|id| !id.is_empty()) {
            return volume(context, app, id).await.map(Some);
        }
        let Some(id) = request.snapshot()? else { return Ok(None) };
        let app: AppRecord = app.look_up(context).await?;
        let (worker, record) = caller.snapshot(context, &app, &id).await?;
        let status = record.snapshot.status;
        if status != SnapshotStatus::Created {
            return Err(ApiError::precondition(format!(
                "snapshot {id} is {}, a volume can be made from one that is created",
                status.as_str()
            )));
        }
        Ok(Some(Self::Snapshot(worker, Box::new(record))))
    }

    /// What it is, and its size in GiB: the least that the new volume can have.
    pub fn size(&self) -> (&'static str, u32) {
        match self {
            Self::Volume(record) => ("the source", record.volume.size_gb),
            Self::Snapshot(_, record) => {
                let gib = record.snapshot.volume_size.div_ceil(GIB);
                ("the volume of the snapshot", u32::try_from(gib).unwrap_or(u32::MAX))
            }
        }
    }

    /// What is on it.
    pub fn filesystem(&self) -> Filesystem {
        match self {
            Self::Volume(record) => record.volume.fstype,
            Self::Snapshot(_, record) => record.filesystem,
        }
    }

    /// Whether it is encrypted, as the new volume will be.
    pub fn encrypted(&self) -> bool {
        match self {
            Self::Volume(record) => record.volume.encrypted,
            Self::Snapshot(_, record) => record.encrypted,
        }
    }

    /// Refuses what the new volume can't be.
    pub fn check(
        &self,
        request: &CreateVolumeRequest,
        regions: &[RegionCode],
    ) -> Result<(), ApiError> {
        let (what, _) = self.size();
        if let Some(wanted) = request.filesystem()?
            && wanted != self.filesystem()
        {
            return Err(ApiError::invalid(format!(
                "invalid fstype '{}', {what} has {}, and so will the new one",
                wanted.as_str(),
                self.filesystem().as_str()
            )));
        }
        // True is what clients send who say nothing of it.
        if request.encrypted == Some(false) && self.encrypted() {
            return Err(ApiError::invalid(format!(
                "invalid encrypted, {what} is encrypted, and so will the new one be"
            )));
        }
        match self {
            Self::Volume(source) if !regions.contains(&source.volume.region) => Err(ApiError::new(
                ErrorCode::Unprocessable,
                format!(
                    "could not find a candidate host: a copy of a volume is made on its host, \
                     in {}",
                    source.volume.region
                ),
            )),
            _ => Ok(()),
        }
    }
}

async fn volume(context: &Context, app: &AppPath, id: &str) -> Result<Source, ApiError> {
    let shown: String = id.escape_debug().take(100).collect();
    let unknown =
        || ApiError::invalid(format!("invalid source_volume_id, the app has no volume '{shown}'"));
    let id = id.parse().map_err(|_| unknown())?;
    // 404 is for the app.
    app.look_up(context).await?;
    let source = app.volume(context, &id).await.map_err(|error| match error.code {
        ErrorCode::NotFound => unknown(),
        _ => error,
    })?;
    let state = source.volume.state;
    if !state.is_mountable() {
        return Err(ApiError::precondition(format!(
            "volume {id} is {}, it can't be copied",
            state.as_str()
        )));
    }
    Ok(Source::Volume(Box::new(source)))
}
