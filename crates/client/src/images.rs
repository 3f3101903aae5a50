//! Images held by the server.

use std::{fmt, io};

use bytes::Bytes;
use caddis_api::images::{ImageSummary, ImportUpdate};
use futures::{Stream, StreamExt as _, stream::BoxStream};
use reqwest::{Body, header::CONTENT_LENGTH};

use crate::{Client, ClientError, transport::Request};

/// Layout of an image archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// What `docker save` writes.
    Docker,
    /// A tar of an OCI image layout.
    Oci,
}

/// Which image of an archive is meant, and what it will be called.
#[derive(Debug, Clone, Copy, Default)]
pub struct Which<'a> {
    /// Its name in the archive, or `@` and its place from 0; needed where there are several.
    pub image: Option<&'a str>,
    /// The name that it gets; the archive's own unless given.
    pub name: Option<&'a str>,
}

impl fmt::Display for ArchiveFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Docker => "docker-archive",
            Self::Oci => "oci-archive",
        })
    }
}

impl Client {
    /// `GET /v1/images`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list_images(&self) -> Result<Vec<ImageSummary>, ClientError> {
        self.read(Request::get(["v1", "images"])).await
    }

    /// `GET /v1/images`, as the server wrote it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list_images_json(&self) -> Result<serde_json::Value, ClientError> {
        self.read(Request::get(["v1", "images"])).await
    }

    /// `POST /v1/images`: sends an archive while it is read and says how far the server is.
    /// `length` in bytes, when known. The stream ends after [`ImportUpdate::Done`]; a failure is
    /// its last item, as an error.
    ///
    /// # Errors
    /// 400 for an archive that can't be read; also within the stream.
    pub async fn import_image(
        &self,
        format: ArchiveFormat,
        which: Which<'_>,
        archive: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        length: Option<u64>,
    ) -> Result<BoxStream<'static, Result<ImportUpdate, ClientError>>, ClientError> {
        let mut request = Request::post(["v1", "images"]).query("format", format).timeout(None);
        for (parameter, value) in [("image", which.image), ("name", which.name)] {
            if let Some(value) = value {
                request = request.query(parameter, value);
            }
        }
        let response = self
            .send_body(&request, |builder| {
                let builder = builder.header("content-type", "application/x-tar");
                let builder = match length {
                    Some(length) => builder.header(CONTENT_LENGTH, length),
                    None => builder,
                };
                builder.body(Body::wrap_stream(archive))
            })
            .await?;
        let name = request.name();
        let lines = self.lines(name.clone(), response);
        let updates = lines.filter_map(move |line| {
            let update = match line {
                Ok(line) if line.trim().is_empty() => None,
                Ok(line) => Some(read_update(&name, &line)),
                Err(error) => Some(Err(error)),
            };
            async move { update }
        });
        Ok(updates.boxed())
    }

    /// `DELETE /v1/images?name=`.
    ///
    /// # Errors
    /// 404, 409 or 412 while a machine uses it.
    pub async fn remove_image(&self, name: &str) -> Result<(), ClientError> {
        self.send(&Request::delete(["v1", "images"]).query("name", name)).await.map(drop)
    }
}

fn read_update(request: &str, line: &str) -> Result<ImportUpdate, ClientError> {
    match serde_json::from_str(line) {
        Ok(ImportUpdate::Failed(error)) => Err(ClientError::from_api_error(error)),
        Ok(update) => Ok(update),
        Err(e) => {
            Err(ClientError::Unreadable { request: request.to_owned(), reason: e.to_string() })
        }
    }
}
