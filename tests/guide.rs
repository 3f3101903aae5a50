//! The pages of the guide with commands that need real VMs; `crates/caddis/tests/guide.rs` runs the
//! others, and lists which pages these are.

use std::fs;

use anyhow::Result;
use caddis_testkit::{
    Host, Options, Registry, RegistryOptions, Server,
    guide::{Page, Place},
    images,
};

#[tokio::test]
async fn the_commands_of_the_guide_run_on_real_vms_as_they_stand_there() -> Result<()> {
    let host = Host::new().await?;
    // It has the images that the pages take from Docker Hub.
    let registry = Registry::start(&host, RegistryOptions::default())?;
    registry.push(&images::web()?, "nginx:latest")?;
    registry.push(&images::postgres()?, "postgres:17")?;
    let options = Options {
        insecure_registries: vec![registry.address().to_owned()],
        arguments: vec!["--default-registry".to_owned(), registry.address().to_owned()],
        ..Options::default()
    };
    let server = Server::start(&host, options).await?;
    // Pages show machines that start from it.
    server.templates().await?;
    let mut pages: Vec<_> = Page::all()?.into_iter().filter(Page::needs_vm).collect();
    // It ends with a drain of the host.
    pages.sort_by_key(|page| page.name.ends_with("operations.md"));
    for page in pages {
        let directory = host.path(&page.name.replace('/', "-"));
        fs::create_dir(&directory)?;
        // As for the user that runs the server on its host: address and token are found there.
        let environment = server.variables()?;
        let (caddis, directory) = (&Server::binary()?, &*directory);
        page.run(&Place { directory, caddis, environment, has_vms: true })?;
    }
    Ok(())
}
