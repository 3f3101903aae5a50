//! Volumes.

use std::time::Duration;

use caddis_api::{
    Volume,
    volume::{
        CreateVolumeRequest, ExtendVolumeReply, ExtendVolumeRequest, UpdateVolumeRequest,
        VolumeSnapshot,
    },
};
use reqwest::Method;
use serde_json::Value;

use crate::{Client, ClientError, transport::Request};

/// Create is placed and recorded on a disk before it is answered.
const CREATE_TIMEOUT: Duration = Duration::from_secs(180);

impl Client {
    /// `GET …/volumes`: deleted ones are among them.
    ///
    /// # Errors
    /// 404 for an unknown app.
    pub async fn list_volumes(&self, app: &str) -> Result<Vec<Volume>, ClientError> {
        self.read(Request::get(["v1", "apps", app, "volumes"])).await
    }

    /// The same, as the server wrote it.
    ///
    /// # Errors
    /// 404 for an unknown app.
    pub async fn list_volumes_json(&self, app: &str) -> Result<Vec<Value>, ClientError> {
        self.read(Request::get(["v1", "apps", app, "volumes"])).await
    }

    /// `POST …/volumes`. It may be `creating` when this returns.
    ///
    /// # Errors
    /// 400 for a bad request, 412 when the source can't be copied, 422 for want of space.
    pub async fn create_volume(
        &self,
        app: &str,
        request: &CreateVolumeRequest,
    ) -> Result<Volume, ClientError> {
        let post = Request::post(["v1", "apps", app, "volumes"]).timeout(Some(CREATE_TIMEOUT));
        self.read_with(post, request).await
    }

    /// `GET …/volumes/{id}`.
    ///
    /// # Errors
    /// 404.
    pub async fn get_volume(&self, app: &str, volume: &str) -> Result<Volume, ClientError> {
        self.read(Request::get(["v1", "apps", app, "volumes", volume])).await
    }

    /// `PUT …/volumes/{id}`.
    ///
    /// # Errors
    /// 404, 412 when it is deleted.
    pub async fn update_volume(
        &self,
        app: &str,
        volume: &str,
        request: &UpdateVolumeRequest,
    ) -> Result<Volume, ClientError> {
        let put = Request::new(Method::PUT, ["v1", "apps", app, "volumes", volume]);
        self.read_with(put, request).await
    }

    /// `PUT …/volumes/{id}/extend`, to this size as a whole, GiB.
    ///
    /// # Errors
    /// 400 for a size that is not larger, 412 when it is being changed, 422 for want of space.
    pub async fn extend_volume(
        &self,
        app: &str,
        volume: &str,
        size_gb: u32,
    ) -> Result<ExtendVolumeReply, ClientError> {
        let put = Request::new(Method::PUT, ["v1", "apps", app, "volumes", volume, "extend"]);
        self.read_with(put, &ExtendVolumeRequest { size_gb }).await
    }

    /// `DELETE …/volumes/{id}`.
    ///
    /// # Errors
    /// 404, 412 while a machine has it.
    pub async fn delete_volume(&self, app: &str, volume: &str) -> Result<Volume, ClientError> {
        self.read(Request::delete(["v1", "apps", app, "volumes", volume])).await
    }

    /// The same for good, at once, also of one that is deleted already.
    ///
    /// # Errors
    /// 404, 412 while a machine has it.
    pub async fn purge_volume(&self, app: &str, volume: &str) -> Result<Volume, ClientError> {
        let delete = Request::delete(["v1", "apps", app, "volumes", volume]);
        self.read(delete.query("purge", true)).await
    }

    /// `POST …/volumes/{id}/undelete`.
    ///
    /// # Errors
    /// 404, 412 when it is too late.
    pub async fn undelete_volume(&self, app: &str, volume: &str) -> Result<Volume, ClientError> {
        self.read(Request::post(["v1", "apps", app, "volumes", volume, "undelete"])).await
    }

    /// `GET …/volumes/{id}/snapshots`.
    ///
    /// # Errors
    /// 404.
    pub async fn list_volume_snapshots(
        &self,
        app: &str,
        volume: &str,
    ) -> Result<Vec<VolumeSnapshot>, ClientError> {
        self.read(Request::get(["v1", "apps", app, "volumes", volume, "snapshots"])).await
    }

    /// `POST …/volumes/{id}/snapshots`. It is `waiting` when this returns.
    ///
    /// # Errors
    /// 404, 412 where the state of the volume does not allow it.
    pub async fn create_volume_snapshot(
        &self,
        app: &str,
        volume: &str,
    ) -> Result<VolumeSnapshot, ClientError> {
        self.read(Request::post(["v1", "apps", app, "volumes", volume, "snapshots"])).await
    }

    /// `GET …/volumes/{id}/snapshots/{snapshot}`.
    ///
    /// # Errors
    /// 404.
    pub async fn get_volume_snapshot(
        &self,
        app: &str,
        volume: &str,
        snapshot: &str,
    ) -> Result<VolumeSnapshot, ClientError> {
        self.read(Request::get(["v1", "apps", app, "volumes", volume, "snapshots", snapshot])).await
    }

    /// `DELETE …/volumes/{id}/snapshots/{snapshot}`.
    ///
    /// # Errors
    /// 404, 412 while a volume is being made from it.
    pub async fn delete_volume_snapshot(
        &self,
        app: &str,
        volume: &str,
        snapshot: &str,
    ) -> Result<(), ClientError> {
        let delete = Request::delete(["v1", "apps", app, "volumes", volume, "snapshots", snapshot]);
        self.send(&delete).await.map(drop)
    }
}
