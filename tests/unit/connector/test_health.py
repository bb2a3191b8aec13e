from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from zgate_connector.backends import BackendNames
from zgate_connector.config import HealthSettings, ServiceSettings
from zgate_connector.health import HealthChecks, HealthRecord, check
from zgate_protocol.service_capsule import Health

UP, DOWN = Health.UP, Health.DOWN


def service(
    port: int, *, name: str = "s", host: str = "127.0.0.1", **fields: Any
) -> ServiceSettings:
    document = {"id": name, "backend": f"{host}:{port}", **fields}
    return ServiceSettings.model_validate_json(json.dumps(document))


def record(rise: int = 1, fall: int = 2) -> HealthRecord:
    return HealthRecord(HealthSettings(rise=rise, fall=fall))


# What answers mean.


def test_down_before_the_first_answer() -> None:
    one = record()
    assert (one.health, one.reason) == (DOWN, "not checked yet")


@pytest.mark.parametrize(("problem", "health"), [(None, UP), ("refused", DOWN)])
def test_the_first_answer_decides_whatever_rise_and_fall(
    problem: str | None, health: Health
) -> None:
    one = record(rise=5, fall=5)
    assert one.record(problem)
    assert (one.health, one.reason) == (health, problem or "")


def test_rise_and_fall() -> None:
    one = record(rise=2, fall=3)
    one.record(None)
    answers = ["a", "b", None, "a", "b", "c", None, "d", None, None]
    expected = [UP, UP, UP, UP, UP, DOWN, DOWN, DOWN, DOWN, UP]
    seen = []
    for answer in answers:
        one.record(answer)
        seen.append(one.health)
    assert seen == expected
    assert one.reason == ""


def test_the_latest_reason_is_told_and_only_changes_are_changes() -> None:
    one = record()
    assert one.record("refused")
    assert not one.record("refused")
    assert one.record("no answer")
    assert one.reason == "no answer"
    assert one.record(None)
    assert not one.record(None)
    # One failure of two: still up, and without a reason.
    assert not one.record("hiccup")
    assert (one.health, one.reason) == (UP, "")


# Asking.


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def names(one: ServiceSettings) -> BackendNames:
    return BackendNames([one.backend.host])


async def test_a_tcp_backend_that_accepts(listener: socket.socket) -> None:
    one = service(listener.getsockname()[1])
    assert await check(one, names(one)) is None


async def test_a_tcp_backend_that_refuses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    one = service(port)
    problem = await check(one, names(one))
    assert problem == f"127.0.0.1 port {port} (tcp): Connection refused"


async def test_another_port_may_be_asked(listener: socket.socket) -> None:
    one = service(9, health={"port": listener.getsockname()[1]})
    assert await check(one, names(one)) is None


@contextlib.contextmanager
def udp_server(answers: bool) -> Iterator[tuple[int, list[bytes]]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        got: list[bytes] = []

        def run() -> None:
            with contextlib.suppress(TimeoutError):
                data, source = sock.recvfrom(100)
                got.append(data)
                if answers:
                    sock.sendto(b"fine", source)

        thread = threading.Thread(target=run)
        thread.start()
        yield sock.getsockname()[1], got
        thread.join()


def udp_service(port: int, timeout_s: float = 5.0) -> ServiceSettings:
    health = {"kind": "udp", "timeout_s": timeout_s, "probe_hex": "0a0b"}
    return service(port, protocol="udp", health=health)


async def test_a_udp_backend_that_answers() -> None:
    with udp_server(answers=True) as (port, got):
        one = udp_service(port)
        assert await check(one, names(one)) is None
        assert got == [b"\x0a\x0b"]


async def test_a_udp_backend_that_is_silent() -> None:
    with udp_server(answers=False) as (port, _):
        one = udp_service(port, 0.2)
        assert await check(one, names(one)) == f"127.0.0.1 port {port} (udp): no answer in 0.2 s"


async def test_a_udp_backend_that_is_not_there() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        port = gone.getsockname()[1]
    one = udp_service(port)
    assert await check(one, names(one)) == f"127.0.0.1 port {port} (udp): Connection refused"


async def test_a_name_that_does_not_resolve() -> None:
    one = service(9, host="nowhere.invalid")
    checks = HealthChecks([one])
    checks.start()
    await eventually(lambda: "does not resolve" in checks.state("s")[1])
    await checks.close()


# All of them.


async def eventually(condition: Any, timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_changes_are_told(listener: socket.socket) -> None:
    fast = {"interval_s": 0.1, "fall": 1}
    checks = HealthChecks([service(listener.getsockname()[1], health=fast)])
    changed: list[str] = []
    checks.add_listener(changed.append)
    assert checks.state("s") == (DOWN, "not checked yet")
    checks.start()
    await eventually(lambda: checks.state("s")[0] is UP)
    assert changed == ["s"]
    listener.close()
    await eventually(lambda: checks.state("s")[0] is DOWN)
    assert changed == ["s", "s"]
    checks.remove_listener(changed.append)
    await checks.close()


async def test_a_service_is_up_if_all_of_its_backends_are(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as gone:
        closed_port = gone.getsockname()[1]
    both = [service(port), service(closed_port, protocol="udp", health={"kind": "tcp"})]
    checks = HealthChecks([*both, service(port, name="other")])
    checks.start()
    await eventually(lambda: checks.state("other")[0] is UP)
    await eventually(lambda: "refused" in checks.state("s")[1])
    await checks.close()


async def test_without_checks_it_is_up_at_once() -> None:
    checks = HealthChecks(
        [service(9, health={"kind": "none"}), service(9, name="u", protocol="udp")]
    )
    assert checks.state("s") == (UP, "")
    assert checks.state("u") == (UP, "")
    checks.start()
    await checks.close()
