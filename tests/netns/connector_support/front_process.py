"""A connector's data part by itself: chamber, front and health checks, told what to do by lines.

`python front_process.py TUN_FD`, the TUN being a device's; it is joined with the chamber's. The
first line of standard input is `{"services": [...], "limits": {...}}`, each further one a question;
every line is answered by one. Ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from zgate_connector.chamber import Chamber, ChamberError
from zgate_connector.config import LimitSettings, ServiceSettings
from zgate_connector.front import Front
from zgate_connector.health import HealthChecks

MTU_BYTES = 1420


class Connector:
    def __init__(self, chamber: Chamber, front: Front, health: HealthChecks) -> None:
        self.chamber = chamber
        self.front = front
        self.health = health
        self.draining: asyncio.Task[None] | None = None

    async def answer(self, question: dict[str, Any]) -> Any:
        match question:
            case {"op": "serve", "offers": offers}:
                addresses = {name: [ip_address(one) for one in own] for name, own in offers.items()}
                await self.front.serve(addresses)
                return {"open_files": open_files()}
            case {"op": "statuses"}:
                found = self.front.statuses()
                fields = ("health", "open_flows", "total_flows", "bytes_up", "bytes_down", "reason")
                return {one.name: {key: getattr(one, key) for key in fields} for one in found}
            case {"op": "counters"}:
                return await self.front.counters()
            case {"op": "drain", "deadline_s": deadline_s}:
                drain = self.front.drain(deadline_s)
                self.draining = asyncio.get_running_loop().create_task(drain)
                return {}
            case {"op": "is_drained"}:
                return self.draining is not None and self.draining.done()
            case {"op": "mtu", "mtu_bytes": mtu_bytes}:
                return await self.chamber.set_mtu(mtu_bytes)
            case {"op": "lost"}:
                return self.chamber.lost.result() if self.chamber.lost.done() else None
            case {"op": "open_files"}:
                return open_files()
            case {"op": "close"}:
                await self.front.close()
                return {"open_files": open_files()}
        raise ValueError(f"what is {question}?")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def serve(tun_fd: int) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    settings = json.loads(await reader.readline())
    services = [
        ServiceSettings.model_validate_json(json.dumps(one)) for one in settings["services"]
    ]
    limits = LimitSettings.model_validate_json(json.dumps(settings["limits"]))
    try:
        has_vnet_header = settings["has_vnet_header"]
        chamber = await Chamber.open("zgate0", mtu_bytes=MTU_BYTES, has_vnet_header=has_vnet_header)
    except ChamberError as error:
        say({"error": str(error)})
        return
    health = HealthChecks(services)
    health.start()
    front = Front(services, limits, health, chamber)
    pump = join(tun_fd, chamber.open_tun().fd)
    connector = Connector(chamber, front, health)
    try:
        say({"chamber": chamber.pid, "pid": os.getpid(), "uid": os.getuid()})
        while line := await reader.readline():
            try:
                say({"answer": await connector.answer(json.loads(line))})
            except ChamberError as error:
                say({"error": str(error)})
    finally:
        pump.kill()
        pump.wait()
        await front.close()
        await health.close()
        await chamber.close()


def join(one: int, other: int) -> subprocess.Popen[bytes]:
    script = Path(__file__).parent / "pump.py"
    started = subprocess.Popen(
        [sys.executable, script, str(one), str(other)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(one, other),
    )
    assert started.stdout is not None
    started.stdout.readline()  # it is ready
    return started


def say(message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(message), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
