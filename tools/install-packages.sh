#!/bin/sh
# Install the Debian packages that are missing. Usage: install-packages.sh LIST...
# Each LIST is a file with one package per line. Does nothing, and needs no network and no
# root, where all are there.
set -eu
cd "$(dirname "$0")"
missing=
for list in "$@"; do
    while read -r package; do
        case $package in '' | '#'*) continue ;; esac
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
        echo "cannot install without root: run as root:  apt-get install$missing" >&2
        exit 1
    }
    sudo=sudo
fi
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get -qq update
# shellcheck disable=SC2086 # a list of words
$sudo apt-get -qq -y install --no-install-recommends $missing >/dev/null
