//! Network policies.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    ApiError, AppName, MachineId, PolicyId,
    policies::{
        PolicyDirection, PolicyPeer, PolicyPort, PolicyProtocol, PolicyRule, PolicySelector,
        PutPolicyRequest,
    },
};

/// Longest name of a policy, characters.
pub const MAX_POLICY_NAME: usize = 63;
/// Most rules of a policy.
pub const MAX_POLICY_RULES: usize = 50;
/// Most ports, and most peers, of a rule; most machines and values of a selector.
pub const MAX_POLICY_ITEMS: usize = 100;

impl PutPolicyRequest {
    /// Checks what can be checked without knowing what there is.
    ///
    /// # Errors
    /// 400 naming the field.
    pub fn check(&self) -> Result<(), ApiError> {
        if let Some(id) = &self.id {
            check_policy_id(id)?;
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let is_name = (1..=MAX_POLICY_NAME).contains(&self.name.len());
        if !is_name || !self.name.bytes().all(fits) {
            return Err(ApiError::invalid(format!(
                "invalid name, use 1 to {MAX_POLICY_NAME} letters, digits, '-', '_' and '.'"
            )));
        }
        let missing =
            || ApiError::invalid("invalid selector, it is required: use all, machines or metadata");
        check_selector(self.selector.as_ref().ok_or_else(missing)?)?;
        if !(1..=MAX_POLICY_RULES).contains(&self.rules.len()) {
            return Err(ApiError::invalid(format!(
                "invalid rules, there must be 1 to {MAX_POLICY_RULES}"
            )));
        }
        for (index, rule) in self.rules.iter().enumerate() {
            check_rule(&format!("rules[{index}]"), rule)?;
        }
        Ok(())
    }
}

/// Checks the form of a policy's id.
///
/// # Errors
/// 400.
pub fn check_policy_id(id: &str) -> Result<PolicyId, ApiError> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_valid = id
        .strip_prefix("np_")
        .is_some_and(|rest| (1..=40).contains(&rest.len()) && rest.bytes().all(fits));
    if is_valid {
        return Ok(PolicyId::from_trusted(id));
    }
    Err(ApiError::invalid(format!(
        "invalid id, '{}' is not the id of a network policy: it is 'np_' and letters and digits",
        shown(id)
    )))
}

fn check_selector(selector: &PolicySelector) -> Result<(), ApiError> {
    let PolicySelector { all, machines, metadata } = selector;
    if let Some(machines) = machines {
        check_count("selector.machines", machines.len())?;
        for machine in machines {
            let id = machine.id.as_str();
            id.parse::<MachineId>().map_err(|_| {
                ApiError::invalid(format!(
                    "invalid selector.machines, '{}' is not the id of a machine",
                    shown(id)
                ))
            })?;
        }
    }
    if let Some(metadata) = metadata {
        check_count("selector.metadata", metadata.len())?;
    }
    if *all != Some(true) && machines.is_none() && metadata.is_none() {
        return Err(ApiError::invalid(
            "invalid selector, it selects no machine: use \"all\": true, machines or metadata",
        ));
    }
    Ok(())
}

fn check_count(field: &str, count: usize) -> Result<(), ApiError> {
    match count {
        0 => Err(ApiError::invalid(format!(
            "invalid {field}, it is empty: leave it out where it is not to restrict anything"
        ))),
        1..=MAX_POLICY_ITEMS => Ok(()),
        _ => Err(ApiError::invalid(format!(
            "invalid {field}, cannot have more than {MAX_POLICY_ITEMS} items"
        ))),
    }
}

fn check_rule(place: &str, rule: &PolicyRule) -> Result<(), ApiError> {
    if let Some(ports) = &rule.ports {
        check_count(&format!("{place}.ports"), ports.len())?;
        for (index, port) in ports.iter().enumerate() {
            check_port(&format!("{place}.ports[{index}]"), port)?;
        }
    }
    let (own, other, is_other_given) = match rule.direction {
        PolicyDirection::Egress => ("to", "from", rule.from.is_some()),
        PolicyDirection::Ingress => ("from", "to", rule.to.is_some()),
    };
    if is_other_given {
        let direction = if own == "to" { "egress" } else { "ingress" };
        return Err(ApiError::invalid(format!(
            "invalid {place}.{other}, a rule of {direction} has '{own}'"
        )));
    }
    let Some(peers) = rule.peers() else { return Ok(()) };
    check_count(&format!("{place}.{own}"), peers.len())?;
    for (index, peer) in peers.iter().enumerate() {
        check_peer(&format!("{place}.{own}[{index}]"), peer)?;
    }
    Ok(())
}

fn check_port(place: &str, port: &PolicyPort) -> Result<(), ApiError> {
    match (port.protocol, port.port) {
        (PolicyProtocol::Icmp, Some(_)) => {
            Err(ApiError::invalid(format!("invalid {place}.port, icmp has no ports")))
        }
        (_, Some(0)) => {
            Err(ApiError::invalid(format!("invalid {place}.port, must be between 1 and 65535")))
        }
        _ => Ok(()),
    }
}

fn check_peer(place: &str, peer: &PolicyPeer) -> Result<(), ApiError> {
    let PolicyPeer { cidr, app, network } = peer;
    match (cidr, app, network) {
        (Some(cidr), None, None) => check_cidr(place, cidr),
        (None, Some(app), None) => {
            let named = app.parse::<AppName>().map(drop);
            named.map_err(|error| ApiError::invalid(format!("invalid {place}.app, {error}")))
        }
        (None, None, Some(network)) if !network.is_empty() => Ok(()),
        _ => Err(ApiError::invalid(format!("invalid {place}, give one of cidr, app and network"))),
    }
}

/// An address, or a range as a filter of packets has it: no bits set beyond its length.
fn check_cidr(place: &str, cidr: &str) -> Result<(), ApiError> {
    let wrong =
        |what: &str| ApiError::invalid(format!("invalid {place}.cidr, '{}' {what}", shown(cidr)));
    let range = match cidr.split_once('/') {
        Some((_, length)) if length.len() > 1 && length.starts_with('0') => None,
        Some(_) => cidr.parse::<IpNet>().ok(),
        None => cidr.parse::<IpAddr>().ok().map(IpNet::from),
    };
    let range = range
        .ok_or_else(|| wrong("is not an address or range like 10.0.0.0/8 or 2001:db8::/32"))?;
    if let IpAddr::V6(address) = range.addr()
        && address.to_ipv4_mapped().is_some()
    {
        return Err(wrong("is an IPv4 address written as IPv6: write it as IPv4"));
    }
    if range.trunc() != range {
        let (address, whole) = (range.addr(), range.trunc());
        return Err(wrong(&format!("is within a range: write {whole}, or {address} alone")));
    }
    Ok(())
}

fn shown(text: &str) -> String {
    text.escape_debug().take(100).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn policy(changes: &Value) -> Result<(), String> {
        let mut body = json!({
            "name": "web", "selector": { "all": true },
            "rules": [{ "action": "allow", "direction": "egress" }]
        });
        for (key, value) in changes.as_object().unwrap() {
            body[key] = value.clone();
        }
        let read: PutPolicyRequest = serde_json::from_value(body).map_err(|e| e.to_string())?;
        read.check().map_err(|error| error.message)
    }

    fn rule(fields: &Value) -> Result<(), String> {
        let mut rule = json!({ "action": "allow", "direction": "egress" });
        for (key, value) in fields.as_object().unwrap() {
            rule[key] = value.clone();
        }
        policy(&json!({ "rules": [rule] }))
    }

    #[test]
    fn policies_as_the_reference_has_them_are_taken() {
        policy(&json!({})).unwrap();
        policy(&json!({ "id": "np_abc1", "name": "a-b_c.D9", "dns": "deny" })).unwrap();
        policy(&json!({ "selector": {
            "all": true, "machines": [{ "id": "3d8d413b29d089" }], "metadata": { "role": "web" }
        } }))
        .unwrap();
        rule(&json!({ "ports": [
            { "protocol": "tcp", "port": 443 }, { "protocol": "udp" }, { "protocol": "icmp" }
        ] }))
        .unwrap();
        rule(&json!({ "to": [{ "cidr": "10.0.0.0/8" }, { "cidr": "2001:db8::1" },
            { "app": "db" }, { "network": "default" }] }))
        .unwrap();
        rule(&json!({ "direction": "ingress", "from": [{ "app": "db" }], "ports": null })).unwrap();
    }

    #[test]
    fn what_is_wrong_with_a_policy_is_said_with_its_place() {
        for (changes, expected) in [
            (json!({ "name": "" }), "invalid name, use 1 to 63"),
            (json!({ "name": "a b" }), "invalid name, use 1 to 63"),
            (json!({ "id": "vol_1" }), "invalid id, 'vol_1' is not"),
            (json!({ "selector": null }), "invalid selector, it is required"),
            (json!({ "selector": {} }), "invalid selector, it selects no machine"),
            (json!({ "selector": { "all": false } }), "invalid selector, it selects no machine"),
            (json!({ "selector": { "machines": [] } }), "invalid selector.machines, it is empty"),
            (json!({ "selector": { "machines": [{ "id": "x" }] } }), "'x' is not the id of"),
            (json!({ "selector": { "apps": [] } }), "unknown field `apps`"),
            (json!({ "dsn": "deny" }), "unknown field `dsn`"),
            (json!({ "rules": [] }), "invalid rules, there must be 1 to 50"),
        ] {
            let error = policy(&changes).unwrap_err();
            assert!(error.contains(expected), "{changes}: {error}");
        }
        for (fields, expected) in [
            (json!({ "action": "deny" }), "expected `allow`"),
            (json!({ "direction": "in" }), "expected `ingress` or `egress`"),
            (json!({ "ports": [] }), "invalid rules[0].ports, it is empty"),
            (
                json!({ "ports": [{ "protocol": "tcp", "port": 0 }] }),
                "rules[0].ports[0].port, must",
            ),
            (json!({ "ports": [{ "protocol": "icmp", "port": 8 }] }), "icmp has no ports"),
            (json!({ "ports": [{ "protocol": "sctp" }] }), "unknown variant `sctp`"),
            (json!({ "to": [] }), "invalid rules[0].to, it is empty"),
            (json!({ "from": [{ "app": "db" }] }), "invalid rules[0].from, a rule of egress has"),
            (json!({ "to": [{}] }), "invalid rules[0].to[0], give one of"),
            (json!({ "to": [{ "app": "a", "network": "b" }] }), "give one of cidr, app"),
            (json!({ "to": [{ "cidr": "10.0.0.0/33" }] }), "'10.0.0.0/33' is not an address"),
            (json!({ "to": [{ "cidr": "10.0.0.0/+8" }] }), "is not an address"),
            (json!({ "to": [{ "cidr": "any" }] }), "'any' is not an address"),
            (json!({ "to": [{ "cidr": "10.0.0.0/08" }] }), "is not an address"),
            (json!({ "to": [{ "cidr": "10.0.0.1/8" }] }), "write 10.0.0.0/8, or 10.0.0.1 alone"),
            (json!({ "to": [{ "cidr": "::ffff:10.0.0.0/104" }] }), "write it as IPv4"),
            (json!({ "to": [{ "app": "A!" }] }), "invalid rules[0].to[0].app"),
            (json!({ "too": [] }), "unknown field `too`"),
        ] {
            let error = rule(&fields).unwrap_err();
            assert!(error.contains(expected), "{fields}: {error}");
        }
    }
}
