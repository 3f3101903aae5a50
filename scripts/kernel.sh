#!/usr/bin/env bash
# Unpacks Debian's cloud kernel, without installing it, to target/kernel, and links to its parts from there:
#   target/kernel/vmlinuz   the kernel image
#   target/kernel/modules   its modules, lib/modules/VERSION
# Does nothing when it is there already; `rm -r target/kernel` fetches the current one.
set -euo pipefail
cd "$(dirname "$0")/.."
kernel=target/kernel
[[ -e $kernel/vmlinuz && -d $kernel/modules/kernel ]] && exit 0

mkdir -p target
# Beside the goal, so that the rename that makes it valid is atomic.
work=$(mktemp -d target/kernel.XXXXXX)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

# linux-image-cloud-amd64 is an empty package that depends on the one with the current kernel.
package_of() {
    apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -1
}
package=$(package_of)
if [[ -z $package ]]; then
    apt-get update --quiet --quiet
    package=$(package_of)
fi
[[ -n $package ]] || { echo "apt knows no linux-image-cloud-amd64; check /etc/apt/sources.list" >&2; exit 1; }

# apt drops its rights to the user _apt where it can, who can't write to our directory; root downloads it then.
download() { (cd "$work" && apt-get download --quiet --quiet -o APT::Sandbox::User=root "$package"); }
echo "downloading $package"
download || { apt-get update --quiet --quiet; package=$(package_of); download; }

echo "unpacking $package"
mkdir "$work/tree"
dpkg-deb --extract "$work"/linux-image-*.deb "$work/tree"
chmod 755 "$work/tree"
version=$(basename "$work"/tree/lib/modules/*)
ln -s "boot/vmlinuz-$version" "$work/tree/vmlinuz"
ln -s "lib/modules/$version" "$work/tree/modules"
rm -rf "$kernel"
mv "$work/tree" "$kernel"
