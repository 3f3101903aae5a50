//! What `caddis doctor` asks of the network of an installation, whether its server runs or not.

use std::path::Path;

use ipnet::{IpNet, Ipv4Net};

use crate::{
    Network, NetworkError, answering, forwarding, host_filter, installation::Claims, links::Links,
    namespace, network::blocking, pool, rules,
};

impl Network {
    /// The addresses that machines of an installation have, or would have once it is started.
    ///
    /// # Errors
    /// [`NetworkError::PoolInUse`] where the host sends a part of them elsewhere, and when it does
    /// not say.
    pub async fn find_pool(
        run_directory: &Path,
        data_directory: &Path,
        state_file: &Path,
        given: Option<Ipv4Net>,
    ) -> Result<Ipv4Net, NetworkError> {
        let links = Links::open()?;
        let directory = run_directory.to_owned();
        let own = if directory.exists() {
            let claims = blocking(move || Claims::lock(&directory)).await?;
            match claims.find(data_directory)? {
                Some(installation) => links.index(&installation.link()).await?,
                None => None,
            }
        } else {
            None
        };
        pool::find(&links, given, own, state_file).await
    }

    /// What of an installation's network is missing on the host; none where it has none.
    ///
    /// # Errors
    /// When the host does not say.
    pub async fn inspect(
        run_directory: &Path,
        data_directory: &Path,
        egress_pools: &[IpNet],
    ) -> Result<Option<Vec<&'static str>>, NetworkError> {
        let directory = run_directory.to_owned();
        if !directory.exists() {
            return Ok(None);
        }
        let claims = blocking(move || Claims::lock(&directory)).await?;
        let Some(installation) = claims.find(data_directory)? else { return Ok(None) };
        let (name, links) = (installation.link(), Links::open()?);
        let mut missing = Vec::new();
        if !namespace::exists(&installation.namespace()) {
            missing.push("network namespace");
        }
        if links.index(&name).await?.is_none() {
            missing.push("link");
        }
        if !rules::are_there(&links, &installation).await? {
            missing.push("routing rules");
        }
        if !blocking(move || host_filter::is_loaded(&name)).await? {
            missing.push("packet filter");
        }
        let pools = answering::routes(&installation).list(&links).await?;
        if !egress_pools.iter().all(|pool| pools.contains(&pool.trunc())) {
            missing.push("routes to egress addresses");
        }
        if !forwarding::is_on() {
            missing.push("forwarding");
        }
        Ok(Some(missing))
    }
}
