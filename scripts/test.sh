#!/usr/bin/env bash
# Runs the whole test suite, then looks for what it left behind on the host. The runner's summary comes last.
set -euo pipefail
cd "$(dirname "$0")/.."
[[ $(id -u) -eq 0 ]] || { echo "the end-to-end tests need root: sudo make test" >&2; exit 1; }

# What a server makes on a host, one per line; the same before and after.
traces() {
    # Other servers of this host, if any, are none of ours: they are there before, too.
    ps -e -o comm= -o args= | awk '$1 ~ /^(qemu-system|caddis|docker-registry)/ { print "process", $0 }'
    ip -oneline link | awk '{ sub(/@.*/, "", $2); print "link", $2 }'
    nft list tables | sed 's/^/filter /'
    awk '{ print "mount", $5 }' /proc/self/mountinfo
    find /sys/fs/cgroup -type d -path '*caddis*' | sed 's/^/cgroup /'
    find "${TMPDIR:-/tmp}" -maxdepth 1 -name 'caddis-*' | sed 's/^/file /'
    if [[ -d /run/caddis ]]; then
        local lock
        while IFS= read -r lock; do
            flock --nonblock "$lock" true || echo "held $lock"
        done < <(find /run/caddis -type f)
    fi
}
sorted_traces() { traces | sort -u; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The one image that takes long is built before any test waits for it.
cargo run --quiet --package caddis-testkit --bin test-image -- debian >/dev/null

sorted_traces >"$work/before"
code=0
cargo test --workspace --no-fail-fast 2>&1 | tee "$work/log" || code=$?
sorted_traces >"$work/after"
if ! left=$(comm -13 "$work/before" "$work/after") || [[ -n $left ]]; then
    printf '\nleft behind by the tests:\n%s\n' "$left"
    code=1
fi

printf '\n'
grep -E '^(test .* FAILED|error: )' "$work/log" || true
awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
     END { printf "test result: %s. %d passed; %d failed; %d ignored; in all\n", (failed ? "FAILED" : "ok"), passed, failed, ignored }' "$work/log"
exit "$code"
