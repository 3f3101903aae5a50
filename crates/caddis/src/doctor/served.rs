//! What the server that runs with the data directory was started with. Flags and settings of
//! `caddis doctor` may be others: the server may have had its own on its command line.

use ipnet::IpNet;

use super::server::Server;
use crate::settings::{Settings, WireGuardSettings};

/// The settings, with those of the server that runs where nothing else is given.
pub(super) fn with_those_of_server(mut settings: Settings, server: Option<&Server>) -> Settings {
    let Some(Server { file, .. }) = server.filter(|server| server.runs()) else { return settings };
    if settings.traffic.egress_addresses.is_empty() {
        settings.traffic.egress_addresses = file.egress_addresses.clone().unwrap_or_default();
    }
    let served =
        file.wireguard.map(|listen| WireGuardSettings { listen, endpoint: listen.to_string() });
    settings.wireguard = settings.wireguard.or(served);
    settings
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
        super::{Status, server::tests::answering, services, wireguard},
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
            ..answering.file
        };
        Server { file, ..answering }
    }

    #[test]
    fn what_a_server_has_by_its_own_flags_is_checked() {
        let server = server();
        let (_directory, served) = settings(&[], Some(&server));
        let found = services::egress(&served, Some(&server));
        assert!(found.message.contains("240.0.0.0/29"), "{}", found.message);
        let found = wireguard::check(&served, Some(&server)).unwrap();
        assert!(found.message.contains("192.0.2.1:51820"), "{}", found.message);

        let (_directory, alone) = settings(&[], None);
        assert!(services::egress(&alone, None).message.starts_with("none"));
        assert!(wireguard::check(&alone, None).is_none());
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
}
