#!/usr/bin/env bash
# Has systemd check the units in packaging/, as if the binary were installed.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp packaging/caddis.slice "$work"
sed 's#/usr/local/bin/caddis#/bin/true#g' packaging/caddis.service >"$work/caddis.service"
systemd-analyze verify "$work/caddis.service" "$work/caddis.slice"
