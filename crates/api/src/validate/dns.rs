//! What is written into `hosts`, `hostname` and `resolv.conf` of a machine.

use std::net::IpAddr;

use crate::{
    ApiError,
    config::{Dns, DnsOption},
};

/// Longest host name: what Linux takes (sethostname(2)).
const MAX_HOSTNAME: usize = 64;
/// Longest domain name, and longest part of one (RFC 1035).
const MAX_DOMAIN: usize = 253;
const MAX_LABEL: usize = 63;
/// Most entries of each list; resolvers look at fewer.
const MAX_ENTRIES: usize = 32;

pub(super) fn check(dns: Option<&Dns>) -> Result<(), ApiError> {
    let Some(dns) = dns else { return Ok(()) };
    let refuse = |field: String, reason: &str| {
        Err(ApiError::invalid(format!("invalid config.dns.{field}, {reason}")))
    };
    let name = dns.hostname.as_deref().unwrap_or_default();
    if !name.is_empty() && (name.len() > MAX_HOSTNAME || !is_domain(name)) {
        let reason = "a host name has letters, digits and hyphens, in parts with dots between, and \
                      at most 64 characters";
        return refuse("hostname".to_owned(), reason);
    }
    let reason =
        "a domain name has letters, digits and hyphens, in parts of at most 63 with dots between";
    let name = dns.hostname_fqdn.as_deref().unwrap_or_default();
    if !name.is_empty() && !is_domain(name.strip_suffix('.').unwrap_or(name)) {
        return refuse("hostname_fqdn".to_owned(), reason);
    }
    let counts = [
        ("nameservers", dns.nameservers.as_ref().map_or(0, Vec::len)),
        ("searches", dns.searches.as_ref().map_or(0, Vec::len)),
        ("options", dns.options.as_ref().map_or(0, Vec::len)),
    ];
    if let Some((field, _)) = counts.into_iter().find(|(_, count)| *count > MAX_ENTRIES) {
        return refuse(field.to_owned(), &format!("at most {MAX_ENTRIES} are allowed"));
    }
    for (index, server) in dns.nameservers.iter().flatten().enumerate() {
        if server.parse::<IpAddr>().is_err() {
            return refuse(
                format!("nameservers[{index}]"),
                "a name server is an IPv4 or IPv6 address",
            );
        }
    }
    for (index, domain) in dns.searches.iter().flatten().enumerate() {
        if domain != "." && !is_domain(domain.strip_suffix('.').unwrap_or(domain)) {
            return refuse(format!("searches[{index}]"), reason);
        }
    }
    for (index, DnsOption { name, value }) in dns.options.iter().flatten().enumerate() {
        let is_word = |text: &str| {
            text.len() <= 64
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_:.".contains(&byte))
        };
        if name.is_empty() || !is_word(name) || !is_word(value.as_deref().unwrap_or_default()) {
            let reason = "an option of resolv.conf is a word, such as ndots with the value 2";
            return refuse(format!("options[{index}]"), reason);
        }
    }
    Ok(())
}

/// With underscores, which names of services have.
fn is_domain(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= MAX_DOMAIN && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn checked(dns: Value) -> Result<(), ApiError> {
        check(Some(&serde_json::from_value(dns).unwrap()))
    }

    #[test]
    fn what_files_and_the_kernel_can_not_hold_is_refused_and_named() {
        let long = "a".repeat(65);
        for (dns, field) in [
            (json!({ "hostname": long }), "hostname"),
            (json!({ "hostname": "a b" }), "hostname"),
            (json!({ "hostname": "a\n1.2.3.4 bank" }), "hostname"),
            (json!({ "hostname": "-a" }), "hostname"),
            (json!({ "hostname": "a..b" }), "hostname"),
            (json!({ "hostname": "a\0" }), "hostname"),
            (json!({ "hostname_fqdn": "a.\nb" }), "hostname_fqdn"),
            (json!({ "hostname_fqdn": format!("{}.b", "a".repeat(64)) }), "hostname_fqdn"),
            (json!({ "hostname_fqdn": "a.".repeat(128) }), "hostname_fqdn"),
            (json!({ "nameservers": ["1.1.1.1", "x"] }), "nameservers[1]"),
            (json!({ "nameservers": ["1.1.1.1\nsearch evil"] }), "nameservers[0]"),
            (json!({ "nameservers": [""] }), "nameservers[0]"),
            (json!({ "nameservers": vec!["1.1.1.1"; 33] }), "nameservers, at most 32"),
            (json!({ "searches": ["ok.example", "b c"] }), "searches[1]"),
            (json!({ "searches": ["\r"] }), "searches[0]"),
            (
                json!({ "options": [{ "name": "ndots", "value": "2\nnameserver 6.6.6.6" }] }),
                "options[0]",
            ),
            (json!({ "options": [{ "name": "" }] }), "options[0]"),
        ] {
            let error = checked(dns.clone()).unwrap_err();
            assert!(
                error.message.starts_with(&format!("invalid config.dns.{field}")),
                "{dns}: {error}"
            );
        }
    }

    #[test]
    fn what_is_usual_is_taken() {
        for dns in [
            json!({}),
            json!({ "hostname": "", "hostname_fqdn": "" }),
            json!({ "hostname": "a".repeat(63), "hostname_fqdn": "web.example.com." }),
            json!({ "hostname": "web-1.example" }),
            json!({
                "nameservers": ["fdaa::3", "8.8.8.8"],
                "searches": [".", "internal", "_srv.example.com."],
            }),
            json!({
                "options": [
                    { "name": "edns0" }, { "name": "ndots", "value": "2" }, { "name": "ndots:5" },
                ],
            }),
        ] {
            checked(dns.clone()).unwrap_or_else(|error| panic!("{dns}: {error}"));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_line_is_written_that_was_not_meant(text in "[a-z.\\-\n\r \t#;:0-9]{0,12}|.{0,12}") {
            let dns = json!({ "hostname": text, "hostname_fqdn": text, "searches": [text],
                "options": [{ "name": "a", "value": text }] });
            if checked(dns).is_ok() {
                let separates = |c: char| c.is_whitespace() || c.is_control();
                proptest::prop_assert!(!text.contains(separates));
            }
        }
    }
}
