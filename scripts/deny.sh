#!/usr/bin/env bash
# Checks dependencies by deny.toml: `scripts/deny.sh bans licenses sources`, `scripts/deny.sh advisories`. Builds the checker
# where it is not there yet, which takes two minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.20.2
root=${CARGO_TARGET_DIR:-target}/deny
deny=$root/bin/cargo-deny
if [ "$("$deny" --version 2>/dev/null)" != "cargo-deny $version" ]; then
    cargo install --quiet --locked --debug --root "$root" --target-dir "$root/build" "cargo-deny@$version"
    rm -rf "$root/build"
fi
"$deny" check "$@"
