//! An image from a registry on this host until its root disk is ready for machines; beside it
//! `podman pull` of it into an empty store.

use std::{os::unix::fs::MetadataExt as _, path::Path, sync::Arc, time::Instant};

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use serde_json::json;

use crate::{
    bench::Bench,
    big_image,
    cpu::{self, milliseconds},
    http::Http,
    machine::Machine,
    progress::progress,
    registry::Registry,
    report::Promise,
    rival::Podman,
    server::{Pool, Server},
};

/// What may be left of a removed image, bytes: records, directories.
const TRACES: u64 = 1 << 20;

/// Measures the row.
///
/// # Errors
/// When the image can't be made, pushed or pulled.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    progress("image: making one of 350 MB, unless it is there");
    let layout = tokio::task::spawn_blocking(|| big_image::layout(&Bench::kept())).await??;
    let server = bench.server(Pool::On).await?;
    let registry = Registry::start(server.place(), &bench.work().join("registry")).await?;
    progress("image: pushing it to a registry");
    let reference = registry.push(&layout, "bench:1").await?;
    let place = Arc::new(server.place().containers_here()?);
    let runs = bench.repeat(3, 1);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..runs {
        progress(&format!("image: {} of {runs}", run + 1));
        cpu::rest().await?;
        ours.push(import(&server, &reference).await?);
        cpu::rest().await?;
        let store = bench.work().join(format!("pull{run}"));
        let podman = Podman::new(place.clone(), &store);
        let began = Instant::now();
        podman.run(&["pull", "--quiet", "--tls-verify=false", &reference]).await?;
        theirs.push(milliseconds(began));
        podman.run(&["rmi", "--all", "--force"]).await?;
    }
    let report = &mut bench.report;
    let text =
        "import of a 350 MB image from a local registry, request to a root disk that is ready";
    report.samples("image", text, "ms", Promise::None, &ours);
    report.samples(
        "podman-pull",
        "beside it: `podman pull` of it into an empty store",
        "ms",
        Promise::None,
        &theirs,
    );
    report.ratio(
        "image/podman",
        "import against `podman pull`",
        Promise::AtMost(1.0),
        &ours,
        &theirs,
    );
    Ok(())
}

/// Has the server fetch the image for a machine that is not booted, and removes both.
async fn import(server: &Server, reference: &str) -> Result<f64> {
    let before = disk_bytes(&server.data().join("images"))?;
    let began = Instant::now();
    let machine = Machine::prepare(server.http(), &json!({ "image": reference })).await?;
    let ms = milliseconds(began);
    machine.destroy().await?;
    remove(server.http(), reference).await?;
    let left = disk_bytes(&server.data().join("images"))?.saturating_sub(before);
    ensure!(
        left < TRACES,
        "of the removed image {left} bytes are left: the next import would not be fresh"
    );
    Ok(ms)
}

async fn remove(http: &Http, reference: &str) -> Result<()> {
    let images = crate::machine::json(&http.send(Method::GET, "/v1/images", "").await?)?;
    let has_name = |image: &&serde_json::Value| {
        image["names"].as_array().into_iter().flatten().any(|name| name.as_str() == Some(reference))
    };
    let image = images
        .as_array()
        .into_iter()
        .flatten()
        .find(has_name)
        .context("the image is not listed")?;
    let digest = image["digest"].as_str().context("an image without a digest")?;
    http.send(Method::DELETE, &format!("/v1/images?name={digest}"), "").await.map(drop)
}

/// What the files below a directory take on disk.
fn disk_bytes(directory: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in
        std::fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?
    {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(sum)
}
