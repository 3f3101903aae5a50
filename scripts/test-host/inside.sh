#!/usr/bin/env bash
# Runs inside the host that `make test-host` boots, once per boot of it, as a unit of its systemd. Prints a line per test,
# as the test runner does, and a summary at the end; then the host powers off.
# shellcheck disable=SC2317  # the tests are called by name
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root NO_COLOR=1 LC_ALL=C.UTF-8
readonly state=/var/lib/test-host registry=127.0.0.1:5000
mkdir -p "$state" "$HOME"
cd "$state" || exit 1
boot=$(($(cat boot 2>/dev/null || echo 0) + 1))
echo "$boot" >boot

# ── what tests are made of ───────────────────────────────────────────────────────────────────────────────────────────
# A test is a function; it passes when it ends with 0. Its commands and their output are shown when it does not.
run() {
    local name=$1 code
    (set -eux; "$name") >"out.$name" 2>&1 </dev/null
    code=$?
    if [[ $code -eq 0 ]]; then
        echo passed >>results
        echo "test host::$name ... ok"
    else
        echo failed >>results
        echo "test host::$name ... FAILED"
        echo "---- $name: commands and output ----"
        grep -v -e '^+.* read -rt' -e '^+.* jq' -e '^+* curl' -e '^+* cat /var' "out.$name" | tail -n 80
        for app in hello apart; do
            caddis machine list --app "$app" --json | jq --compact-output --monochrome-output \
                '.[] | {name, id, state, events: [.events[:6][] | {type, status, request, details}]}'
        done 2>/dev/null
        echo "---- journal of caddis ----"
        journalctl --unit caddis --no-pager --boot --output short-monotonic | grep -v ' INFO request ' | tail -n 25
        echo "----"
    fi
}
# A command that must fail; `!` would not end a test.
refute() { if "$@"; then echo "succeeded: $*"; return 1; fi; }
# Waits until a command succeeds, at most so many seconds.
until_true() {
    local limit=$((SECONDS + $1))
    shift
    until "$@"; do
        [[ $SECONDS -lt $limit ]] || { echo "not in time: $*"; return 1; }
        read -rt 0.5 <> <(:) || true
    done
}
api() { curl --silent --show-error --fail-with-body --noproxy '*' -H "Authorization: Bearer $(cat /var/lib/caddis/root.token)" "$@"; }
machine() { api "http://127.0.0.1:4280/v1/apps/$1/machines/$2"; }
field() { machine "$1" "$2" | jq --raw-output "$3"; }
id_of() { caddis machine list --app "$1" --json | jq --exit-status --raw-output ".[] | select(.name == \"$2\") | .id"; }
is() { [[ $(field "$1" "$2" .state) == "$3" ]]; }
# Runs a shell command in a machine; ends with 0 only when it did. `caddis machine exec` ends with 0 whatever that gave.
inside() {
    local body
    body=$(jq --null-input --arg text "$3" '{command: ["/bin/sh", "-c", $text], timeout: 30}')
    api --header 'Content-Type: application/json' --data "$body" "http://127.0.0.1:4280/v1/apps/$1/machines/$2/exec" \
        | tee exec.json | jq --exit-status '.exit_code == 0' >/dev/null && jq --raw-output .stdout exec.json
}
# Of the newest start: its kind, and whether its VM came from the pool.
start_kind() { field "$1" "$2" '[.events[] | select(.type == "start")][0].details.start_kind'; }
exit_cause() { field "$1" "$2" '[.events[] | select(.type == "exit")][0].request.exit_event.cause'; }
# The process of a machine's VM, as long as it is there. One from the pool has a name of its own.
vm_of() {
    local pid
    pid=$(jq --exit-status .process.pid "/var/lib/caddis/worker/machines/$1/vm.json") && [[ -d /proc/$pid ]] && echo "$pid"
}
slot_of() { sed -n 's/^0:://p' "/proc/$1/cgroup"; }
template_is_ready() { journalctl --unit caddis --boot --no-pager --quiet | grep --quiet 'template ready'; }
server_answers() { caddis platform status; }

# ── the first boot ───────────────────────────────────────────────────────────────────────────────────────────────────
# Of a version that is older than all; the host has a kernel, and no package of it.
installs_the_package() {
    install -d /etc/caddis && printf 'region = "home"\nlog = "info,caddis_vmm=debug"\ninsecure-registry = ["%s"]\n' "$registry" >/etc/caddis/caddis.toml
    dpkg --unpack /payload/earlier.deb
    # As on a host where it is not installed yet.
    refute systemctl is-active caddis
    caddis doctor | tee doctor.before
    dpkg --configure --force-confold --ignore-depends=linux-image-amd64 caddis
    systemctl is-active caddis
    systemctl is-enabled caddis
    grep home /etc/caddis/caddis.toml
}
answers_at_once() { server_answers; }
a_template_is_built_while_a_machine_boots() {
    caddis image import oci:/payload/web --name web:1
    caddis apps create hello
    caddis machine run web:1 --app hello --name web
    until_true 240 template_is_ready
    caddis platform status --json | jq --exit-status '.ok and (.problems | length == 0)'
    [[ $(start_kind hello "$(id_of hello web)") == cold ]]
}
doctor_finds_kvm_and_cgroup_v2() {
    caddis doctor | tee doctor
    grep --quiet 'kvm (' doctor
    grep --quiet 'v2' doctor
    refute grep --quiet --ignore-case 'failed' doctor
}
shows_hardware_isolation() { [[ $(field hello "$(id_of hello web)" .isolation) == hardware ]]; }
answers_http() {
    local address
    address=$(field hello "$(id_of hello web)" .private_ipv4)
    curl --silent --show-error --noproxy '*' --retry 30 --retry-delay 1 --retry-connrefused --max-time 60 "http://$address/" \
        | grep 'hello from a machine'
}
runs_commands_and_shows_logs() {
    caddis machine exec "$(id_of hello web)" 'uname -s' --app hello | grep Linux
    caddis logs --app hello --no-tail
    caddis logs --app hello --no-tail | grep "$(id_of hello web)"
}
pulls_from_a_registry() {
    printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: "%s"}\n' \
        "$state/registry" "$registry" >registry.yml
    systemd-run --unit test-registry docker-registry serve "$state/registry.yml"
    until_true 60 curl --silent --fail "http://$registry/v2/"
    skopeo --insecure-policy copy --quiet --dest-tls-verify=false oci:/payload/busybox "docker://$registry/busybox:1"
    caddis machine run "$registry/busybox:1" --app hello --name sleeper
    until_true 120 is hello "$(id_of hello sleeper)" started
}
starts_from_the_template_and_from_the_pool() {
    local id
    id=$(id_of hello web)
    caddis machine stop "$id" --app hello
    is hello "$id" stopped
    caddis machine start "$id" --app hello
    until_true 120 is hello "$id" started
    [[ $(start_kind hello "$id") == template ]]
    # A VM that waits is there again after a while; then a start takes that.
    until_true 240 starts_from_the_pool "$id"
}
starts_from_the_pool() {
    caddis machine stop "$1" --app hello
    caddis machine start "$1" --app hello --timing
    until_true 120 is hello "$1" started
    machine hello "$1" | jq --exit-status \
        '[.events[] | select(.type == "start")][0].details | .start_kind == "template" and .pool == "hit"'
}
suspends_and_resumes() {
    local id pid
    id=$(id_of hello sleeper)
    pid=$(inside hello "$id" 'sleep 4711 >/dev/null 2>&1 & echo $!')
    caddis machine suspend "$id" --app hello
    until_true 120 is hello "$id" suspended
    refute vm_of "$id"
    caddis machine start "$id" --app hello
    until_true 120 is hello "$id" started
    [[ $(start_kind hello "$id") == resume ]]
    inside hello "$id" "grep 4711 /proc/$pid/cmdline"
}
a_guest_out_of_memory_is_told_from_a_host() {
    local id slot
    caddis machine run web:1 --app hello --name greedy --restart no --entrypoint /bin/sh -- -c 'sleep 3; exec tail /dev/zero'
    id=$(id_of hello greedy)
    until_true 180 is hello "$id" stopped
    [[ $(exit_cause hello "$id") == guest_oom ]]
    # The bound of the host on a VM's memory, made tighter than what it has.
    caddis machine run web:1 --app hello --name bounded --restart no --vm-memory 512
    id=$(id_of hello bounded)
    until_true 180 is hello "$id" started
    slot=/sys/fs/cgroup$(slot_of "$(vm_of "$id")")
    [[ $slot == /sys/fs/cgroup/caddis.slice/slot-* ]]
    (($(<"$slot/memory.max") > 512 << 20)) && (($(<"$slot/memory.max") < 768 << 20))
    echo 0 >"$slot/memory.swap.max" || true
    echo $(($(<"$slot/memory.current") + (16 << 20))) >"$slot/memory.max"
    caddis machine exec "$id" 'tail -c 300m /dev/zero' --app hello || true
    until_true 120 is hello "$id" stopped
    [[ $(exit_cause hello "$id") == host_oom ]]
}
dedicated_processors_have_twice_the_weight() {
    local shared dedicated
    caddis machine run web:1 --app hello --name dedicated --vm-size performance-1x --vm-memory 2048
    until_true 240 is hello "$(id_of hello dedicated)" started
    shared=$(<"/sys/fs/cgroup$(slot_of "$(vm_of "$(id_of hello web)")")/cpu.weight")
    dedicated=$(<"/sys/fs/cgroup$(slot_of "$(vm_of "$(id_of hello dedicated)")")/cpu.weight")
    ((dedicated == 2 * shared))
    caddis machine destroy "$(id_of hello dedicated)" --app hello --force
}
# A command that ends with 0 when a web server answers. busybox's wget, linked statically, can't look addresses up.
fetch() { echo "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 $1 $2 | grep -q HTTP"; }
networks_of_two_apps_and_the_host_are_apart() {
    local one two six other
    caddis apps create apart --network apart
    caddis machine run web:1 --app apart --name other
    until_true 240 is apart "$(id_of apart other)" started
    one=$(id_of hello sleeper)
    six=$(field hello "$(id_of hello web)" .private_ip)
    other=$(field apart "$(id_of apart other)" .private_ip)
    two=$(field apart "$(id_of apart other)" .private_ipv4)
    until_true 60 inside hello "$one" "$(fetch "$six" 80)"
    refute inside hello "$one" "$(fetch "$other" 80)"
    refute inside hello "$one" "$(fetch "$two" 80)"
    # An address of the host, and a server that listens on all of them.
    ip link add test-host0 type dummy 2>/dev/null || true
    ip address replace 10.77.0.1/24 dev test-host0
    ip link set test-host0 up
    systemd-run --unit test-web busybox httpd -f -p 8099 -h /payload || true
    until_true 30 curl --silent --output /dev/null http://10.77.0.1:8099/
    refute inside hello "$one" "$(fetch 10.77.0.1 8099)"
    refute inside hello "$one" "$(fetch 10.77.0.1 4280)"
}
machines_live_through() {
    local web sleeper before
    web=$(id_of hello web) sleeper=$(id_of hello sleeper)
    # Whatever an earlier test left.
    caddis machine start "$web" "$sleeper" --app hello || true
    until_true 120 is hello "$web" started
    until_true 120 is hello "$sleeper" started
    before="$(vm_of "$web") $(vm_of "$sleeper")"
    "$@"
    until_true 60 server_answers
    [[ "$(vm_of "$web") $(vm_of "$sleeper")" == "$before" ]]
    is hello "$web" started && is hello "$sleeper" started
    caddis machine exec "$sleeper" 'echo alive' --app hello | grep alive
}
restart_of_the_service_leaves_machines_running() { machines_live_through systemctl restart caddis; }
kill_of_the_server_leaves_machines_running() {
    local pid
    pid=$(systemctl show caddis --property MainPID --value)
    machines_live_through kill -KILL "$pid"
    [[ $(systemctl show caddis --property NRestarts --value) -ge 1 ]]
}
stop_and_start_of_the_service_leave_machines_running() {
    stop_and_start() { systemctl stop caddis && refute systemctl is-active caddis && systemctl start caddis; }
    machines_live_through stop_and_start
}
an_upgrade_leaves_machines_running() {
    local before
    before=$(systemctl show caddis --property MainPID --value)
    machines_live_through dpkg --install --ignore-depends=linux-image-amd64 /payload/caddis.deb
    [[ $(systemctl show caddis --property MainPID --value) != "$before" ]]
    [[ $(dpkg-query --show --showformat='${Version}' caddis) != 0.0.1 ]]
    grep home /etc/caddis/caddis.toml
}
journal_and_status_are_helpful() {
    journalctl --unit caddis --no-pager --output cat | grep 'listening on'
    systemctl status caddis --no-pager --full | tee status
    grep 'Active: active' status
    grep 'Status: ".*listening' status
    # A VM is no part of the service, so that the one can be stopped without the other.
    refute grep qemu-system status
    systemctl status caddis.slice --no-pager | grep qemu-system
}
prepares_for_a_reboot() {
    caddis machine run web:1 --app hello --name halted --restart no
    until_true 240 is hello "$(id_of hello halted)" started
    caddis machine stop "$(id_of hello halted)" --app hello
    caddis machine suspend "$(id_of hello sleeper)" --app hello
    until_true 120 is hello "$(id_of hello sleeper)" suspended
    is hello "$(id_of hello web)" started
    sync
}

# ── only when asked for ──────────────────────────────────────────────────────────────────────────────────────────────
# `BENCH=1 make test-host`. Of figures taken on an emulated host only ratios between our own mean something.
templates_and_the_pool_are_worth_what_is_promised() {
    local report
    CADDIS_TEST_ACCELERATOR=kvm CADDIS_KERNEL=$(echo /boot/vmlinuz-*) /payload/bench --quick --only start >table 2>bench.err || true
    sed 's/^/  /' table >/dev/ttyS0
    report=$(sed -n 's/^every sample: //p' bench.err)
    median() { jq --exit-status ".lines[] | select(.key == \"$1\") | .median" "$report"; }
    jq --null-input --exit-status "$(median cold/start-hit) >= 8 and $(median cold/start-off) >= 4"
}

# ── the second boot ──────────────────────────────────────────────────────────────────────────────────────────────────
the_host_was_drained_before_it_went_down() {
    journalctl --unit caddis --boot -1 --no-pager --output cat | tail -n 20 | tee last
    grep -E 'Machines stopped: [0-9]+' last
}
machines_that_ran_run_again_from_a_template() {
    until_true 120 server_answers
    until_true 240 is hello "$(id_of hello web)" started
    until_true 240 is apart "$(id_of apart other)" started
    [[ $(start_kind hello "$(id_of hello web)") == template ]]
    [[ $(start_kind apart "$(id_of apart other)") == template ]]
    answers_http
}
machines_that_were_stopped_stay_so() {
    is hello "$(id_of hello halted)" stopped
    is hello "$(id_of hello sleeper)" suspended
}
a_suspended_machine_is_resumed_after_a_reboot() {
    local id
    id=$(id_of hello sleeper)
    caddis machine start "$id" --app hello
    until_true 120 is hello "$id" started
    [[ $(start_kind hello "$id") == resume ]]
    inside hello "$id" 'ps | grep -q "[s]leep 4711"'
}
no_unit_has_failed() {
    systemctl list-units --failed --no-legend --plain | tee failed
    refute grep caddis failed
}
nothing_runs_or_is_set_up() {
    refute pgrep qemu-system
    ip -o link | tee links
    refute grep caddis links
    nft list tables | tee tables
    refute grep caddis tables
    ip rule | tee rules
    refute grep -v -E '^(0|32766|32767):' rules
    refute test -d /sys/fs/cgroup/caddis.slice/slot-0
    refute systemctl is-active caddis.service caddis.slice
}
a_removal_of_the_package_ends_machines_and_keeps_data() {
    pgrep qemu-system
    dpkg --remove caddis
    nothing_runs_or_is_set_up
    test -s /var/lib/caddis/catalog.db
    grep home /etc/caddis/caddis.toml
}
machines_run_again_when_the_package_comes_back() {
    dpkg --install --ignore-depends=linux-image-amd64 /payload/caddis.deb
    until_true 120 server_answers
    until_true 240 is hello "$(id_of hello web)" started
}
a_purge_ends_machines_that_nobody_serves_and_leaves_nothing() {
    systemctl stop caddis
    pgrep qemu-system
    dpkg --purge caddis
    nothing_runs_or_is_set_up
    find / -xdev -not -path "$state/*" -name '*caddis*' | tee left
    [[ ! -s left ]]
    refute test -e /run/caddis
}

summary() {
    local passed failed
    passed=$(grep -c passed results) failed=$(grep -c failed results)
    echo "test result: $([[ $failed -eq 0 ]] && echo ok || echo FAILED). $passed passed; $failed failed; 0 ignored"
}
if [[ -n $(</payload/tests) ]]; then
    for name in $(</payload/tests); do run "$name"; done
    summary
    systemctl poweroff
    exit
fi
case $boot in
    1)
        run installs_the_package
        run answers_at_once
        run a_template_is_built_while_a_machine_boots
        run doctor_finds_kvm_and_cgroup_v2
        run shows_hardware_isolation
        run answers_http
        run runs_commands_and_shows_logs
        run pulls_from_a_registry
        run starts_from_the_template_and_from_the_pool
        run suspends_and_resumes
        run a_guest_out_of_memory_is_told_from_a_host
        run dedicated_processors_have_twice_the_weight
        run networks_of_two_apps_and_the_host_are_apart
        run restart_of_the_service_leaves_machines_running
        run kill_of_the_server_leaves_machines_running
        run stop_and_start_of_the_service_leave_machines_running
        run an_upgrade_leaves_machines_running
        run journal_and_status_are_helpful
        run prepares_for_a_reboot
        systemctl reboot
        ;;
    2)
        run the_host_was_drained_before_it_went_down
        run machines_that_ran_run_again_from_a_template
        run machines_that_were_stopped_stay_so
        run a_suspended_machine_is_resumed_after_a_reboot
        run no_unit_has_failed
        run a_removal_of_the_package_ends_machines_and_keeps_data
        run machines_run_again_when_the_package_comes_back
        run a_purge_ends_machines_that_nobody_serves_and_leaves_nothing
        summary
        systemctl poweroff
        ;;
    *)
        # It went down by itself.
        echo "test host::unexpected_boot_$boot ... FAILED"
        systemctl poweroff
        ;;
esac
