#!/usr/bin/env bash
# Makes a Debian package of a binary that has been built: `scripts/deb.sh [BINARY [VERSION]]`, by
# default that of `make build`. Prints where the package is: target/debian/caddis_VERSION_amd64.deb.
# The same sources and binary give the same package.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${1:-target/release/caddis}
[[ -x $binary ]] || { echo "there is no $binary: make build" >&2; exit 1; }

# A commit that is no release has a version before the next one, and after those of earlier commits.
version_of_sources() {
    local version moment
    version=$(sed -n '/^\[workspace.package\]/,/^\[/ s/^version = "\(.*\)"$/\1/p' Cargo.toml)
    moment=$(TZ=UTC git log -1 --format=%cd --date=format-local:%Y%m%d.%H%M%S 2>/dev/null) || true
    if [[ -z $moment ]] || git tag --points-at HEAD | grep -qx "v$version"; then
        echo "$version"
    else
        echo "$version~git$moment"
    fi
}
version=${2:-$(version_of_sources)}
# Times of files, and of the package.
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || stat --format %Y Cargo.toml)}"
export SOURCE_DATE_EPOCH

mkdir -p target/debian
work=$(mktemp -d target/debian/build.XXXXXX)
trap 'rm -rf "$work"' EXIT
tree=$work/tree
put() { install -D -m "$1" "$2" "$tree/$3"; }

put 755 "$binary" usr/bin/caddis
strip --strip-all "$tree/usr/bin/caddis"
caddis=$tree/usr/bin/caddis
sed 's#/usr/local/bin/#/usr/bin/#g; /^# Caddis on one host/,/^#   cp/d' packaging/caddis.service >"$work/caddis.service"
put 644 "$work/caddis.service" usr/lib/systemd/system/caddis.service
put 644 packaging/caddis.slice usr/lib/systemd/system/caddis.slice
put 644 packaging/caddis.toml etc/caddis/caddis.toml

"$caddis" man --directory "$tree/usr/share/man/man1" >/dev/null
for shell in bash zsh fish; do "$caddis" completion "$shell" >"$work/$shell"; done
put 644 "$work/bash" usr/share/bash-completion/completions/caddis
put 644 "$work/zsh" usr/share/zsh/vendor-completions/_caddis
put 644 "$work/fish" usr/share/fish/vendor_completions.d/caddis.fish

put 644 packaging/debian/copyright usr/share/doc/caddis/copyright
put 644 CHANGELOG.md usr/share/doc/caddis/changelog
gzip -9 --no-name "$tree"/usr/share/man/man1/* "$tree/usr/share/doc/caddis/changelog"

# Which packages have the libraries it is linked with.
mkdir "$work/debian"
printf 'Source: caddis\n\nPackage: caddis\nArchitecture: amd64\n' >"$work/debian/control"
libraries=$(cd "$work" && dpkg-shlibdeps -O -e"tree/usr/bin/caddis" 2>/dev/null | sed -n 's/^shlibs:Depends=//p')
[[ -n $libraries ]] || { echo "dpkg-shlibdeps does not know the libraries of $binary" >&2; exit 1; }

mkdir "$tree/DEBIAN"
size=$(du --summarize --apparent-size --block-size=1024 "$tree" | cut -f1)
sed "s/@VERSION@/$version/; s/@SIZE@/$size/; s/@LIBRARIES@/$libraries/" packaging/debian/control >"$tree/DEBIAN/control"
install -m 755 packaging/debian/postinst packaging/debian/prerm packaging/debian/postrm "$tree/DEBIAN/"
echo /etc/caddis/caddis.toml >"$tree/DEBIAN/conffiles"
(cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
find "$tree" -type d -exec chmod 755 {} +
find "$tree/usr/share" -type f -exec chmod 644 {} +

package=target/debian/caddis_${version}_amd64.deb
dpkg-deb --root-owner-group --build "$tree" "$work/package.deb" >/dev/null
mv "$work/package.deb" "$package"
echo "$package"
