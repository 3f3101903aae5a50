#!/usr/bin/env bash
# Builds a kernel for VMs from Debian's package with Linux's source and packaging/guest-kernel.config:
#   target/guest-kernel/vmlinux   the kernel, uncompressed, entered by PVH
#   target/guest-kernel/modules   modules.builtin alone, which says what is built in: there are no modules
#   target/guest-kernel/config    what it was configured with, whole
# Does nothing when it is there already, built from this version of the source and this configuration.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly linux=linux-source-6.1 fragment=$PWD/packaging/guest-kernel.config goal=$PWD/target/guest-kernel
scripts/setup.sh "$linux" bc bison flex libelf-dev xz-utils

version=$(dpkg-query --show --showformat='${Version}' "$linux")
key=$({ echo "$version"; cat "$fragment"; } | sha256sum | cut -d' ' -f1)
[[ -s $goal/vmlinux && $(cat "$goal/key" 2>/dev/null) == "$key" ]] && exit 0

mkdir -p target
# Beside the goal, so that the rename that makes it valid is atomic.
work=$(mktemp -d "$goal.XXXXXX")
building=''
end() {
    local code=$?
    trap - EXIT INT TERM
    # make ends the compilers it runs.
    [[ $building ]] && kill "$building" 2>/dev/null && wait
    rm -rf "$work"
    exit "$code"
}
trap end EXIT
trap 'exit 130' INT TERM
chmod 755 "$work"

# The same source and configuration give the same kernel, whoever builds it and when; so templates stay valid.
tarball=/usr/src/$linux.tar.xz
export KBUILD_BUILD_USER=caddis KBUILD_BUILD_HOST=caddis KBUILD_BUILD_VERSION=1
KBUILD_BUILD_TIMESTAMP=$(date --utc --reference="$tarball")
export KBUILD_BUILD_TIMESTAMP
export LC_ALL=C

echo "unpacking $linux $version"
mkdir "$work/source"
tar --extract --file "$tarball" --directory "$work/source" --strip-components=1
cd "$work/source"

# All that the fragment leaves open is off, unless something in it needs it.
make KCONFIG_ALLCONFIG="$fragment" allnoconfig >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
wrong=0
while IFS= read -r line; do
    case $line in
        CONFIG_*=*) grep -qxF "$line" .config ;;
        '# CONFIG_'*' is not set') name=${line#\# }; ! grep -q "^${name%% *}=" .config ;;
        *) true ;;
    esac || { echo "no effect in this version of Linux: $line" >&2; wrong=1; }
done <"$fragment"
[[ $wrong -eq 0 ]] || { echo "change packaging/guest-kernel.config" >&2; exit 1; }

# In the background, so that a signal is answered at once.
: >"$work/log"
make --jobs "$(nproc)" vmlinux >>"$work/log" 2>&1 &
building=$!
tail --lines=+1 --follow --pid="$building" "$work/log" | awk -v terminal="$([[ -t 1 ]] && echo 1)" '
    /^  (CC|AS) / { files++ }
    /^  (CC|AS) / && terminal { printf "\rcompiling: %d of about 1660 files", files; fflush() }
    /^  (CC|AS) / && !terminal && files % 250 == 0 { printf "compiling: %d of about 1660 files\n", files; fflush() }
    END { if (terminal) print "" }' &
wait "$building" || { building=''; tail -n 30 "$work/log" >&2; echo "the kernel can't be built" >&2; exit 1; }
building=''
wait

mkdir -p "$work/result/modules"
# Without symbols and relocations, which only debuggers and a kernel that moves itself would read.
objcopy --strip-all vmlinux "$work/result/vmlinux"
readelf --notes "$work/result/vmlinux" | grep -q 'Xen.*0x00000012' || { echo "the kernel has no PVH note" >&2; exit 1; }
cp modules.builtin "$work/result/modules/modules.builtin"
cp .config "$work/result/config"
echo "$key" >"$work/result/key"
rm -rf "$goal"
mv "$work/result" "$goal"
printf 'built target/guest-kernel/vmlinux, %d KiB, in %d min %02d s\n' \
    "$(($(stat --format %s "$goal/vmlinux") / 1024))" $((SECONDS / 60)) $((SECONDS % 60))
