//! Fetching large blobs: hashed while they stream, resumed after a broken connection, given up when
//! nothing comes.

use std::{
    fs::File,
    io::{self, Write},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use reqwest::{
    Response, StatusCode,
    header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE},
};
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    Registry,
    failure::{Failure, failed_request},
    patience::Patience,
    repository::Repository,
    words,
};
use crate::{Digest, ImageError};

/// Beyond what the slowest allowed speed makes of a blob's size.
const GRACE: Duration = Duration::from_secs(60);
/// Bytes that earn another try: a line that breaks now and then gets there, a registry that always
/// cuts does not go on for as long as it likes.
const EARNS_A_TRY: u64 = 256 << 10;

/// A blob to fetch.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Of its content.
    pub(crate) digest: Digest,
    /// Bytes that the manifest promises.
    pub(crate) size: u64,
}

/// What the writing thread is told.
enum Piece {
    Data(Bytes),
    StartAgain,
}

impl Registry {
    /// Fetches a blob into an empty file and verifies size and digest. `progress` gets the bytes
    /// written so far. On an error the file's content is worthless.
    pub(crate) async fn blob(
        &self,
        repository: &Repository,
        wanted: &Wanted,
        file: File,
        progress: impl Fn(u64),
    ) -> Result<File, ImageError> {
        let speed = self.transfer.slowest_bytes_per_second.max(1);
        let deadline = GRACE + Duration::from_secs(wanted.size / speed);
        let what = format!("{}@{}", repository.name, wanted.digest);
        match tokio::time::timeout(
            deadline,
            self.blob_in_tries(repository, wanted, file, progress, &what),
        )
        .await
        {
            Ok(result) => result,
            Err(_) => Err(self.unreachable(
                repository,
                &what,
                format!("it did not come within {} s", deadline.as_secs()),
            )),
        }
    }

    async fn blob_in_tries(
        &self,
        repository: &Repository,
        wanted: &Wanted,
        file: File,
        progress: impl Fn(u64),
        what: &str,
    ) -> Result<File, ImageError> {
        let (pieces, writer) = start_writer(file);
        let mut fetch = Fetch {
            registry: self,
            repository,
            wanted,
            what,
            pieces,
            done: 0,
            progress: &progress,
        };
        let mut furthest = 0;
        let mut tries = 0;
        let mut patience = Patience::new(&self.transfer);
        while let Err(failure) = fetch.attempt().await {
            if fetch.done > furthest {
                furthest = fetch.done;
                patience.renew();
            }
            let pause = patience.after(&failure);
            let error = failure.error;
            let Some(pause) = pause else {
                // The writer may know better: a full disk shows here as a channel that nobody
                // reads.
                drop(fetch);
                return Err(finish_writer(writer).await.err().unwrap_or(error));
            };
            tries += 1;
            if tries >= u64::from(self.transfer.attempts).saturating_add(furthest / EARNS_A_TRY) {
                return Err(given_up(error, tries, furthest));
            }
            tracing::debug!(%error, done = fetch.done, "blob transfer broke off, retrying");
            tokio::time::sleep(pause).await;
        }
        drop(fetch);
        let (file, digest) = finish_writer(writer).await?;
        if digest != wanted.digest {
            return Err(ImageError::corrupt(what, format!("its content has digest {digest}")));
        }
        Ok(file)
    }
}

struct Fetch<'a, P> {
    registry: &'a Registry,
    repository: &'a Repository,
    wanted: &'a Wanted,
    what: &'a str,
    pieces: mpsc::Sender<Piece>,
    done: u64,
    progress: &'a P,
}

impl<P: Fn(u64)> Fetch<'_, P> {
    /// Gets as far as it can.
    async fn attempt(&mut self) -> Result<(), Failure> {
        if self.done == self.wanted.size && self.done > 0 {
            return Ok(());
        }
        let url = self.registry.url(self.repository, &["blobs", self.wanted.digest.as_str()])?;
        let mut headers = HeaderMap::new();
        if self.done > 0 {
            let range = HeaderValue::from_str(&format!("bytes={}-", self.done));
            headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let response = match self.registry.get(self.repository, &url, &headers, self.what).await {
            // Whatever it dislikes about the range, the whole blob it must have.
            Err(failure) if self.done > 0 && !failure.again => {
                self.start_again().await?;
                self.registry.get(self.repository, &url, &HeaderMap::new(), self.what).await?
            }
            other => other?,
        };
        if self.done > 0 && !continues_at(&response, self.done) {
            self.start_again().await?;
            if response.status() == StatusCode::PARTIAL_CONTENT {
                let reason = "it sent a different range than requested".to_owned();
                let error = self.registry.unreachable(self.repository, self.what, reason);
                return Err(Failure::passing(error));
            }
        }
        let expected = self.wanted.size - self.done;
        let is_page = words::says_page(&response);
        if let Some(length) = response.content_length().filter(|length| *length != expected) {
            return Err(self.wrong_size(self.done + length, is_page).into());
        }
        let mut stream = response.bytes_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk
                .map_err(|error| failed_request(&self.repository.registry, self.what, error))?;
            let length = chunk.len() as u64;
            if self.done + length > self.wanted.size {
                return Err(self.wrong_size(self.done + length, is_page).into());
            }
            self.send(Piece::Data(chunk)).await?;
            self.done += length;
            (self.progress)(self.done);
        }
        if self.done < self.wanted.size {
            let reason = format!("it ended after {} of {} bytes", self.done, self.wanted.size);
            let error = self.registry.unreachable(self.repository, self.what, reason);
            return Err(Failure::passing(error));
        }
        Ok(())
    }

    async fn start_again(&mut self) -> Result<(), Failure> {
        self.done = 0;
        (self.progress)(0);
        self.send(Piece::StartAgain).await
    }

    async fn send(&self, piece: Piece) -> Result<(), Failure> {
        let stopped = || ImageError::Interrupted { what: format!("writing {}", self.what) };
        self.pieces.send(piece).await.map_err(|_| stopped().into())
    }

    fn wrong_size(&self, got: u64, is_page: bool) -> ImageError {
        if is_page {
            return self.registry.no_page(self.repository, self.what);
        }
        ImageError::corrupt(
            self.what,
            format!("it has at least {got} bytes, the manifest says {}", self.wanted.size),
        )
    }
}

/// The last error, with what went before.
fn given_up(error: ImageError, tries: u64, furthest: u64) -> ImageError {
    match error {
        ImageError::Unreachable { registry, what, reason } => {
            let reason = format!(
                "{reason}; it broke off {tries} times and never got beyond {furthest} bytes"
            );
            ImageError::Unreachable { registry, what, reason }
        }
        other => other,
    }
}

/// Whether a partial answer starts where we are.
fn continues_at(response: &Response, offset: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    response.status() == StatusCode::PARTIAL_CONTENT
        && range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok())
            == Some(offset)
}

type Written = Result<(File, Digest), ImageError>;

/// Writing and hashing happen on a blocking thread, so that the network is read meanwhile.
fn start_writer(mut file: File) -> (mpsc::Sender<Piece>, JoinHandle<Written>) {
    let (sender, mut pieces) = mpsc::channel::<Piece>(64);
    let writer = tokio::task::spawn_blocking(move || {
        let failed = |error: io::Error| {
            ImageError::io("write", std::path::Path::new("a fetched blob"), error)
        };
        let mut hash = Sha256::new();
        while let Some(piece) = pieces.blocking_recv() {
            match piece {
                Piece::Data(data) => {
                    hash.update(&data);
                    file.write_all(&data).map_err(failed)?;
                }
                Piece::StartAgain => {
                    hash = Sha256::new();
                    file.set_len(0).map_err(failed)?;
                    io::Seek::rewind(&mut file).map_err(failed)?;
                }
            }
        }
        Ok((file, Digest::of_hashed(hash)))
    });
    (sender, writer)
}

async fn finish_writer(writer: JoinHandle<Written>) -> Written {
    writer
        .await
        .unwrap_or_else(|_| Err(ImageError::Interrupted { what: "writing a blob".to_owned() }))
}
