#!/usr/bin/env bash
# Installs from Debian what building, testing and the demo need and what is missing. Asks dpkg
# first, so that nothing is downloaded or asked when all is there. Arguments are further packages.
set -euo pipefail

packages=(
    build-essential    # the C compiler and make that SQLite and the linker need
    qemu-system-x86    # the VMM
    qemu-utils         # qemu-img, which makes volumes
    e2fsprogs          # mke2fs, which builds root disks
    xfsprogs           # mkfs.xfs, for tests of volumes on a file system that can share blocks
    kmod               # depmod, which says what kernel modules need
    nftables iproute2  # what the network tests look with
    wireguard-go wireguard-tools iputils-ping  # peers of private networks, in tests
    busybox-static     # the smallest image there is
    docker-registry    # a registry for tests and the demo
    skopeo             # pushes images and makes archives
    mmdebstrap         # builds a real distribution's tree
    zstd jq curl openssl
    sqlite3 fio        # what writes to a volume that loses its power
    strace             # what the server runs and syncs during a start
    systemd            # systemd-analyze, which checks the unit; it is not started
    python3-venv       # schemathesis, which makes up requests to the API
    ca-certificates    # for registries over HTTPS
)

missing=()
for package in "${packages[@]}" "$@"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $status == installed ]] || missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

if [[ $(id -u) -ne 0 ]]; then
    echo "missing packages; as root: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
fi

# A registry installed for the demo, or nginx for the benchmark, must not start as a service of the
# host. dpkg asks this file before it starts one.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi

export DEBIAN_FRONTEND=noninteractive
echo "installing: ${missing[*]}"
apt-get update --quiet --quiet
apt-get install --quiet --quiet --yes --no-install-recommends "${missing[@]}" </dev/null

# deb-systemd-helper enables units even where it may not start them.
for service in docker-registry nginx; do
    if [[ " ${missing[*]} " == *" $service "* ]] && command -v systemctl >/dev/null; then
        systemctl disable "$service.service" >/dev/null 2>&1 || true
    fi
done
