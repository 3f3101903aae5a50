//! What a policy allows, as it is written on the command line: `tcp/443,udp/53@app:db`.

use caddis_api::policies::{
    PolicyAction, PolicyDirection, PolicyDns, PolicyPeer, PolicyPort, PolicyProtocol, PolicyRule,
};
use clap::{Args, ValueEnum};

use crate::CliError;

/// Flags that say what is allowed.
#[derive(Debug, Args)]
pub struct RuleFlags {
    /// Allow connections that the machines make: PORTS or PORTS@PEERS, where PORTS is 'all' or
    /// some of tcp, tcp/443, udp/53 and icmp, and PEERS some of 10.0.0.0/8, app:NAME and
    /// network:NAME, with commas between; may be repeated.
    #[arg(long, value_name = "RULE")]
    egress: Vec<String>,
    /// Allow connections that others make to the machines, in the same form. The proxy and health
    /// checks are always allowed.
    #[arg(long, value_name = "RULE")]
    ingress: Vec<String>,
    /// Whether the machines may ask the name server [default: allow].
    #[arg(long, value_name = "CHOICE")]
    dns: Option<Dns>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dns {
    Allow,
    Deny,
}

impl RuleFlags {
    /// What is allowed from now on, and the choice of DNS if there is one.
    pub fn apply(
        &self,
        mut rules: Vec<PolicyRule>,
    ) -> Result<(Vec<PolicyRule>, Option<PolicyDns>), CliError> {
        let given =
            [(PolicyDirection::Egress, &self.egress), (PolicyDirection::Ingress, &self.ingress)];
        for (direction, texts) in given {
            if texts.is_empty() {
                continue;
            }
            rules.retain(|rule| rule.direction != direction);
            for text in texts {
                rules.push(rule(direction, text)?);
            }
        }
        let dns = self.dns.map(|dns| match dns {
            Dns::Allow => PolicyDns::Allow,
            Dns::Deny => PolicyDns::Deny,
        });
        Ok((rules, dns))
    }
}

fn rule(direction: PolicyDirection, text: &str) -> Result<PolicyRule, CliError> {
    let invalid = |why: String| {
        CliError::with_hint(
            format!("invalid rule '{text}': {why}"),
            "Write it like tcp/443, tcp/443,udp/53@app:db or all@10.0.0.0/8,network:default.",
        )
    };
    let (ports, peers) =
        text.split_once('@').map_or((text, None), |(ports, peers)| (ports, Some(peers)));
    let ports = match ports {
        "all" => None,
        ports => Some(ports.split(',').map(port).collect::<Result<_, _>>().map_err(invalid)?),
    };
    let peers = peers.map(|peers| peers.split(',').map(peer).collect::<Result<Vec<_>, _>>());
    let peers = peers.transpose().map_err(invalid)?;
    let (to, from) = match direction {
        PolicyDirection::Egress => (peers, None),
        PolicyDirection::Ingress => (None, peers),
    };
    Ok(PolicyRule { action: PolicyAction::Allow, direction, ports, to, from })
}

/// Reads some ports; the error says what is wrong with the text.
fn port(text: &str) -> Result<PolicyPort, String> {
    let (name, number) =
        text.split_once('/').map_or((text, None), |(name, number)| (name, Some(number)));
    let all = [PolicyProtocol::Tcp, PolicyProtocol::Udp, PolicyProtocol::Icmp];
    let Some(protocol) = all.into_iter().find(|known| known.as_str() == name) else {
        return Err(match name {
            "" => "ports are missing, use all, tcp, udp or icmp".to_owned(),
            "all" => "all stands alone, and has no ports".to_owned(),
            _ => format!("'{name}' is not a protocol, use tcp, udp or icmp"),
        });
    };
    let port = match number {
        Some(_) if protocol == PolicyProtocol::Icmp => return Err("icmp has no ports".to_owned()),
        Some(number) => {
            let port = number.parse().ok().filter(|port| *port > 0);
            Some(port.ok_or_else(|| format!("'{number}' is not a port, use 1 to 65535"))?)
        }
        None => None,
    };
    Ok(PolicyPort { protocol, port })
}

/// What is an address is checked by the server.
fn peer(text: &str) -> Result<PolicyPeer, String> {
    let nobody = PolicyPeer::default();
    let named = |name: &str, what: &str| match name {
        "" => Err(format!("the name of {what} is missing after '{text}'")),
        name => Ok(Some(name.to_owned())),
    };
    if text.is_empty() {
        return Err("an address, app:NAME or network:NAME is missing after '@'".to_owned());
    }
    Ok(if let Some(app) = text.strip_prefix("app:") {
        PolicyPeer { app: named(app, "an app")?, ..nobody }
    } else if let Some(network) = text.strip_prefix("network:") {
        PolicyPeer { network: named(network, "a network")?, ..nobody }
    } else {
        PolicyPeer { cidr: Some(text.to_owned()), ..nobody }
    })
}

/// A rule for people: the flag that makes it, without its dashes.
pub fn text(rule: &PolicyRule) -> String {
    let direction = match rule.direction {
        PolicyDirection::Egress => "egress",
        PolicyDirection::Ingress => "ingress",
    };
    let port = |port: &PolicyPort| match port.port {
        Some(number) => format!("{}/{number}", port.protocol.as_str()),
        None => port.protocol.as_str().to_owned(),
    };
    let ports = rule.ports.as_ref().map_or_else(
        || "all".to_owned(),
        |ports| ports.iter().map(port).collect::<Vec<_>>().join(","),
    );
    let peer = |peer: &PolicyPeer| match (&peer.cidr, &peer.app, &peer.network) {
        (Some(cidr), ..) => cidr.clone(),
        (_, Some(app), _) => format!("app:{app}"),
        (.., network) => format!("network:{}", network.as_deref().unwrap_or_default()),
    };
    let peers = rule.peers().map_or_else(String::new, |peers| {
        format!("@{}", peers.iter().map(peer).collect::<Vec<_>>().join(","))
    });
    format!("{direction} {ports}{peers}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_shown_as_they_are_written() {
        for written in [
            "all",
            "tcp",
            "tcp/443,udp/53",
            "icmp",
            "all@10.0.0.0/8",
            "tcp/5432@app:db,network:default,2001:db8::/32",
        ] {
            for direction in [PolicyDirection::Egress, PolicyDirection::Ingress] {
                let shown = text(&rule(direction, written).unwrap());
                assert_eq!(shown.split_once(' ').unwrap().1, written);
            }
        }
        for (wrong, why) in [
            ("", "ports are missing"),
            ("443", "'443' is not a protocol"),
            ("tcp/", "'' is not a port"),
            ("tcp/0", "'0' is not a port"),
            ("tcp/70000", "'70000' is not a port, use 1 to 65535"),
            ("icmp/8", "icmp has no ports"),
            ("tcp@", "is missing after '@'"),
            ("tcp@app:", "the name of an app is missing"),
            ("all,tcp", "all stands alone"),
            ("@app:db", "ports are missing"),
        ] {
            let error = rule(PolicyDirection::Egress, wrong).unwrap_err().to_string();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }

    #[test]
    fn flags_replace_the_rules_of_their_direction() {
        let rules = vec![
            rule(PolicyDirection::Egress, "tcp/80").unwrap(),
            rule(PolicyDirection::Ingress, "tcp/22").unwrap(),
        ];
        let flags = |egress: &[&str], ingress: &[&str]| {
            let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            RuleFlags { egress: owned(egress), ingress: owned(ingress), dns: None }
        };
        let shown = |flags: RuleFlags| {
            flags.apply(rules.clone()).unwrap().0.iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(shown(flags(&[], &[])), ["egress tcp/80", "ingress tcp/22"]);
        let changed = shown(flags(&["all", "icmp"], &[]));
        assert_eq!(changed, ["ingress tcp/22", "egress all", "egress icmp"]);
    }
}
