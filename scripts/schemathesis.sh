#!/usr/bin/env bash
# Sends what schemathesis makes up from the OpenAPI document to the real router over a scripted worker. No answer may be
# a server error, or one that the document does not promise. Always the same requests; CADDIS_SOAK=1 sends more.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly version=4.32.5
readonly environment=$PWD/target/schemathesis

if [[ ! -x $environment/bin/schemathesis || $(cat "$environment/version" 2>/dev/null) != "$version" ]]; then
    rm -rf "$environment"
    python3 -m venv "$environment" || { echo "missing; as root: apt-get install python3-venv" >&2; exit 1; }
    "$environment/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$version" || {
        echo "schemathesis can't be installed; try: $environment/bin/pip install schemathesis==$version" >&2
        exit 1
    }
    echo "$version" >"$environment/version"
fi

# As the tests build it, so that nothing is built twice.
cargo build --quiet --workspace --example serve-scripted
# Ends with its standard input, and so with this script, however that ends.
coproc server { exec target/debug/examples/serve-scripted; }
readonly input=${server[1]} process=$server_PID
trap 'exec {input}>&-; wait "$process"' EXIT
read -r url CADDIS_TOKEN CADDIS_MACHINE CADDIS_SPARE_MACHINE <&"${server[0]}"
export CADDIS_TOKEN CADDIS_MACHINE CADDIS_SPARE_MACHINE

examples=20
[[ -z ${CADDIS_SOAK:-} ]] || examples=500
# Examples that are kept between runs have no place among the sources.
export HYPOTHESIS_STORAGE_DIRECTORY=$PWD/target/hypothesis
no_proxy=127.0.0.1 "$environment/bin/schemathesis" --config-file scripts/schemathesis.toml \
    run "$url/v1/openapi.json" --no-color --generation-deterministic --max-examples "$examples"
