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
    let invalid = || {
        CliError::with_hint(
            format!("invalid rule '{text}'"),
            "Write it like tcp/443, tcp/443,udp/53@app:db or all@10.0.0.0/8,network:default.",
        )
    };
    let (ports, peers) =
        text.split_once('@').map_or((text, None), |(ports, peers)| (ports, Some(peers)));
    let ports = match ports {
        "all" => None,
        ports => Some(ports.split(',').map(port).collect::<Option<_>>().ok_or_else(invalid)?),
    };
    let peers = peers.map(|peers| peers.split(',').map(peer).collect::<Option<Vec<_>>>());
    let peers = peers.map(|peers| peers.ok_or_else(invalid)).transpose()?;
    let (to, from) = match direction {
        PolicyDirection::Egress => (peers, None),
        PolicyDirection::Ingress => (None, peers),
    };
    Ok(PolicyRule { action: PolicyAction::Allow, direction, ports, to, from })
}

fn port(text: &str) -> Option<PolicyPort> {
    let (protocol, port) =
        text.split_once('/').map_or((text, None), |(protocol, port)| (protocol, Some(port)));
    let all = [PolicyProtocol::Tcp, PolicyProtocol::Udp, PolicyProtocol::Icmp];
    let protocol = all.into_iter().find(|known| known.as_str() == protocol)?;
    let port = match port {
        Some(port) => Some(port.parse().ok().filter(|port| *port > 0)?),
        None => None,
    };
    (port.is_none() || protocol != PolicyProtocol::Icmp).then_some(PolicyPort { protocol, port })
}

/// What is an address is checked by the server.
fn peer(text: &str) -> Option<PolicyPeer> {
    let nobody = PolicyPeer::default();
    if text.is_empty() {
        return None;
    }
    Some(if let Some(app) = text.strip_prefix("app:") {
        PolicyPeer { app: Some(app.to_owned()), ..nobody }
    } else if let Some(network) = text.strip_prefix("network:") {
        PolicyPeer { network: Some(network.to_owned()), ..nobody }
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
        for wrong in
            ["", "443", "tcp/", "tcp/0", "tcp/70000", "icmp/8", "tcp@", "all,tcp", "@app:db"]
        {
            assert!(rule(PolicyDirection::Egress, wrong).is_err(), "{wrong}");
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
