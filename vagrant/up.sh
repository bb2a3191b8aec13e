#!/bin/sh
# `vagrant up`, what it is for, and `vagrant destroy`: emulated.sh ./up.sh
set -eu
[ -n "${ZGATE_DEB:-}" ] || ls ../build/deb/zgate_*.deb >/dev/null 2>&1 || {
    echo "there is no package: make deb" >&2
    exit 1
}
trap 'vagrant destroy --force --no-parallel >/dev/null || true' EXIT
began=$(date +%s)
vagrant up --no-parallel
echo "up after $(($(date +%s) - began)) s"
for agent in $(vagrant status --machine-readable | sed -n 's/^[0-9]*,\(agent[0-9]*\),state,running$/\1/p'); do
    answer=$(vagrant ssh "$agent" --command 'curl --silent --show-error --max-time 60 http://10.20.0.5/')
    echo "$agent: $answer"
    [ "$answer" = "the office answers" ]
done
vagrant ssh gateway --command 'sudo zgatectl sessions'
