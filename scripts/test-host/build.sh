#!/usr/bin/env bash
# Builds what `make test-host` boots, from Debian's packages, in target/test-host: a kernel, an initrd and the disk of a
# Debian system with systemd. Does nothing when it is there and as this file describes it.
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly goal=target/test-host
readonly packages=(
    systemd systemd-sysv udev dbus kmod procps         # the system
    qemu-system-x86 qemu-utils e2fsprogs nftables iproute2  # what README says that Caddis needs
    curl jq skopeo docker-registry busybox-static wireguard-tools
)
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' \
    | sed -n "s/ $suite main\$//p" | head -1)
readonly suite mirror
[[ -n $mirror ]] || { echo "apt knows no mirror of $suite; check /etc/apt/sources.list, then apt-get update" >&2; exit 1; }
recipe=$(sha256sum "$0" | cut -c-64)
[[ -e $goal/recipe && $(<"$goal/recipe") == "$recipe" ]] && exit 0

mkdir -p target
rm -rf "$goal" target/test-host.*
# Beside the goal, so that the rename that makes it valid is atomic.
work=$(mktemp -d "$PWD/target/test-host.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

# ── the ordinary kernel of the distribution, unpacked and not installed ──────────────────────────────────────────────
package_of() {
    apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -1
}
package=$(package_of)
[[ -n $package ]] || { apt-get update --quiet --quiet; package=$(package_of); }
[[ -n $package ]] || { echo "apt knows no linux-image-amd64; check /etc/apt/sources.list" >&2; exit 1; }
download() { (cd "$work" && apt-get download --quiet --quiet -o APT::Sandbox::User=root "$package"); }
download || { apt-get update --quiet --quiet; package=$(package_of); download; }
echo "unpacking $package"
dpkg-deb --extract "$work"/linux-image-*.deb "$work/kernel"
release=$(basename "$work"/kernel/lib/modules/*)

# ── an emulator whose SVM works ──────────────────────────────────────────────────────────────────────────────────────
# That of QEMU 7.2 damages memory of the host as soon as two guests run side by side; measured, 10.0 does not. It is
# unpacked here and installed nowhere.
echo "unpacking QEMU of $suite-backports"
apt_directory=$work/apt
mkdir -p "$apt_directory"/{lists,cache}/partial "$apt_directory/cache/archives/partial"
printf 'deb %s %s-backports main\ndeb %s %s main\n' "$mirror" "$suite" "$mirror" "$suite" >"$apt_directory/sources.list"
apt_options=(--quiet --quiet -o "Dir::Etc::SourceList=$apt_directory/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$apt_directory/lists" -o "Dir::Cache=$apt_directory/cache" -o APT::Sandbox::User=root)
apt-get "${apt_options[@]}" update
apt-get "${apt_options[@]}" install --target-release "$suite-backports" --reinstall --no-install-recommends --yes \
    --download-only qemu-system-x86 >/dev/null
for archive in "$apt_directory"/cache/archives/*.deb; do dpkg-deb --extract "$archive" "$work/qemu"; done
rm -rf "$apt_directory"

# ── the system ───────────────────────────────────────────────────────────────────────────────────────────────────────
echo "building a Debian system with systemd"
list=$(IFS=,; echo "${packages[*]}")
mmdebstrap --quiet --mode=root --variant=minbase --include="$list" --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --customize-hook='rm -rf "$1"/var/lib/apt/lists/*' \
    "$suite" "$work/tree" "$mirror"
cp -a "$work/kernel/lib/modules" "$work/tree/lib/"
cp -a "$work/kernel/boot/." "$work/tree/boot/"
depmod -b "$work/tree" "$release"
printf 'kvm-amd\ntun\n' >"$work/tree/etc/modules-load.d/test-host.conf"
echo test-host >"$work/tree/etc/hostname"
printf '127.0.0.1 localhost test-host\n::1 localhost\n' >"$work/tree/etc/hosts"
: >"$work/tree/etc/resolv.conf"
: >"$work/tree/etc/machine-id"
mkdir -p "$work/tree/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=persistent\n' >"$work/tree/etc/systemd/journald.conf.d/test-host.conf"
# Nothing of these is needed, and each takes its time under emulation.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer systemd-timesyncd.service docker-registry.service getty.target serial-getty@ttyS0.service; do
    ln -sf /dev/null "$work/tree/etc/systemd/system/$unit"
done
mkdir -p "$work/tree/payload"
cat >"$work/tree/etc/systemd/system/test-host.service" <<'UNIT'
[Unit]
Description=The tests of a host
After=multi-user.target
[Service]
Type=oneshot
# Its own end must not wait for what it asks of systemd.
ExecStartPre=/bin/mount -o ro /dev/vdb /payload
ExecStart=/bin/bash /payload/run.sh
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStartSec=infinity
[Install]
WantedBy=graphical.target
UNIT
mkdir -p "$work/tree/etc/systemd/system/graphical.target.wants"
ln -sf ../test-host.service "$work/tree/etc/systemd/system/graphical.target.wants/test-host.service"
ln -sf /lib/systemd/system/graphical.target "$work/tree/etc/systemd/system/default.target"
truncate --size=8G "$work/disk"
mke2fs -q -t ext4 -E lazy_itable_init=1,nodiscard -O ^has_journal -d "$work/tree" "$work/disk"

# ── an initrd that finds the disk ────────────────────────────────────────────────────────────────────────────────────
root=$work/initrd
mkdir -p "$root"/{bin,dev,proc,sys,new}
cp /bin/busybox "$root/bin/busybox"
modules=(virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk
    crc16 crc32c_generic libcrc32c mbcache jbd2 ext4)
for module in "${modules[@]}"; do
    file=$(find "$work/kernel/lib/modules" -name "$module.ko*" | head -1)
    [[ -z $file ]] || cp "$file" "$root/"
done
{
    echo '#!/bin/busybox sh'
    echo 'b=/bin/busybox; $b mount -t devtmpfs d /dev; $b mount -t proc p /proc; $b mount -t sysfs s /sys'
    for module in "${modules[@]}"; do echo "[ -e /$module.ko ] && \$b insmod /$module.ko"; done
    echo '$b mount /dev/vda /new && exec $b switch_root /new /lib/systemd/systemd'
} >"$root/init"
chmod 755 "$root/init"
(cd "$root" && find . | cpio --quiet --create --format=newc | gzip -1) >"$work/initrd.gz"
cp "$work/kernel/boot/vmlinuz-$release" "$work/vmlinuz"

rm -rf "$work/kernel" "$work/tree" "$root" "$work"/*.deb
echo "$recipe" >"$work/recipe"
mv "$work" "$goal"
trap - EXIT
