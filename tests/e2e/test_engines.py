"""Both packet engines in both roles: they speak with each other, and say who they are."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from e2e_support.world import ECHO_PORT, STREAM_PORT, prepare
from zgate_datapath.engine import native_problem
from zgate_lab.deployment import Deployment
from zgate_lab.echo import UdpClient, UdpEcho
from zgate_lab.internet import Internet
from zgate_lab.stream import TcpStream
from zgate_lab.traffic import ping

needs_native = pytest.mark.skipif(bool(native_problem()), reason="the native engine is not built")

MEGABYTE = 1_000_000
# As where the extension was not built: `import zgate_datapath._native` fails.
WITHOUT_NATIVE = """\
import sys
sys.modules["zgate_datapath._native"] = None
"""


ENGINES = [pytest.param("native", marks=needs_native), "python"]


@pytest.fixture(scope="module", params=ENGINES)
def gateway(request: pytest.FixtureRequest, identities: Path) -> Iterator[Deployment]:
    """A gateway with one engine."""
    with Internet.open() as internet:
        zgate = prepare(internet, identities)
        zgate.start_gateway(engine=request.param)
        assert zgate.gateway_status()["engine"] == request.param
        yield zgate
        zgate.stop()


@pytest.fixture(params=ENGINES)
def mixed(request: pytest.FixtureRequest, gateway: Deployment) -> Iterator[Deployment]:
    """And an agent with the same or the other."""
    gateway.start_agent("alice", gateway.internet.device1, engine=request.param)
    yield gateway
    gateway.agents.pop("alice").stop()


def both_families(zgate: Deployment) -> tuple[IPv4Address, IPv6Address]:
    return zgate.internet.office.ipv4, zgate.internet.office.ipv6


@pytest.mark.timeout(180)
def test_every_engine_speaks_with_every_other(mixed: Deployment) -> None:
    alice, office = mixed.internet.device1.namespace.name, mixed.internet.office
    for address in both_families(mixed):
        assert ping(alice, address, count=5).lost == 0
        for upload in (True, False):
            with TcpStream(alice, office, address, STREAM_PORT, upload=upload) as stream:
                stream.wait_for_more(5 * MEGABYTE, 30.0)
                stream.finish()
    with UdpEcho(office, ECHO_PORT):
        for address in both_families(mixed):
            with UdpClient(alice, address, ECHO_PORT) as client:
                client.ask(b"the way is learned", timeout_s=5.0)
                for size in (0, 1, 1200, 1350, 8000):
                    payload = bytes(number & 0xFF for number in range(size))
                    # The first of a size above the MTU may be lost to learning the way.
                    answers = (client.ask(payload, timeout_s=5.0) for _ in range(3))
                    assert any(answer == payload for answer in answers), f"{size} bytes"


def _hide_native(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "sitecustomize.py").write_text(WITHOUT_NATIVE)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_without_the_extension_the_python_engine_runs_and_says_so_once(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _hide_native(monkeypatch, tmp_path)
    gateway = deployment.start_gateway()
    deployment.start_agent("alice", deployment.internet.device1)
    monkeypatch.delenv("PYTHONPATH")
    assert deployment.gateway_status()["engine"] == "python"
    assert "python engine" in deployment.run("--socket", str(deployment.socket), "status")
    assert gateway.output().count("the Python engine runs") == 1
    assert deployment.agents["alice"].output().count("the Python engine runs") == 1
    alice = deployment.internet.device1.namespace.name
    assert ping(alice, deployment.internet.office.ipv4, count=3).lost == 0


def test_an_engine_that_is_asked_for_and_not_there_is_refused(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _hide_native(monkeypatch, tmp_path)
    gateway = deployment.spawn_gateway(engine="native")
    assert gateway.wait(30.0) != 0
    assert "not built" in gateway.output()
    assert "libssl-dev" in gateway.output()
