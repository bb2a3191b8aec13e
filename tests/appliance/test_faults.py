"""The unit's surroundings break, in a sandbox and without root: sessions go on, and it recovers.

The same faults as in tests/e2e/test_faults.py, which tries more of each; here it is the unit as it
is installed, and the agent's pings are counted meanwhile.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from units_support import AGENT, GATEWAY, TIMEOUT_S, Units, drop_in, main_pid, wait_active
from zgate_lab.waiting import wait_until
from zgate_lab.wall_clock import VARIABLE, build_library

pytestmark = pytest.mark.timeout(600)

STATE = "/var/lib/zgate"
CLOCK = "/etc/wall-clock"
LIBRARY = "/usr/local/lib/libzgatelabclock.so"
PING_INTERVAL_S = 0.05
#: Nothing that is broken here is in a packet's way.
MAX_LOST_PINGS = 3
_DROP_IN = f"""\
[Service]
Environment=LD_PRELOAD={LIBRARY} {VARIABLE}={CLOCK}
"""


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Units]:
    """Gateway and agent; the state is on a small disk, and the daemon's clock can be set."""
    with Units.open() as made:
        gateway = made.gateway
        wait_active(gateway, GATEWAY)
        gateway.copy_in(build_library(tmp_path_factory.mktemp("clock")), LIBRARY)
        set_clock(made, timedelta(0))
        with drop_in(gateway, GATEWAY, _DROP_IN):
            gateway.run("systemctl", "stop", GATEWAY)
            gateway.shell(
                f"cp -a {STATE} /root/state; mount -t tmpfs -o size=8m,mode=700 tmpfs {STATE};"
                f"chown zgate-gateway: {STATE}; cp -a /root/state/. {STATE}"
            )
            gateway.run("systemctl", "start", GATEWAY)
            made.device.run("systemctl", "start", AGENT)
            made.wait_connected()
            wait_until(made.reaches_office, TIMEOUT_S, "a ping through the tunnel")
            yield made


def set_clock(units: Units, ahead: timedelta) -> None:
    """The daemon's wall clock is so far ahead of the host's from now on, or behind."""
    units.gateway.write(f"{CLOCK}.new", f"{ahead.total_seconds():.0f}", mode="644")
    units.gateway.run("mv", f"{CLOCK}.new", CLOCK)


def status(units: Units) -> dict[str, Any]:
    answer = units.gateway.run("zgatectl", "--json", "status", check=False)
    found: dict[str, Any] = json.loads(answer.stdout) if answer.returncode == 0 else {}
    return found


def wait_alert(units: Units, name: str) -> str:
    """Wait until an alert is there; its text."""

    def found() -> str:
        return next((a["text"] for a in status(units).get("alerts", []) if a["name"] == name), "")

    return wait_until(found, TIMEOUT_S, f"the alert {name}")


def wait_all_is_well(units: Units) -> None:
    wait_until(lambda: status(units).get("alerts") == [], TIMEOUT_S, "the end of all alerts")


@contextmanager
def sessions_go_on(units: Units) -> Iterator[None]:
    """The agent's session is the same at the end, and hardly a ping was lost."""
    wait_all_is_well(units)
    before = units.wait_session("alice")["session_id"]
    pid = main_pid(units.gateway, GATEWAY)
    office = str(units.internet.office.ipv4)
    units.device.run(
        *("systemd-run", "--unit=pinger", "--collect", "ping", "-n", "-q"),
        *("-i", str(PING_INTERVAL_S), office),
    )
    try:
        yield
        wait_all_is_well(units)
        assert units.wait_session("alice")["session_id"] == before
        assert main_pid(units.gateway, GATEWAY) == pid
    finally:
        units.device.run("systemctl", "kill", "--signal=INT", "pinger", check=False)
        wait_until(lambda: "packet loss" in pings(units), TIMEOUT_S, "what ping counted")
    sent, received = map(
        int, re.findall(r"(\d+) packets transmitted, (\d+) received", pings(units))[-1]
    )
    assert received >= 20 and sent - received <= MAX_LOST_PINGS, (sent, received)
    units.device.run("journalctl", "--rotate", "--vacuum-time=1us", check=False)
    assert "Traceback" not in units.gateway.journal(GATEWAY)


def pings(units: Units) -> str:
    return units.device.journal("pinger")


def test_a_full_disk(units: Units) -> None:
    with sessions_go_on(units):
        units.gateway.shell(f"cat /dev/zero >{STATE}/fill || true")
        assert "0.0 of 8 MiB are free" in wait_alert(units, "disk_full")
        units.gateway.run("rm", f"{STATE}/fill")


def test_a_read_only_state_directory(units: Units) -> None:
    """In the unit's own mounts, for it has the folder there by itself."""
    inside = ("nsenter", "-m", "-t", str(main_pid(units.gateway, GATEWAY)))
    with sessions_go_on(units):
        units.gateway.run(*inside, "mount", "--bind", STATE, STATE)
        units.gateway.run(*inside, "mount", "-o", "remount,bind,ro", STATE)
        assert "Read-only file system" in wait_alert(units, "state_not_writable")
        # Whoever has a file of it open keeps that: the gateway has to open it anew.
        units.gateway.run(*inside, "umount", "--lazy", STATE)


def test_a_lost_store(units: Units) -> None:
    with sessions_go_on(units):
        units.gateway.shell(f"rm {STATE}/zgate.db*")
        wait_until(
            lambda: units.gateway.exists(f"{STATE}/zgate.db"), TIMEOUT_S, "the store's new file"
        )
        journal = units.gateway.journal(GATEWAY)
        assert "alert store_unavailable begins" in journal and "its file was deleted" in journal


@pytest.mark.parametrize("ahead", [timedelta(hours=1), -timedelta(hours=1)], ids=["ahead", "back"])
def test_the_clock_jumps(units: Units, ahead: timedelta) -> None:
    with sessions_go_on(units):
        set_clock(units, ahead)
        assert ("ahead" if ahead > timedelta(0) else "back") in wait_alert(units, "clock_jumped")
        set_clock(units, timedelta(0))


def test_the_policy_directory_is_deleted(units: Units) -> None:
    with sessions_go_on(units):
        units.gateway.shell("cp -a /etc/zgate /root/etc-zgate; rm -rf /etc/zgate")
        assert "stays in force" in wait_alert(units, "policy_missing")
        units.gateway.run("mv", "/root/etc-zgate", "/etc/zgate")


def test_the_runtime_directory_is_emptied(units: Units) -> None:
    with sessions_go_on(units):
        units.gateway.shell("rm -rf /run/zgate/*")
        wait_until(lambda: status(units), TIMEOUT_S, "an answer on the API socket")
