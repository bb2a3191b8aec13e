"""Whether backends answer: asked again and again, as configured, for all gateways together."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence

from zgate_protocol.service_capsule import Health

from zgate_connector.backends import BackendNames, connect_tcp, connect_udp
from zgate_connector.config import HealthKind, HealthSettings, ServiceSettings

logger = logging.getLogger(__name__)

_NOT_ASKED = "not checked yet"
_UDP_READ_BYTES = 65535


class HealthRecord:
    """What the answers so far mean; without clock or socket.

    Attributes:
        health: DOWN until the first answer, which decides by itself.
        reason: why it is down; empty when it is up.
    """

    def __init__(self, settings: HealthSettings) -> None:
        self._settings = settings
        self._in_a_row = 0
        self._is_new = True
        self.health = Health.DOWN
        self.reason = _NOT_ASKED

    def record(self, problem: str | None) -> bool:
        """Take an answer in, None being a good one; whether health or reason have changed."""
        before = (self.health, self.reason)
        answer = Health.UP if problem is None else Health.DOWN
        if self._is_new:
            self._is_new = False
            self.health = answer
        elif answer is self.health:
            self._in_a_row = 0
        else:
            self._in_a_row += 1
            needed = self._settings.rise if answer is Health.UP else self._settings.fall
            if self._in_a_row >= needed:
                self.health, self._in_a_row = answer, 0
        if self.health is Health.UP:
            self.reason = ""
        elif problem is not None:
            self.reason = problem
        return before != (self.health, self.reason)


class HealthChecks:
    """The backends of all services: where they are (`names`), and whether they answer."""

    def __init__(self, services: Sequence[ServiceSettings]) -> None:
        self.names = BackendNames(one.backend.host for one in services)
        self._records = [(one, HealthRecord(one.health)) for one in services]
        for service, record in self._records:
            if service.health_kind is HealthKind.NONE:
                record.record(None)
        self._listeners: list[Callable[[str], None]] = []
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to ask; in a running event loop."""
        self.names.start()
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._keep_asking(service, record))
            for service, record in self._records
            if service.health_kind is not HealthKind.NONE
        ]

    async def close(self) -> None:
        """Ask no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self.names.close()

    def add_listener(self, listener: Callable[[str], None]) -> None:
        """Call it with a service's id whenever its health, or the reason, changes."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Callable[[str], None]) -> None:
        """Do not call it any more."""
        self._listeners.remove(listener)

    def state(self, service_id: str) -> tuple[Health, str]:
        """A service's health, and why it is down: it is up if all of its backends are."""
        for service, record in self._records:
            if service.id == service_id and record.health is Health.DOWN:
                return Health.DOWN, record.reason
        return Health.UP, ""

    async def _keep_asking(self, service: ServiceSettings, record: HealthRecord) -> None:
        while True:
            problem = await check(service, self.names)
            if record.record(problem):
                level = logging.INFO if record.health is Health.UP else logging.WARNING
                health = record.health.name.lower()
                logger.log(
                    level,
                    "service %(service)s: %(health)s %(reason)s",
                    {
                        "event": "service_health",
                        "service": service.id,
                        "health": health,
                        "reason": record.reason,
                    },
                )
                for listener in list(self._listeners):
                    listener(service.id)
            await asyncio.sleep(service.health.interval_s)


async def check(service: ServiceSettings, names: BackendNames) -> str | None:
    """Ask a backend once; what is wrong with it, or None."""
    where = f"{service.backend.host} port {service.health_port} ({service.health_kind})"
    timeout_s = service.health.timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            if service.health_kind is HealthKind.TCP:
                await _check_tcp(service, names)
            else:
                await _check_udp(service, names)
    except TimeoutError:
        return f"{where}: no answer in {timeout_s:g} s"
    except OSError as error:
        # asyncio puts a text of its own where the system's is.
        return f"{where}: {os.strerror(error.errno) if error.errno else error}"
    return None


async def _check_tcp(service: ServiceSettings, names: BackendNames) -> None:
    addresses = await names.look_up(service.backend.host)
    (await connect_tcp(addresses, service.health_port)).close()


async def _check_udp(service: ServiceSettings, names: BackendNames) -> None:
    addresses = await names.look_up(service.backend.host)
    with connect_udp(addresses, service.health_port) as sock:
        sock.send(service.health.probe_hex)
        await asyncio.get_running_loop().sock_recv(sock, _UDP_READ_BYTES)
