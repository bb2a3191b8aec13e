#!/bin/sh
# Build the Debian package into build/deb. Usage: build-deb.sh [VERSION]
# Without a version it is the one of pyproject.toml. Everything is built in a copy: the clone is
# only read.
set -eu
cd "$(dirname "$0")/.."
ours=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
version=${1:-$ours}
out=$PWD/build/deb
source=$out/zgate-$version
mkdir -p "$out"
# One build at a time: two of one version would be in each other's way.
exec 9>"$out/lock"
flock 9
rm -rf "$source"
mkdir -p "$source"

# The time of the last change, in every file of the package: built again, it is the same package.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

tar --create --exclude=__pycache__ --exclude='*.so' --exclude='*.egg-info' \
    --exclude=deploy/prometheus/tests --exclude=docs/images \
    pyproject.toml setup.py requirements.txt requirements-run.txt README.md CHANGELOG.md LICENSE \
    deploy/prometheus deploy/grafana docs \
    systemd protocol bpf datapath identity config gateway host agent connector control cli lab |
    tar --extract --directory "$source"
cp -r deploy/debian "$source/debian"
for kind in sysusers tmpfiles; do cp "systemd/zgate.$kind" "$source/debian/"; done
sed -i "s/^version = \"$ours\"/version = \"$version\"/" "$source/pyproject.toml"
cat >"$source/debian/changelog" <<EOF
zgate ($version) unstable; urgency=medium

  * What has changed is in /usr/share/doc/zgate/changelog.gz.

 -- The zgate developers <zgate@example.org>  $(date -R -u -d "@$SOURCE_DATE_EPOCH")
EOF

log=$out/zgate-$version.log
echo "building $out/zgate_${version}_$(dpkg --print-architecture).deb (log: $log)"
(cd "$source" && dpkg-buildpackage --build=binary --no-sign) >"$log" 2>&1 || {
    tail -n 30 "$log" >&2
    exit 1
}
rm -rf "$source"
