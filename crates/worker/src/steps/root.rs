//! The root disk: the image's, the machine's own over it, and its own files in that.

use base64::Engine as _;
use caddis_guest_protocol::spec::FileSpec;
use caddis_image::{OwnFile, RootDisk};
use caddis_vmm::{Disk, DiskFormat, DiskRole};

use super::{Context, Done, Failure, Step, blocking, launch, volumes};
use crate::spec;

pub(super) async fn pull(context: Context) -> Result<Done, Failure> {
    root_disk(&context).await?;
    let operation = context.row.operation.as_ref();
    // Not here where nothing is started.
    if operation.is_some_and(|operation| operation.kind.rules().steps().contains(&Step::Launch)) {
        volumes::ready(&context).await?;
    }
    Ok(Done::Next)
}

pub(super) async fn root_disk(context: &Context) -> Result<RootDisk, Failure> {
    let images = &context.shared.images;
    let image = &context.row.image;
    let ready = |digest| images.ready_root_disk(digest);
    if let Some(disk) = image.reference.digest.as_ref().and_then(ready) {
        return Ok(disk);
    }
    context.shared.make_room().await;
    Ok(images.root_disk(image, &context.progress).await?)
}

/// The machine's own, over that.
pub(super) fn own_disk(context: &Context, base: &RootDisk) -> Disk {
    Disk {
        role: DiskRole::Root,
        format: DiskFormat::Overlay(base.path.clone()),
        path: context.files().root_disk(),
        size: context.config.rootfs_gib() << 30,
    }
}

/// Files that the machine has of its own.
fn own_files(context: &Context) -> Vec<OwnFile> {
    let network = context.shared.network.guest_spec(&context.row.addresses);
    spec::own_files(&context.row, &context.config, &network)
}

/// Those that are not in its root already. One that was to be resumed has been used since they
/// were.
pub(super) async fn unwritten(context: &Context) -> Result<Vec<FileSpec>, Failure> {
    let (files, used, disk) =
        (own_files(context), launch::is_resume(&context.row), root_disk(context).await?);
    let shared = context.shared.clone();
    let files = blocking(move || shared.images.unwritten(&disk.path, files, used))
        .await
        .map_err(|e| Failure::retry(format!("can't read the root disk: {e}")))?;
    let encode = |file: OwnFile| FileSpec {
        path: file.path.to_owned(),
        content: base64::engine::general_purpose::STANDARD.encode(file.content),
        mode: 0,
        only_in_place: file.only_in_place,
    };
    Ok(files.into_iter().map(encode).collect())
}

pub(super) async fn prepare_root(context: Context) -> Result<Done, Failure> {
    let base = root_disk(&context).await?;
    let (files, own) = (context.files(), own_files(&context));
    let disk = own_disk(&context, &base);
    let shared = context.shared.clone();
    blocking(move || {
        files.make_directory()?;
        shared.vmm.create_disk(&disk, &shared.images.patches(&base.path, &own)?)
    })
    .await
    .map_err(|e| Failure::retry(format!("can't write the root disk: {e}")))?;
    Ok(Done::Next)
}
