//! The server that runs with the data directory, and what it says of itself.

use caddis_api::platform::PlatformStatus;
use caddis_cli::{SERVER_FILE, ServerFile};
use caddis_client::{Client, ClientError};

use super::Check;
use crate::{instance, settings::Settings};

/// A server that was started with the data directory, and not stopped since.
pub(super) struct Server {
    /// What it has left for the command line.
    pub file: ServerFile,
    /// How it is, or why it does not say.
    pub status: Result<PlatformStatus, ClientError>,
}

impl Server {
    /// Asks it how it is; nothing where there is none.
    pub(super) async fn find(settings: &Settings) -> Option<Self> {
        let text = std::fs::read(settings.data_dir.join(SERVER_FILE)).ok()?;
        let file: ServerFile = serde_json::from_slice(&text).ok()?;
        let token = std::fs::read_to_string(settings.data_dir.join(instance::ROOT_TOKEN)).ok();
        let status = match Client::new(&file.url, token.as_deref().map(str::trim)) {
            Ok(client) => client.platform_status().await,
            Err(error) => Err(error),
        };
        Some(Self { file, status })
    }

    /// Whether it runs. One that was killed leaves its file, and somebody else may have its ports.
    pub(super) fn runs(&self) -> bool {
        use ClientError::{Api, Unreachable, Unreadable};
        !matches!(self.status, Err(Unreachable { .. } | Unreadable { .. } | Api { code: None, .. }))
    }

    /// What it warns of.
    pub(super) fn warnings(&self) -> &[String] {
        self.status.as_ref().map(|status| &*status.warnings).unwrap_or_default()
    }

    /// How it is as a whole.
    pub(super) fn check(&self) -> Check {
        let (name, log) = ("server", "see the server's log: journalctl -u caddis");
        match &self.status {
            Ok(status) if !status.ok => Check::failed(name, status.problems.join("; "), log),
            Ok(status) if !status.warnings.is_empty() => {
                Check::warning(name, status.warnings.join("; "), log)
            }
            Ok(status) => {
                Check::ok(name, format!("{} answers at {}", status.version, self.file.url))
            }
            Err(error) => Check::warning(
                name,
                format!("it does not answer at {}: {error}", self.file.url),
                "systemctl status caddis, or start caddis serve",
            ),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One that answers, with shared listeners at these addresses, and warns of this.
    pub(in crate::doctor) fn answering(services: &[&str], warnings: &[&str]) -> Server {
        let services = services.iter().map(|address| address.parse().unwrap()).collect();
        let status = PlatformStatus {
            version: "1".to_owned(),
            ok: true,
            problems: Vec::new(),
            warnings: warnings.iter().map(|text| (*text).to_owned()).collect(),
            hosts: Vec::new(),
        };
        let file = ServerFile {
            url: "http://x".to_owned(),
            host: None,
            services,
            egress_addresses: None,
            wireguard: None,
            snapshot_store: None,
            volume_gb: None,
        };
        Server { file, status: Ok(status) }
    }
}
