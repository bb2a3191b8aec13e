"""Many clients in one process, without TUNs: dials, holds or ends sessions.

    python -m bench.load.sessions rate 192.0.2.1 FOLDER --seconds 8 --concurrency 16
    python -m bench.load.sessions hold 192.0.2.1 FOLDER --count 2000 --concurrency 16

FOLDER has ca.crt and, for client i, i.crt and i.key. Every session is a whole one: handshake with
both certificates verified, HTTP/3 settings, CONNECT-IP, addresses and routes. `rate` ends each
at once and opens the next; `hold` keeps them until it is told to stop. The last line that it prints
is JSON.
"""

import argparse
import asyncio
import json
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from zgate_datapath.client import ClientConfig, TunnelClient, TunnelError

DONE = "sessions: "
CONNECT_TIMEOUT_S = 30.0
#: Nothing is sent for so long: idle sessions are to be idle.
IDLE_TIMEOUT_S = 600.0


def config_of(gateway: str, server_name: str, folder: Path, number: int) -> ClientConfig:
    """The settings of one client."""
    return ClientConfig(
        host=gateway,
        port=443,
        server_name=server_name,
        ca_file=str(folder / "ca.crt"),
        certificate_file=str(folder / f"{number}.crt"),
        key_file=str(folder / f"{number}.key"),
        idle_timeout_s=IDLE_TIMEOUT_S,
        keepalive_s=IDLE_TIMEOUT_S / 2,
        # No packets are carried; the native engine's buffers would be memory for nothing.
        engine="python",
    )


async def dial(config: ClientConfig) -> TunnelClient:
    """One session that is up."""
    client = TunnelClient(config=config, tun=None, on_change=lambda _: None)
    await client.connect(CONNECT_TIMEOUT_S)
    return client


class Dialer:
    """Opens sessions, several at a time."""

    def __init__(self, configs: list[ClientConfig], concurrency: int) -> None:
        self._configs = configs
        self._concurrency = concurrency
        self.opened = 0
        self.failures: list[str] = []
        self.clients: list[TunnelClient] = []

    async def rate(self, seconds: float) -> None:
        """Up and down again, for so long; each of the concurrent ones has identities of its own."""
        end_s = time.monotonic() + seconds

        async def work(own: list[ClientConfig]) -> None:
            turn = 0
            while time.monotonic() < end_s:
                client = await self._try(own[turn % len(own)])
                turn += 1
                if client is not None:
                    await client.close("measured")

        await asyncio.gather(
            *(work(self._configs[one :: self._concurrency]) for one in range(self._concurrency))
        )

    async def hold(self) -> None:
        """All of them, once."""
        waiting = iter(self._configs)

        async def work(rest: Iterator[ClientConfig]) -> None:
            for config in rest:
                client = await self._try(config)
                if client is not None:
                    self.clients.append(client)

        await asyncio.gather(*(work(waiting) for _ in range(self._concurrency)))

    async def _try(self, config: ClientConfig) -> TunnelClient | None:
        try:
            client = await dial(config)
        except TunnelError as error:
            self.failures.append(str(error))
            return None
        self.opened += 1
        return client


def say(dialer: Dialer, started_s: float) -> None:
    """What was done, for whoever started this."""
    used = os.times()
    said = {
        "opened": dialer.opened,
        "failed": len(dialer.failures),
        "failure": dialer.failures[0] if dialer.failures else "",
        "seconds": time.monotonic() - started_s,
        "cpu_s": used.user + used.system,
    }
    print(f"{DONE}{json.dumps(said)}", flush=True)


async def run(arguments: argparse.Namespace) -> None:
    """As told on the command line."""
    folder: Path = arguments.folder
    configs = [
        config_of(arguments.gateway, arguments.server_name, folder, number)
        for number in range(arguments.count)
    ]
    dialer = Dialer(configs, arguments.concurrency)
    started_s = time.monotonic()
    if arguments.mode == "rate":
        await dialer.rate(arguments.seconds)
        say(dialer, started_s)
        return
    await dialer.hold()
    say(dialer, started_s)
    await asyncio.sleep(IDLE_TIMEOUT_S)


def main() -> None:
    """Run until done, or until the one who started it has ended it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("mode", choices=["rate", "hold"])
    parser.add_argument("gateway")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--server-name", default="gateway.bench")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=16)
    arguments = parser.parse_args()
    wanted = arguments.count + 256
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, _hard_limit())))
    asyncio.run(run(arguments))


def _hard_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


if __name__ == "__main__":
    main()
