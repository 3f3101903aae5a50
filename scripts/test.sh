#!/usr/bin/env bash
# Runs the whole test suite, then looks for what it left behind on the host. The runner's summary comes last.
set -euo pipefail
cd "$(dirname "$0")/.."
[[ $(id -u) -eq 0 ]] || { echo "the end-to-end tests need root: sudo make test" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The images that take long are built before any test waits for them.
images=(debian kernel-user systemd postgres)
if [[ -n ${CADDIS_SOAK:-} ]]; then
    scripts/setup.sh podman crun catatonit
    images+=(services)
fi
for image in "${images[@]}"; do
    target/debug/test-image "$image" >/dev/null
done

scripts/traces.sh >"$work/before"
code=0
cargo test --workspace --no-fail-fast 2>&1 | tee "$work/log" || code=$?
if [[ -n ${CADDIS_SOAK:-} ]]; then
    # What anybody may send is read from more words than anybody waits for otherwise.
    PROPTEST_CASES=100000 cargo test --workspace --lib --bins -- users:: duration:: validate:: 2>&1 | tee -a "$work/log" || code=$?
fi
# In these time stands still but for what they add, so they are built apart.
cargo test --package caddis-wireguard --lib --features moved-clock 2>&1 | tee -a "$work/log" || code=$?
scripts/schemathesis.sh 2>&1 || {
    code=1
    echo "error: scripts/schemathesis.sh failed" >>"$work/log"
}
scripts/test-deb.sh 2>&1 | tee -a "$work/log" || code=$?
scripts/traces.sh >"$work/after"
left=$(comm -13 "$work/before" "$work/after")
if [[ -n $left ]]; then
    printf '\nleft behind by the tests:\n%s\n' "$left"
    code=1
fi

printf '\n'
grep -E '^(test .* FAILED|error: )' "$work/log" || true
awk -v code="$code" '
    /^test result:/ { passed += $4; failed += $6; ignored += $8 }
    END {
        verdict = code ? "FAILED" : "ok"
        printf "test result: %s. %d passed; %d failed; %d ignored; in all\n", verdict, passed, failed, ignored
    }' "$work/log"
exit "$code"
