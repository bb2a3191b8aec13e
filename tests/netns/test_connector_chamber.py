"""A chamber: what it needs, what it lets in, and that nothing of it is seen outside."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest
from connector_support.site import MANY, OFFERS, Address, Site, SiteError, open_site
from zgate_lab.lab import Lab
from zgate_lab.traffic import ping
from zgate_lab.waiting import wait_until

HEALTH = {"kind": "tcp", "interval_s": 0.1, "timeout_s": 1.0, "fall": 1}


def test_nothing_is_seen_on_the_host(site: Site) -> None:
    def seen() -> list[str]:
        commands = (("ip", "-o", "link"), ("ip", "-o", "address"), ("ip", "route"))
        return [site.host.run(*one).stdout for one in (*commands, ("nft", "list", "tables"))]

    before = seen()
    listener = site.listen()
    port = listener.getsockname()[1]
    site.begin([{"id": "pacs", "ports": [104], "backend": f"127.0.0.1:{port}"}], MANY)
    site.serve("pacs")
    site.connect(104).close()
    assert seen() == before
    own = Path(f"/proc/{site.chamber_pid}/ns/net").stat().st_ino
    assert own != Path(f"/proc/{site.pid}/ns/net").stat().st_ino


def test_a_user_without_root_has_none(lab: Lab) -> None:
    with open_site(lab, as_nobody=True) as site:
        site.begin([], {})
        assert site.uid != 0
        status = Path(f"/proc/{site.pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in status


def test_a_tun_device_that_may_not_be_used(lab: Lab) -> None:
    with (
        open_site(lab, as_nobody=True, has_tun=False) as site,
        pytest.raises(SiteError, match=r"cannot open /dev/net/tun: Permission denied; let the"),
    ):
        site.begin([], {})


def test_namespaces_that_may_not_be_made(lab: Lab) -> None:
    # Namespaces are counted for each user namespace: in one of its own nobody else is concerned.
    setting = "echo 0 > /proc/sys/user/max_net_namespaces"
    command = ("unshare", "-U", "-r", "sh", "-c", f'{setting} && exec "$@"', "sh")
    with (
        open_site(lab, as_nobody=False, within=command) as site,
        pytest.raises(SiteError, match=r"raise the sysctls .*max_net_namespaces = 0"),
    ):
        site.begin([], {})


@pytest.mark.parametrize("to", OFFERS)
def test_echo_is_answered_while_the_backend_is_healthy(site: Site, to: Address) -> None:
    listener = site.listen()
    port = listener.getsockname()[1]
    only = {"id": "pacs", "ports": [104], "backend": f"127.0.0.1:{port}", "health": HEALTH}
    site.begin([only], MANY)
    site.serve("pacs")
    wait_until(lambda: site.status("pacs")["health"] == 1, 5, "the backend to be healthy")
    wait_until(lambda: ping(site.device.name, to, count=1).received, 5, "an answer")
    listener.close()
    wait_until(lambda: site.status("pacs")["health"] == 0, 5, "the backend to be unhealthy")
    assert "Connection refused" in site.status("pacs")["reason"]
    wait_until(lambda: not ping(site.device.name, to, count=1).received, 5, "silence")
    assert site.ask("counters")["echo_unhealthy"] >= 1


@pytest.mark.parametrize("to", OFFERS)
def test_what_is_offered_again_is_reached_again(site: Site, to: Address) -> None:
    """As after every new session: in between the chamber has no address."""
    only = {"id": "pacs", "ports": [104], "backend": "127.0.0.1", "health": {"kind": "none"}}
    site.begin([only], MANY)
    for names in (("pacs",), (), ("pacs",)):
        site.serve(*names)
        if names:
            wait_until(lambda: ping(site.device.name, to, count=1).received, 5, "an answer")


@pytest.mark.parametrize("site", ["root"], indirect=True)
@pytest.mark.parametrize("to", OFFERS)
def test_echo_is_rationed(site: Site, to: Address) -> None:
    only = {"id": "pacs", "ports": [104], "backend": "127.0.0.1", "health": {"kind": "none"}}
    site.begin([only], MANY)
    site.serve("pacs")
    result = ping(site.device.name, to, count=60, interval_s=0.01)
    assert 10 <= result.received < 30
    assert site.ask("counters")["echo_limited"] == result.sent - result.received


@pytest.mark.parametrize("site", ["root"], indirect=True)
@pytest.mark.parametrize("to", [ip_address("10.101.255.1"), ip_address("fd7a:7a67:6174:66::1")])
def test_nothing_is_forwarded_or_answered_for_others(site: Site, to: Address) -> None:
    only = {"id": "pacs", "ports": [104], "backend": "127.0.0.1", "health": {"kind": "none"}}
    site.begin([only], MANY)
    site.serve("pacs")
    assert ping(site.device.name, OFFERS[0], count=1).received == 1
    assert ping(site.device.name, to, count=3).received == 0


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_what_no_rule_lets_in(site: Site) -> None:
    only = {"id": "pacs", "ports": [104], "backend": "127.0.0.1", "health": {"kind": "none"}}
    site.begin([only], MANY)
    site.serve("pacs")
    # A protocol that no service speaks.
    script = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132);"
        f" s.sendto(bytes(12), ('{OFFERS[0]}', 0))"
    )
    site.device.run("python3", "-c", script)
    wait_until(lambda: site.ask("counters")["not_offered"] == 1, 5, "the packet to be counted")


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_too_many_ports(site: Site) -> None:
    only = {"id": "all", "ports": ["1-65535"], "backend": "127.0.0.1", "health": {"kind": "none"}}
    site.begin([only], MANY)
    with pytest.raises(SiteError, match="131070 ports"):
        site.serve("all")


COUNTING = """\
table inet counting {
    counter heard {
    }
    chain input {
        type filter hook input priority 0;
        iifname tun0 counter name heard
    }
}
"""


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_the_kernel_in_it_says_nothing_by_itself(site: Site) -> None:
    site.device.run("nft", "-f", "-", stdin=COUNTING)
    listener = site.listen()
    port = listener.getsockname()[1]
    site.begin([{"id": "pacs", "ports": [104], "backend": f"127.0.0.1:{port}"}], MANY)
    site.serve("pacs")
    client = site.connect(104)
    listener.accept()
    # SYN-ACK, and no router solicitation or multicast report before or after it.
    assert "packets 1 " in site.device.run("nft", "list", "counters").stdout
    client.close()
