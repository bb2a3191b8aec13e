#!/bin/sh
# Install the Debian packages that are missing. Usage: install-packages.sh LIST...
# Each LIST is a file with one package per line, and behind it the only architecture that has it, if
# there is one. Does nothing, and needs no network and no root, where all are there.
set -eu
cd "$(dirname "$0")"
if ! command -v apt-get >/dev/null; then
    echo "this needs Debian 12 (no apt-get here); the packages are listed in tools/*.txt" >&2
    exit 1
fi
here=$(dpkg --print-architecture)
missing=
for list in "$@"; do
    while read -r package architecture; do
        case $package in '' | '#'*) continue ;; esac
        [ "${architecture:-$here}" = "$here" ] || continue
        if ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
            missing="$missing $package"
        fi
    done <"$list"
done
[ -n "$missing" ] || exit 0
echo "installing Debian packages:$missing"
sudo=
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || {
        echo "installing needs root, and there is no sudo; as root:  apt-get install$missing" >&2
        exit 1
    }
    sudo=sudo
fi
# Through sudo the environment does not pass, so `env` comes after it: without a frontend of
# none, iperf3's package would wait for an answer that nobody sees asked. A machine that has just
# started holds the lock for its own upgrades.
apt_get() {
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@"
}
apt_get update
# Some of them are servers. What the tests need of them is their programs: none starts here now.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '$sudo rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
    $sudo chmod 755 "$policy"
fi
# shellcheck disable=SC2086 # a list of words
apt_get -y install --no-install-recommends $missing >/dev/null
