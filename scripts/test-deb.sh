#!/usr/bin/env bash
# Installs the package on a bare Debian, upgrades it, removes and purges it, and looks at what is
# there and what is left: `scripts/test-deb.sh [BINARY]`, by default what `make build-tests` built.
# The system is a tree in target, with mounts, network and processes of its own; no service runs in
# it, which `make test-host` has. Prints what the test runner prints.
# shellcheck disable=SC2317  # the tests are called by name
set -euo pipefail
cd "$(dirname "$0")/.."
[[ $(id -u) -eq 0 ]] || { echo "building a system needs root: sudo make test-deb" >&2; exit 1; }
readonly goal=target/test-deb
# What other tests are told, the program in the tree is not to hear.
unset "${!CADDIS_@}"

# ── the system, and the packages that are to be installed on it, in an archive ──
build() {
    local suite mirror recipe depends
    suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' \
        | sed -n "s/ $suite main\$//p" | head -1)
    [[ -n $mirror ]] || { echo "apt knows no mirror of $suite; check /etc/apt/sources.list, then apt-get update" >&2; exit 1; }
    # Names alone, and of alternatives the first.
    depends=$(sed -n 's/^Depends: @LIBRARIES@, //p' packaging/debian/control | sed 's/([^)]*)//g; s/|[^,]*//g; s/,//g')
    recipe="$suite $mirror $depends"
    [[ -e $goal/recipe && $(<"$goal/recipe") == "$recipe" ]] && return
    echo "building a Debian system for packages"
    rm -rf "$goal"
    mkdir -p "$goal"
    # shellcheck disable=SC2016  # for the hook's shell
    depends=$depends mmdebstrap --quiet --mode=root --variant=minbase --include=systemd --skip=cleanup/apt \
        --aptopt='Acquire::Languages "none"' --dpkgopt=force-unsafe-io \
        --customize-hook='APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get install --quiet --quiet --yes --download-only --no-install-recommends $depends >/dev/null' \
        "$suite" "$goal/tree.tar" "$mirror"
    echo "$recipe" >"$goal/recipe"
}

# ── what tests are made of ──
passed=0 failed=0
run() {
    local code
    # Where a failure is looked at, bash does not end at one.
    set +e
    (set -eux; "$1") >"$work/out" 2>&1 </dev/null
    code=$?
    set -e
    if [[ $code -eq 0 ]]; then
        passed=$((passed + 1))
        echo "test package::$1 ... ok"
    else
        failed=$((failed + 1))
        echo "test package::$1 ... FAILED"
        tr '\r' '\n' <"$work/out" | grep -v '^(Reading database' | tail -n 150
    fi
}
# A command that must fail; `!` would not end a test.
refute() { if "$@"; then echo "succeeded: $*"; return 1; fi; }
# The kernel is for VMs: making an initrd for a host takes half a minute.
inside() { INITRD=No DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 chroot "$tree" "$@"; }
installed() { inside dpkg-query --show --showformat='${db:Status-Abbrev}${Version}' caddis; }
# All that there is but logs, with its rights and where links lead.
files() { (cd "$tree" && find . -xdev -path ./packages -prune -o -path ./var/log -prune -o -printf '%M %u:%g %p %l\n' | sort); }

# ── the tests, each on what the one before left ──
is_installed_with_all_it_needs() {
    inside apt-get install --quiet --yes --no-install-recommends /packages/caddis.deb
    [[ $(installed) == "ii $(dpkg-deb --field "$work/tree/packages/caddis.deb" Version)" ]]
}
the_program_says_its_version() {
    local version
    version=$(inside caddis --version)
    [[ $version == "$("$binary" --version)" && $version == "caddis $(dpkg-deb --field "$tree/packages/caddis.deb" Version | sed 's/~.*//')"* ]]
}
doctor_misses_nothing_that_packages_bring() {
    inside caddis doctor --json >"$work/doctor" || true
    cat "$work/doctor"
    # The tree has no cgroups; the others are what the host at hand is like.
    jq --exit-status '[.checks[] | select(.status != "ok") | .name] - ["cgroups", "accelerator", "disk", "memory"] == []' "$work/doctor"
    jq --exit-status '.checks[] | select(.name == "kernel") | .message | contains("(/boot/vmlinuz-")' "$work/doctor"
}
each_command_has_a_manual_page() {
    local page
    for page in docs/cli/*.md; do
        gzip --decompress --stdout "$tree/usr/share/man/man1/$(basename "$page" .md).1.gz" | grep -q '^\.SH SYNOPSIS'
    done
}
shells_complete_it() {
    # shellcheck disable=SC2016  # for the shell in the tree
    inside bash -ec 'source /usr/share/bash-completion/completions/caddis
        complete -p caddis
        COMP_WORDS=(caddis mach) COMP_CWORD=1 COMP_TYPE=9
        $(complete -p caddis | sed "s/.*-F \([^ ]*\).*/\1/") caddis mach caddis
        [[ " ${COMPREPLY[*]} " == *" machine "* ]]'
    grep -q '^#compdef caddis' "$tree/usr/share/zsh/vendor-completions/_caddis"
    grep -q 'complete .*caddis' "$tree/usr/share/fish/vendor_completions.d/caddis.fish"
}
systemd_takes_its_units() {
    inside systemd-analyze verify caddis.service caddis.slice
    [[ $(inside systemctl is-enabled caddis.service) == enabled ]]
    refute grep -r /usr/local "$tree/usr/lib/systemd/system/caddis.service"
}
the_configuration_is_what_the_program_reads() {
    echo 'region = "no region"' >>"$tree/etc/caddis/caddis.toml"
    refute inside caddis doctor 2>"$work/error"
    grep 'no region' "$work/error"
    sed -i '$d' "$tree/etc/caddis/caddis.toml"
}
a_purge_leaves_nothing() {
    inside apt-get purge --quiet --yes caddis
    files >"$work/purged"
    refute grep caddis "$work/purged"
    [[ $(inside dpkg --list | grep -c caddis) -eq 0 ]]
}
an_upgrade_keeps_settings_and_data() {
    inside dpkg --install /packages/earlier.deb
    [[ $(installed) == 'ii 0.0.1' ]]
    echo 'region = "home"' >>"$tree/etc/caddis/caddis.toml"
    mkdir -m 700 "$tree/var/lib/caddis"
    echo kept >"$tree/var/lib/caddis/catalog.db"
    inside systemctl disable caddis.service
    inside apt-get install --quiet --yes --no-install-recommends /packages/caddis.deb
    refute grep '^ii 0.0.1' <(installed)
    grep 'region = "home"' "$tree/etc/caddis/caddis.toml"
    grep kept "$tree/var/lib/caddis/catalog.db"
    [[ $(inside systemctl is-enabled caddis.service || true) == disabled ]]
}
going_back_to_the_earlier_version_is_an_upgrade_like_any() {
    inside apt-get install --quiet --yes --allow-downgrades /packages/earlier.deb
    [[ $(installed) == 'ii 0.0.1' ]]
    grep kept "$tree/var/lib/caddis/catalog.db"
}
a_removal_keeps_settings_and_data() {
    inside apt-get remove --quiet --yes caddis
    refute test -e "$tree/usr/bin/caddis"
    grep 'region = "home"' "$tree/etc/caddis/caddis.toml"
    grep kept "$tree/var/lib/caddis/catalog.db"
}
a_purge_of_what_was_used_leaves_nothing() {
    inside apt-get purge --quiet --yes caddis
    files >"$work/after"
    diff "$work/purged" "$work/after"
}

if [[ ${1:-} != --inside ]]; then
    binary=${1:-target/debug/caddis}
    [[ -x $binary ]] || { echo "there is no $binary: make build-tests" >&2; exit 1; }
    build
    work=$(mktemp -d "$PWD/target/test-deb-run.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/tree"
    tar --extract --file "$goal/tree.tar" --directory "$work/tree"
    mkdir "$work/tree/packages"
    # Compressing takes longer than all else, and nobody keeps them.
    export DPKG_DEB_COMPRESSOR_TYPE=none
    mv "$(scripts/deb.sh "$binary")" "$work/tree/packages/caddis.deb"
    mv "$(scripts/deb.sh "$binary" 0.0.1)" "$work/tree/packages/earlier.deb"
    # What runs in the tree ends with this script, and its mounts are nobody else's.
    unshare --mount --net --pid --fork --kill-child "$0" --inside "$work" "$binary"
    exit
fi
work=$2 binary=$3 tree=$2/tree
mount -t proc proc "$tree/proc"
mount -t sysfs -o ro sysfs "$tree/sys"
mount --rbind /dev "$tree/dev"
mount -t tmpfs -o mode=755 run "$tree/run"
ip link set lo up
run is_installed_with_all_it_needs
run the_program_says_its_version
run doctor_misses_nothing_that_packages_bring
run each_command_has_a_manual_page
run shells_complete_it
run systemd_takes_its_units
run the_configuration_is_what_the_program_reads
run a_purge_leaves_nothing
run an_upgrade_keeps_settings_and_data
run going_back_to_the_earlier_version_is_an_upgrade_like_any
run a_removal_keeps_settings_and_data
run a_purge_of_what_was_used_leaves_nothing
echo "test result: $([[ $failed -eq 0 ]] && echo ok || echo FAILED). $passed passed; $failed failed; 0 ignored"
[[ $failed -eq 0 ]]
