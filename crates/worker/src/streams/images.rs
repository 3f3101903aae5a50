//! Images: what is there, taking in an archive, removing one.

use std::{io::Write as _, path::PathBuf, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::{Query, State},
    http::Response,
    response::IntoResponse,
};
use bytes::Bytes;
use caddis_api::{ApiError, ErrorCode};
use caddis_bus::message::{ImageSummary, ImportUpdate};
use caddis_image::Progress;
use futures::StreamExt as _;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};

use super::{Failed, OkReply};
use crate::engine::Shared;

/// Updates that wait for a slow client.
const UPDATES: usize = 16;

/// All images, with the machines that use each.
pub async fn list(State(shared): State<Arc<Shared>>) -> Result<Json<Vec<ImageSummary>>, Failed> {
    let machines = shared.machines_per_image();
    let mut images = shared.images.list().await?;
    for image in &mut images {
        image.machines = machines.get(image.digest.as_str()).copied().unwrap_or(0);
    }
    Ok(Json(images))
}

#[derive(Debug, Deserialize)]
pub struct Remove {
    name: String,
}

/// Removes an image that no machine uses.
pub async fn remove(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<Remove>,
) -> Result<Json<OkReply>, Failed> {
    shared.images.remove(&query.name, &shared.images_in_use()).await?;
    Ok(Json(OkReply::OK))
}

#[derive(Debug, Deserialize)]
pub struct Import {
    format: String,
    /// Which of the images in it.
    image: Option<String>,
    name: Option<String>,
}

/// Takes in an archive; the answer tells how far it is, line by line. When nobody reads it any
/// more, that is the end.
pub async fn import(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<Import>,
    body: Body,
) -> Result<Response<Body>, Failed> {
    if !["docker-archive", "oci-archive"].contains(&query.format.as_str()) {
        return Err(ApiError::invalid("invalid format, use docker-archive or oci-archive").into());
    }
    let archive = receive(&shared, body).await?;
    let (updates, mut receiver) = mpsc::channel::<ImportUpdate>(UPDATES);
    tokio::spawn(async move {
        let image = query
            .image
            .filter(|image| !image.is_empty())
            .map(|image| format!(":{image}"))
            .unwrap_or_default();
        let source = format!("{}:{}{image}", query.format, archive.path.display());
        let (sender, progress) = watch::channel(Progress::default());
        let work = shared.images.import(&source, query.name.as_deref(), &sender);
        report(work, progress, updates).await;
    });
    let lines =
        futures::stream::poll_fn(move |context| receiver.poll_recv(context)).map(|update| {
            let mut line = serde_json::to_vec(&update)?;
            line.push(b'\n');
            Ok::<_, serde_json::Error>(Bytes::from(line))
        });
    let headers = [("content-type", "application/x-ndjson")];
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// Tells how far the import is until it is over. Without anyone to tell, it is dropped, which ends
/// it.
async fn report(
    work: impl Future<Output = Result<ImageSummary, ApiError>>,
    mut progress: watch::Receiver<Progress>,
    updates: mpsc::Sender<ImportUpdate>,
) {
    tokio::pin!(work);
    let last = loop {
        tokio::select! {
            result = &mut work => break match result {
                Ok(image) => ImportUpdate::Done(image),
                Err(error) => ImportUpdate::Failed(error),
            },
            Ok(()) = progress.changed() => {
                let now = progress.borrow_and_update().clone();
                let Progress { step, bytes_done, bytes_total } = now;
                // A client that is slow misses updates.
                let _ = updates.try_send(ImportUpdate::Progress { step, bytes_done, bytes_total });
            }
            () = updates.closed() => {
                tracing::info!("import cancelled: its client disconnected");
                return;
            }
        }
    };
    let _ = updates.send(last).await;
}

/// An archive on disk, removed when it is no longer needed.
struct Archive {
    path: PathBuf,
}

impl Drop for Archive {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), error = %e, "can't remove an archive");
        }
    }
}

async fn receive(shared: &Shared, body: Body) -> Result<Archive, ApiError> {
    let failed = |e: std::io::Error| ApiError::internal(format!("can't store the archive: {e}"));
    let directory = shared.config.directory.join("uploads");
    std::fs::create_dir_all(&directory).map_err(failed)?;
    let archive = Archive { path: directory.join(caddis_api::VersionId::generate().as_str()) };
    let mut file = std::fs::File::create_new(&archive.path).map_err(failed)?;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|e| {
            ApiError::new(ErrorCode::InvalidArgument, format!("the archive was cut off: {e}"))
        })?;
        // Written at the speed of the network; the blocking threads have better things to do.
        tokio::task::block_in_place(|| file.write_all(&chunk)).map_err(failed)?;
    }
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_import_ends_with_its_client() {
        let (updates, mut client) = mpsc::channel(UPDATES);
        let (sender, progress) = watch::channel(Progress::default());
        let under_way = Arc::new(());
        let held = Arc::clone(&under_way);
        let import = async move {
            let _held = held;
            std::future::pending().await
        };
        let reporting = tokio::spawn(report(import, progress, updates));
        sender.send_replace(Progress { step: "unpack".to_owned(), bytes_done: 1, bytes_total: 2 });
        let update = client.recv().await;
        assert!(matches!(update, Some(ImportUpdate::Progress { bytes_done: 1, .. })));
        assert_eq!(Arc::strong_count(&under_way), 2, "it goes on while someone listens");
        drop(client);
        reporting.await.unwrap();
        assert_eq!(Arc::strong_count(&under_way), 1, "it was dropped");
    }
}
