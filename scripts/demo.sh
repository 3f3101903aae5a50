#!/usr/bin/env bash
# The main job on this host, from an image in a registry to a machine that is gone, with the real command line.
# Ends with code 0 only when each step showed what it should, and leaves nothing behind. What others do on the host
# meanwhile is not its affair. `make demo` has built what it needs.
#   KEEP=1             leaves registry, server and machine up, and says how to reach and how to end them
#   ACCEL=emulation    (default) or kvm; set by make
set -euo pipefail
cd "$(dirname "$0")/.."
[[ $(id -u) -eq 0 ]] || { echo "VMs and packet filters need root: sudo make demo" >&2; exit 1; }

readonly caddis=$PWD/target/release/caddis test_image=$PWD/target/release/test-image
for program in "$caddis" "$test_image"; do
    [[ -x $program ]] || { echo "there is no $program: 'make demo' builds it" >&2; exit 1; }
done
readonly app=demo
work=$(mktemp -d "${TMPDIR:-/tmp}/caddis-demo-XXXXXX")
# VMs run as other users, who must be able to pass.
chmod 755 "$work"
readonly work data=$work/data
server='' registry='' number='' cgroups=()

# ── showing ──────────────────────────────────────────────────────────────────────────────────────────────────────────
seconds() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(seconds)" 'BEGIN { printf "%.2f s", b - a }'; }
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() {
    printf '\nFAILED: %s\n' "$*" >&2
    exit 1
}

# Runs a command, shows it, its output and its time; the output stays in $output.
show() {
    local start
    start=$(seconds)
    printf '$ %s\n' "${*/#"${caddis%/*}/"/}"
    output=$("$@" 2>&1) || { printf '%s\n' "$output"; fail "$* ended with code $?"; }
    printf '%s(%s)\n' "${output:+$output$'\n'}" "$(since "$start")"
}
expect() { [[ $output == *"$1"* ]] || fail "the output does not say \"$1\""; }

# ── what it has made ─────────────────────────────────────────────────────────────────────────────────────────────────
readonly networks=/run/caddis/networks
# Ids of the processes that have the demo's directory among their arguments: server, registry and VMs.
processes() {
    local directory
    for directory in /proc/[0-9]*; do
        [[ ${directory#/proc/} -ne $$ ]] && tr '\0' ' ' 2>/dev/null <"$directory/cmdline" | grep --quiet --fixed-strings "$work" \
            && echo "${directory#/proc/}"
    done
    true
}

# Notes what bears no name of the demo: the number of its network, and the control groups of its VMs.
note_traces() {
    local process
    number=$(grep --files-with-matches --line-regexp --fixed-strings "$data" "$networks"/[0-9]* 2>/dev/null | grep --extended-regexp '/[0-9]+$') || true
    number=${number##*/}
    for process in $(processes); do
        mapfile -t -O "${#cgroups[@]}" cgroups < <(sed --quiet 's|^[^:]*:[^:]*:\(.*/slot-[0-9]*\)$|\1|p' "/proc/$process/cgroup" 2>/dev/null)
    done
}

# Prints what is left of it, a line each.
traces() {
    local process group directory
    for process in $(processes); do
        echo "process $(tr '\0' ' ' 2>/dev/null <"/proc/$process/cmdline")"
    done
    awk -v work="$work" 'index($5, work) == 1 { print "mount", $5 }' /proc/self/mountinfo
    # Another installation may have the number by now.
    if [[ -n $number && ( ! -e $networks/$number || $(<"$networks/$number") == "$data" ) ]]; then
        ip -oneline link show "caddis-$number" 2>/dev/null | sed 's/^/link /'
        nft list tables | grep --word-regexp "caddis-$number" | sed 's/^/filter /'
        { ip rule; ip -6 rule; } | grep --word-regexp "lookup $((0xcadd00 + number))" | sed 's/^/rule /'
        find "$networks/$number" "$networks/$number.net" 2>/dev/null | sed 's/^/file /'
    fi
    for group in "${cgroups[@]}"; do
        while IFS= read -r directory; do
            # One with processes is another's by now: the demo's are told above.
            [[ -n $(cat "$directory/cgroup.procs" 2>/dev/null) ]] || echo "cgroup $directory"
        done < <(find /sys/fs/cgroup -type d -path "*$group" 2>/dev/null)
    done
}

# ── ending ───────────────────────────────────────────────────────────────────────────────────────────────────────────
end() {
    local code=$?
    trap - EXIT INT TERM
    set +e
    if [[ $code -ne 0 && -s $work/server.log ]]; then
        printf '\n---- end of the log of the server ----\n'
        tail -n 50 "$work/server.log"
    fi
    note_traces
    if [[ -n $server ]]; then
        # Stops the guests, so that the server takes all of them along.
        "$caddis" host drain --data-dir "$data" >/dev/null 2>>"$work/server.log" || code=1
        kill "$server" 2>/dev/null
        wait "$server" || { echo "caddis serve did not end well: code $?" >&2; code=1; }
        "$caddis" host clean --data-dir "$data" >/dev/null || code=1
    fi
    if [[ -n $registry ]]; then
        kill "$registry" 2>/dev/null
        wait "$registry" 2>/dev/null
    fi
    rm -rf "$work"
    left=$(traces | sort --unique)
    if [[ -n $left ]]; then
        printf '\nFAILED: left behind:\n%s\n' "$left" >&2
        code=1
    fi
    [[ $code -eq 0 ]] && say "All as it should be, and nothing left behind"
    exit "$code"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Waits until a line of a growing file fits a pattern; its first group is then in BASH_REMATCH[1].
wait_for_line() {
    local file=$1 process=$2 pattern=$3 line lines follower found=1
    exec {lines}< <(exec tail --lines=+1 --follow --pid="$process" "$file")
    follower=$!
    while IFS= read -r -t 60 -u "$lines" line; do
        if [[ $line =~ $pattern ]]; then
            found=0
            break
        fi
    done
    exec {lines}<&-
    kill "$follower" 2>/dev/null || true
    return "$found"
}

# ── a registry with one image, made on the spot ──────────────────────────────────────────────────────────────────────
say "An image in a registry on this host"
show "$test_image" web
layout=$("$test_image" web)
printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: "127.0.0.1:0"}\n' \
    "$work/registry" >"$work/registry.yml"
: >"$work/registry.log"
OTEL_TRACES_EXPORTER=none docker-registry serve "$work/registry.yml" >/dev/null 2>"$work/registry.log" </dev/null &
registry=$!
wait_for_line "$work/registry.log" "$registry" 'listening on (127\.0\.0\.1:[0-9]+)' \
    || fail "docker-registry did not start: $(cat "$work/registry.log")"
readonly registry_address=${BASH_REMATCH[1]}
readonly image=$registry_address/web:1
show skopeo --insecure-policy copy --quiet --dest-tls-verify=false "oci:$layout" "docker://$image"

# ── a server ─────────────────────────────────────────────────────────────────────────────────────────────────────────
say "A server on a temporary data directory"
: >"$work/server.log"
start=$(seconds)
"$caddis" serve --data-dir "$data" --listen 127.0.0.1:0 --region local --accelerator "$CADDIS_TEST_ACCELERATOR" \
    --kernel "$CADDIS_KERNEL" --insecure-registry "$registry_address" --log-format text >"$work/server.log" 2>&1 </dev/null &
server=$!
wait_for_line "$work/server.log" "$server" 'listening.*(127\.0\.0\.1:[0-9]+)' || fail "caddis serve did not start"
export CADDIS_API_URL=http://${BASH_REMATCH[1]}
CADDIS_API_TOKEN=$(<"$data/root.token")
export CADDIS_API_TOKEN NO_COLOR=1
echo "caddis serve is ready at $CADDIS_API_URL ($(since "$start"))"

# ── the main job ─────────────────────────────────────────────────────────────────────────────────────────────────────
say "A machine from that image"
show "$caddis" apps create "$app"
expect "New app created: $app"
show "$caddis" machine run "$image" --app "$app" --name web
expect "Success! A Machine has been successfully launched in app $app"
[[ $output =~ Machine\ ID:\ ([0-9a-f]{14}) ]] || fail "no machine id"
readonly machine=${BASH_REMATCH[1]}
show "$caddis" machine list --app "$app"
expect "$machine"

say "An HTTP answer from inside the VM"
address=$("$caddis" machine list --app "$app" --json | jq --raw-output '.[0].private_ipv4')
# The VM runs; when its program listens is known only to itself.
page=(curl --silent --show-error --noproxy '*' --retry 50 --retry-delay 1 --retry-connrefused --max-time 60 "http://$address/")
show "${page[@]}"
expect "hello from a machine"

say "What the program wrote, and a program beside it"
show "$caddis" logs --app "$app" --no-tail
expect "$machine"
show "$caddis" machine exec "$machine" "uname -sr" --app "$app"
expect "Linux"

say "Stop, and start again"
show "$caddis" machine stop "$machine" --app "$app" --wait-timeout 60s
expect "$machine has been successfully stopped"
show "$caddis" machine start "$machine" --app "$app"
expect "$machine has been started"
show "$caddis" machine wait "$machine" --app "$app" --state started
show "${page[@]}"
expect "hello from a machine"
show "$caddis" machine status "$machine" --app "$app"
expect "State: started"
expect "requested_stop=true"

if [[ -n ${KEEP:-} ]]; then
    trap - EXIT INT TERM
    disown -a
    say "All is left up, as asked for"
    cat <<END
To reach it:
  export CADDIS_API_URL=$CADDIS_API_URL CADDIS_API_TOKEN=\$(cat $data/root.token)
  $caddis machine list --app $app
  curl http://$address/
  $caddis machine run $image --app $app
To end it:
  $caddis host drain --data-dir $data; kill $server $registry
  tail --follow /dev/null --pid $server; $caddis host clean --data-dir $data; rm -r $work
END
    exit 0
fi

say "And away"
show "$caddis" machine destroy "$machine" --app "$app" --force
expect "$machine has been destroyed"
show "$caddis" apps destroy "$app" --yes
[[ $("$caddis" machine list --app "$app" --json 2>&1) == *"Could not find App"* ]] || fail "the app is still there"
