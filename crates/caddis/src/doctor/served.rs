//! What the server that runs with the data directory was started with. Flags and settings of
//! `caddis doctor` may be others: the server may have had its own on its command line.

use ipnet::IpNet;

use super::server::Server;
use crate::settings::{Settings, SnapshotSettings, WireGuardSettings};

/// The settings, with those of the server that runs where nothing else is given.
pub(super) fn with_those_of_server(mut settings: Settings, server: Option<&Server>) -> Settings {
    let Some(Server { file, .. }) = server.filter(|server| server.runs()) else { return settings };
    if settings.traffic.egress_addresses.is_empty() {
        settings.traffic.egress_addresses = file.egress_addresses.clone().unwrap_or_default();
    }
    let served =
        file.wireguard.map(|listen| WireGuardSettings { listen, endpoint: listen.to_string() });
    settings.wireguard = settings.wireguard.or(served);
    settings.volume_gib = settings.volume_gib.or(file.volume_gb);
    if settings.snapshots.is_default(&settings.data_dir)
        && let Some(store) = file.snapshot_store.as_ref().filter(|store| !store.contains("://"))
    {
        settings.snapshots = SnapshotSettings::Directory(store.into());
    }
    settings
}

/// Where the server that runs keeps snapshots; nothing where none runs, or it does not say.
pub(super) fn snapshot_store(server: Option<&Server>) -> Option<&str> {
    server.filter(|server| server.runs())?.file.snapshot_store.as_deref()
}

/// The egress addresses that the server has; those of the settings where no server runs, or it does
/// not say.
pub(super) fn egress_addresses(settings: &Settings, server: Option<&Server>) -> Vec<IpNet> {
    let server = server.filter(|server| server.runs());
    let told = server.and_then(|server| server.file.egress_addresses.clone());
    told.unwrap_or_else(|| settings.traffic.egress_addresses.clone())
}

#[cfg(test)]
mod tests {
    use caddis_cli::ServerFile;

    use super::{
        super::{Status, server::tests::answering, services, snapshots, wireguard},
        *,
    };
    use crate::settings::ServeArguments;

    fn settings(egress: &[&str], server: Option<&Server>) -> (tempfile::TempDir, Settings) {
        let directory = tempfile::tempdir().unwrap();
        let arguments = ServeArguments {
            data_dir: Some(directory.path().to_owned()),
            egress_addresses: egress.iter().map(|prefix| prefix.parse().unwrap()).collect(),
            ..ServeArguments::default()
        };
        let settings = with_those_of_server(arguments.resolve().unwrap(), server);
        (directory, settings)
    }

    /// One that has these, by whatever flags.
    fn server() -> Server {
        let answering = answering(&[], &[]);
        let file = ServerFile {
            egress_addresses: Some(vec!["240.0.0.0/29".parse().unwrap()]),
            wireguard: Some("192.0.2.1:51820".parse().unwrap()),
            snapshot_store: Some("s3://bucket/of-server".to_owned()),
            volume_gb: Some(7),
            ..answering.file
        };
        Server { file, ..answering }
    }

    #[tokio::test]
    async fn what_a_server_has_by_its_own_flags_is_checked() {
        let server = server();
        let (_directory, served) = settings(&[], Some(&server));
        let found = services::egress(&served, Some(&server));
        assert!(found.message.contains("240.0.0.0/29"), "{}", found.message);
        let found = wireguard::check(&served, Some(&server)).unwrap();
        assert!(found.message.contains("192.0.2.1:51820"), "{}", found.message);
        assert_eq!(served.volume_gib, Some(7));
        let found = snapshots::check(&served, Some(&server)).await;
        assert_eq!(found.status, Status::Ok);
        assert!(
            found.message.starts_with("s3://bucket/of-server; the server"),
            "{}",
            found.message
        );
        let file = ServerFile { snapshot_store: Some("/mnt/of-server".to_owned()), ..server.file };
        let in_directory = Server { file, ..server };
        let (_directory, served) = settings(&[], Some(&in_directory));
        let found = snapshots::check(&served, Some(&in_directory)).await;
        assert!(found.message.starts_with("/mnt/of-server: "), "{}", found.message);

        let (_directory, alone) = settings(&[], None);
        assert!(services::egress(&alone, None).message.starts_with("none"));
        assert!(wireguard::check(&alone, None).is_none());
        assert_eq!(alone.volume_gib, None);
        let found = snapshots::check(&alone, None).await;
        assert!(found.message.contains("/snapshots"), "{}", found.message);
        // Servers of earlier releases do not say.
        let earlier = answering(&[], &[]);
        let (_directory, given) = settings(&["240.0.0.8/29"], Some(&earlier));
        assert_eq!(egress_addresses(&given, Some(&earlier)), given.traffic.egress_addresses);
    }

    #[test]
    fn a_prefix_that_the_server_does_not_have_yet_is_checked_and_not_missing_on_the_host() {
        let server = server();
        let (_directory, given) = settings(&["240.0.0.8/29"], Some(&server));
        let found = services::egress(&given, Some(&server));
        assert_eq!(found.status, Status::Ok, "{}", found.message);
        for part in ["240.0.0.8/29 (a router", "the server has 240.0.0.0/29 until"] {
            assert!(found.message.contains(part), "{}", found.message);
        }
        let served = egress_addresses(&given, Some(&server));
        assert_eq!(served, ["240.0.0.0/29".parse::<IpNet>().unwrap()]);
    }

    #[tokio::test]
    async fn a_store_named_to_doctor_is_tried_and_one_that_it_has_no_credentials_of_is_not() {
        let server = server();
        let directory = tempfile::tempdir().unwrap();
        let with = |store: &str| ServeArguments {
            data_dir: Some(directory.path().to_owned()),
            snapshot_store: Some(store.to_owned()),
            ..ServeArguments::default()
        };
        let backup = directory.path().join("backup");
        let named = with(backup.to_str().unwrap()).resolve().unwrap();
        let found = snapshots::check(&named, Some(&server)).await;
        assert!(found.message.contains("/backup: "), "{}", found.message);

        let arguments = with("s3://bucket/of-server");
        let credentials = Some(directory.path().join("missing"));
        let same = ServeArguments { snapshot_store_credentials: credentials, ..arguments };
        let same = same.resolve().unwrap();
        let found = snapshots::check(&same, Some(&server)).await;
        assert_eq!(found.status, Status::Ok, "{}", found.message);
        assert!(found.message.contains("and its credentials"), "{}", found.message);
        assert_eq!(snapshots::check(&same, None).await.status, Status::Failed);
    }
}
