#!/usr/bin/env bash
# Measures what SPECIFICATION.md promises, on this host, and prints it as a table; target/bench/report.json has the same
# with every sample. Each row is a median with least and most. What is compared is measured interleaved, in one run.
#   RUNS=20   samples per row;  QUICK=1 takes 4
set -euo pipefail
cd "$(dirname "$0")/.."
[[ $(id -u) -eq 0 ]] || { echo "VMs need root: sudo make bench" >&2; exit 1; }

[[ ${QUICK:-} ]] && RUNS=${RUNS:-4}
readonly runs=${RUNS:-20} caddis=$PWD/target/release/caddis app=bench
work=$(mktemp -d "${TMPDIR:-/tmp}/caddis-bench-XXXXXX")
chmod 755 "$work"
readonly work data=$work/data
server='' rival=''
mkdir -p target/bench
: >"$work/samples"

end() {
    local code=$?
    trap - EXIT
    set +e
    [[ $code -ne 0 && -s $work/server.log ]] && tail -n 20 "$work/server.log" >&2
    if [[ -n $server ]]; then
        "$caddis" host drain --data-dir "$data" >/dev/null 2>&1
        kill "$server" 2>/dev/null
        wait "$server" 2>/dev/null
        "$caddis" host clean --data-dir "$data" >/dev/null 2>&1
    fi
    if [[ -n $rival ]]; then
        podman rm --all --force >/dev/null 2>&1
        kill "$rival" 2>/dev/null
        wait "$rival" 2>/dev/null
        rmdir --ignore-fail-on-non-empty /var/lib/cni
    fi
    rm -rf "$work"
    exit "$code"
}
trap end EXIT
trap 'exit 130' INT TERM

now() { date +%s%N; }
# Adds a sample: name, begin and end in nanoseconds.
sample() { printf '%s\t%s\n' "$1" "$((($3 - $2) / 1000))" >>"$work/samples"; }
api() { # method, path, body
    curl --silent --show-error --fail-with-body --noproxy '*' --max-time 120 --request "$1" \
        --header "Authorization: Bearer $token" ${3:+--data "$3"} "$url$2"
}
wait_for_line() {
    local line follower
    exec {lines}< <(exec tail --lines=+1 --follow --pid="$server" "$1")
    follower=$!
    while IFS= read -r -t 60 -u "$lines" line; do
        if [[ $line =~ $2 ]]; then kill "$follower" 2>/dev/null || true; return 0; fi
    done
    return 1
}
# Waits for the first line of log after a token; sets $log_token to where the next begins.
first_output() { # machine
    local page
    page=$(api GET "/api/v1/apps/$app/logs?instance=$1&next_token=$log_token&wait_seconds=60")
    log_token=$(jq -r .meta.next_token <<<"$page")
    [[ $(jq '.data | length' <<<"$page") -gt 0 ]] || { echo "no output from $1" >&2; exit 1; }
}
# Runs podman until its program's first line of output.
podman_line() {
    local line
    exec {attached}< <(podman "$@" 2>/dev/null)
    IFS= read -r -t 60 -u "$attached" line || { echo "no output from podman $*" >&2; exit 1; }
    exec {attached}<&-
}
drain_log() { # machine: to the end of what there is
    local page
    while page=$(api GET "/api/v1/apps/$app/logs?instance=$1&next_token=$log_token"); do
        log_token=$(jq -r .meta.next_token <<<"$page")
        [[ $(jq '.data | length' <<<"$page") -gt 0 ]] || break
    done
}

# What people would use instead, in mount and network namespaces of its own: so that its bridge and rules are gone with
# it, and, where both versions of cgroups are mounted, it does not see the one without controllers. The addresses it gives
# out are remembered there too.
mkdir -p /var/lib/cni
unshare --mount --net sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; mount -t tmpfs tmpfs /var/lib/cni
    ip link set lo up; exec sleep infinity' &
rival=$!
podman() {
    nsenter --target "$rival" --mount --net podman --root "$work/podman" --runroot "$work/podman-run" "$@"
}
readonly podman_flags=(--ulimit nofile=1024:1024 --ulimit nproc=1000:1000 --cgroups=disabled)

layout=$(target/release/test-image busybox)
: >"$work/server.log"
"$caddis" serve --data-dir "$data" --listen 127.0.0.1:0 --accelerator "$CADDIS_TEST_ACCELERATOR" \
    --kernel "$CADDIS_KERNEL" >"$work/server.log" 2>&1 </dev/null &
server=$!
wait_for_line "$work/server.log" 'listening on (127\.0\.0\.1:[0-9]+)' || { echo "caddis serve did not start" >&2; exit 1; }
readonly url=http://${BASH_REMATCH[1]}
token=$(<"$data/root.token")
export CADDIS_API_URL=$url CADDIS_API_TOKEN=$token
"$caddis" apps create "$app" >/dev/null
"$caddis" image import "oci:$layout" --name busybox >/dev/null 2>&1
config='{"image":"busybox","restart":{"policy":"no"},"init":{"exec":["/bin/sh","-c","echo ready; trap \"exit 0\" INT; while :; do sleep 1000 & wait; done"]}}'

# The same machine with a kernel argument of its own, for which there is no template.
cold_config=$(jq -c '.guest = {"kernel_args": ["caddis.cold=1"]}' <<<"$config")
program='echo ready; trap "exit 0" INT; while :; do sleep 1000 & wait; done'
podman_image=$(podman pull --quiet "oci:$layout")
podman create --name rival "${podman_flags[@]}" "$podman_image" /bin/sh -c "$program" >/dev/null
wait_for_line "$work/server.log" 'template ready' || { echo "there is no template" >&2; exit 1; }

echo "measuring, $runs runs each"
log_token=''
machine=$(api POST "/v1/apps/$app/machines" "{\"config\":$config}" | jq -r .id)
first_output "$machine"
api GET "/v1/apps/$app/machines/$machine/wait?state=started" >/dev/null
kernel=$(echo "$data"/boot/vmlinux-*)
initrd=$(echo "$data"/boot/initrd-*)
log_token=''
cold=$(api POST "/v1/apps/$app/machines" "{\"config\":$cold_config}" | jq -r .id)
first_output "$cold"
api GET "/v1/apps/$app/machines/$cold/wait?state=started" >/dev/null
accel=(-accel tcg,tb-size=64 -cpu max)
[[ $CADDIS_TEST_ACCELERATOR == kvm ]] && accel=(-accel kvm -cpu host)
khz=$(awk '/^cpu MHz/ { printf "%d", $4 * 1000; exit }' /proc/cpuinfo)
quiet="quiet cryptomgr.notests 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd random.trust_cpu=on \
no_timer_check lsm= audit=0 mitigations=off reboot=t panic=-1 tsc_early_khz=$khz tsc=reliable"

for ((run = 0; run < runs; run++)); do
    # Stop of a running machine, until a waiting client sees it.
    begin=$(now)
    api POST "/v1/apps/$app/machines/$machine/stop" '{}' >/dev/null
    api GET "/v1/apps/$app/machines/$machine/wait?state=stopped" >/dev/null
    sample stop "$begin" "$(now)"
    # Start of a stopped machine, until its program's first output.
    drain_log "$machine"
    begin=$(now)
    api POST "/v1/apps/$app/machines/$machine/start" >/dev/null
    first_output "$machine"
    sample start "$begin" "$(now)"
    [[ $(api GET "/v1/apps/$app/machines/$machine/wait?state=started" >/dev/null; api GET "/v1/apps/$app/machines/$machine" | jq -r .start_kind) == template ]] \
        || { echo "a start did not use the template" >&2; exit 1; }
    # The same as a cold boot.
    api POST "/v1/apps/$app/machines/$cold/stop" '{}' >/dev/null
    api GET "/v1/apps/$app/machines/$cold/wait?state=stopped" >/dev/null
    log_token=''
    drain_log "$cold"
    begin=$(now)
    api POST "/v1/apps/$app/machines/$cold/start" >/dev/null
    first_output "$cold"
    sample cold "$begin" "$(now)"
    # The same as a container with a network, attached to its output.
    begin=$(now)
    podman_line start --attach rival
    sample podman-start "$begin" "$(now)"
    podman kill --signal INT rival >/dev/null
    podman wait rival >/dev/null
    begin=$(now)
    podman_line run --rm --name "run$run" "${podman_flags[@]}" "$podman_image" /bin/sh -c "$program"
    sample podman-run "$begin" "$(now)"
    podman kill --signal INT "run$run" >/dev/null
    # The same kernel alone: from exec of QEMU to the panic for want of a first program, which ends it.
    begin=$(now)
    qemu-system-x86_64 -machine microvm,acpi=on,ioapic2=on "${accel[@]}" -m 256M -kernel "$kernel" -initrd "$initrd" \
        -append "$quiet rdinit=/none root=/dev/none" -no-reboot -nodefaults -no-user-config -display none >/dev/null 2>&1 || true
    sample kernel "$begin" "$(now)"
    # A machine made from an image that is there, until its first output.
    log_token=''
    begin=$(now)
    other=$(api POST "/v1/apps/$app/machines" "{\"config\":$config}" | jq -r .id)
    first_output "$other"
    sample create "$begin" "$(now)"
    # A program beside it.
    begin=$(now)
    api POST "/v1/apps/$app/machines/$other/exec" '{"command":["/bin/true"]}' >/dev/null
    sample exec "$begin" "$(now)"
    begin=$(now)
    api GET "/v1/apps/$app/machines/$other" >/dev/null
    sample get "$begin" "$(now)"
    begin=$(now)
    curl --silent --noproxy '*' "$url/no-such-path" >/dev/null
    sample bare "$begin" "$(now)"
    api DELETE "/v1/apps/$app/machines/$other?force=true" >/dev/null
    log_token=''
    drain_log "$machine"
done

# Memory of idle machines: the proportional shares of all VM processes, and the templates that the server holds, over
# their number. KiB.
readonly crowd=$((runs < 20 ? 5 : 20))
for ((n = 0; n < crowd; n++)); do
    id=$(api POST "/v1/apps/$app/machines" "{\"config\":$config}" | jq -r .id)
    api GET "/v1/apps/$app/machines/$id/wait?state=started" >/dev/null
done
api DELETE "/v1/apps/$app/machines/$cold?force=true" >/dev/null
api GET "/v1/apps/$app/machines/$cold/wait?state=destroyed" >/dev/null
sleep 2
total=0
for pid in $(pgrep -f "qemu-system.*control,fd="); do
    [[ -r /proc/$pid/smaps_rollup && $(readlink -f "/proc/$pid/cwd") ]] || continue
    ls -l "/proc/$pid/fd" 2>/dev/null | grep -q "$data" || continue
    total=$((total + $(awk '/^Pss:/ { print $2 }' "/proc/$pid/smaps_rollup")))
done
# Of a template's pages each VM that maps one counts its share; the rest is counted here.
held=$(stat --dereference --format '%b' $(find "/proc/$server/fd" -lname '/memfd:caddis-template*') 2>/dev/null | awk '{ s += $1 / 2 } END { print int(s) }')
mapped=$(awk '/^Pss_Shmem:/ { s += $2 } END { print s + 0 }' $(for pid in $(pgrep -f "qemu-system.*control,fd="); do echo "/proc/$pid/smaps_rollup"; done))
rest=$((held > mapped ? held - mapped : 0))
printf 'memory\t%d\n' "$(((total + rest) / (crowd + 1)))" >>"$work/samples"

sort -k1,1 -k2,2n "$work/samples" | awk -F'\t' -v rival="$(podman --version), $(podman info --format '{{.Host.OCIRuntime.Name}}, network {{.Host.NetworkBackend}}'), ${podman_flags[*]}" -v machine="$(uname -m), $(nproc) processors, $CADDIS_TEST_ACCELERATOR" '
    { values[$1] = values[$1] " " $2; count[$1]++; value[$1, count[$1]] = $2 }
    function median(name, n) { n = count[name]; return n % 2 ? value[name, (n + 1) / 2] : (value[name, n / 2] + value[name, n / 2 + 1]) / 2 }
    function row(name, text, unit, divisor) {
        if (!count[name]) return
        printf "| %s | %.1f %s | %.1f–%.1f | %d |\n", text, median(name) / divisor, unit, value[name, 1] / divisor, value[name, count[name]] / divisor, count[name]
    }
    END {
        printf "\n%s\nbeside it: %s\n\n| what | median | least–most | runs |\n|---|---|---|---|\n", machine, rival
        row("start", "start of a stopped machine, request to first output", "ms", 1000)
        row("cold", "beside it: the same machine as a cold boot", "ms", 1000)
        row("podman-start", "beside it: `podman start` of the same image and program, with its network", "ms", 1000)
        row("kernel", "beside it: QEMU and the same kernel alone, no disk, network or program", "ms", 1000)
        row("create", "create from an image on the host, request to first output", "ms", 1000)
        row("podman-run", "beside it: `podman run` of the same, with its network", "ms", 1000)
        row("stop", "stop, request until a waiting client sees `stopped`", "ms", 1000)
        row("exec", "exec of /bin/true, request to answer", "ms", 1000)
        row("get", "GET of a machine, one curl each", "ms", 1000)
        row("bare", "beside it: an answer that is no more than an error, one curl each", "ms", 1000)
        row("memory", "memory of an idle machine of 256 MB: all VM processes and templates over their number, PSS", "MiB", 1024)
        printf "| cold boot against start | %.2f × | | |\n", median("cold") / median("start")
        printf "| start against podman start | %.2f × | | |\n", median("start") / median("podman-start")
        printf "| create against podman run | %.2f × | | |\n", median("create") / median("podman-run")
        printf "| start against the kernel alone | %.2f × | | |\n", median("start") / median("kernel")
        printf "| GET against a bare answer | %.2f × | | |\n", median("get") / median("bare")
        printf "{\"machine\": \"%s\", \"unit\": \"us, memory KiB\", \"samples\": {", machine > "target/bench/report.json"
        first = 1
        for (name in values) {
            list = values[name]; sub(/^ /, "", list); gsub(/ /, ", ", list)
            printf "%s\"%s\": [%s]", first ? "" : ", ", name, list > "target/bench/report.json"
            first = 0
        }
        print "}}" > "target/bench/report.json"
    }'
jq empty target/bench/report.json
