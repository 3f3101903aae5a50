//! Commands of the reference that are not here: what stands in for them, instead of the name that
//! is spelt most like them.

/// Names, what is said of them, and what to do.
const COMMANDS: &[(&[&str], &str, &str)] = &[
    (
        &["secrets", "secret"],
        "secrets are not available yet",
        "'caddis machine run' and 'update' set variables with --env and write files with \
         --file-local.",
    ),
    (
        &["certs", "certificates"],
        "certificates are not available yet",
        "Services with the handler tls have self-signed ones.",
    ),
    (
        &["proxy", "open"],
        "there is no command of that name",
        "Machines answer at their private addresses, on their host ('caddis machine status'); \
         their services at the app's ('caddis ips list').",
    ),
    (
        &["tokens", "token"],
        "further tokens are not available yet",
        "'caddis auth token' prints the one in use.",
    ),
    (
        &["deploy", "launch", "releases", "release"],
        "deploying from fly.toml is not available",
        "'caddis machine run' creates a machine, 'caddis machine update --image' changes its \
         image.",
    ),
    (
        &["scale", "autoscale"],
        "scaling of whole apps is not available",
        "'caddis machine clone' adds machines, 'caddis machine update --vm-size' resizes them.",
    ),
    (
        &["agent", "api-proxy", "dig", "ping", "issue", "establish"],
        "there is no agent, and none is needed",
        "'caddis ssh console' and 'caddis sftp' go over the API; 'caddis wireguard create' lets a \
         computer into a private network.",
    ),
    (
        &["console"],
        "there is no command 'console'",
        "'caddis ssh console' opens a shell in a machine, 'caddis machine run --shell' in a fresh \
         one.",
    ),
    (
        &["postgres", "pg", "mpg", "redis", "mysql", "storage", "extensions", "ext", "consul"],
        "managed services are not available",
        "Run them in machines: 'caddis machine run postgres:17 -e POSTGRES_PASSWORD=…'.",
    ),
    (
        &["resume", "wake"],
        "there is no command of that name",
        "'caddis machine start' resumes a suspended machine.",
    ),
    (
        &["regions", "region"],
        "there is no command of that name",
        "'caddis platform regions' lists the regions.",
    ),
    (
        &["ps", "vm"],
        "there is no command of that name",
        "'caddis machine list' shows machines, 'caddis machine exec ID ps' the processes of one.",
    ),
    (
        &["dashboard", "dash"],
        "there is no dashboard yet",
        "'caddis status --watch' and 'caddis machine top' show changes.",
    ),
];

/// The error for a word that is no command here, when it is one of the reference.
pub fn advice(word: &str) -> Option<String> {
    let (_, what, hint) = COMMANDS.iter().find(|(names, ..)| names.contains(&word))?;
    Some(format!("Error: {what}\n{hint}\n"))
}
