"""The keeper of /etc/resolv.conf: root, so that no agent has to be (zgate-resolv-conf.service).

Agents connect and say which name server they want first (`zgate_agent.kept_resolv_conf`). That is
all that they can say: what comes in here crosses the border between an agent, which may be taken
over by what it receives, and root. A wish is one address, read strictly; everything else in the
file is the host's own, or a constant of ours.

The wishes of all agents are merged. While there is one, the file has our lines; without any, it is
what it was. systemd starts the keeper for the first connection, and while there is a backup of the
file; it ends by itself when nobody has been connected for a while.

    python3 -m zgate_agent.keeper

No configuration, and few libraries: what root runs should be little.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from zgate_config.logs import configure_logging
from zgate_host.systemd import ActivationError, activated_sockets
from zgate_protocol.ip_range import IpAddress

from zgate_agent.kept_resolv_conf import DONE, MAX_LINE_BYTES
from zgate_agent.resolv_conf import MAX_OURS, ResolvConf, ResolvConfError

logger = logging.getLogger(__name__)

IDLE_S = 10.0
MAX_CONNECTIONS = 32
MAX_WISH_BYTES = 64

RESOLV_CONF = Path("/etc/resolv.conf")
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2


class BadWish(Exception):
    """What an agent says is no wish; the text says why not, and repeats nothing of it."""


def parse_wish(line: bytes) -> IpAddress | None:
    """The address in a line, written as it is always written; None: the line is empty.

    Raises:
        BadWish: it is anything else, or no address that a name server in a tunnel can have.
    """
    if len(line) > MAX_WISH_BYTES or not line.endswith(b"\n"):
        raise BadWish("expected a line with one address")
    try:
        text = line[:-1].decode("ascii")
        address = ip_address(text) if text else None
    except ValueError:
        raise BadWish("expected one IP address, and nothing else") from None
    if address is None:
        return None
    if str(address) != text:
        raise BadWish("expected the address in its shortest form")
    if isinstance(address, IPv6Address) and (address.scope_id or address.ipv4_mapped):
        raise BadWish("expected an address without a zone and without another inside")
    if address.is_unspecified or address.is_loopback or address.is_link_local:
        raise BadWish("expected the address of another host")
    if address.is_multicast or (address.version == 4 and address.is_reserved):
        raise BadWish("expected the address of one host")
    return address


class Keeper:
    """Puts into the file what all those who are connected want, and nothing else of ours."""

    def __init__(self, file: ResolvConf) -> None:
        self._file = file
        self._wishes: dict[asyncio.StreamWriter, IpAddress] = {}
        self._connected: set[asyncio.StreamWriter] = set()
        self._busy, self._alone = asyncio.Event(), asyncio.Event()
        self._alone.set()

    async def attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Do what one agent wants, until its connection ends."""
        if len(self._connected) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._connected.add(writer)
        self._busy.set()
        self._alone.clear()
        try:
            while line := await reader.readline():
                answer = self._answer(writer, line)
                writer.write(answer.encode(errors="replace")[: MAX_LINE_BYTES - 1] + b"\n")
                await writer.drain()
                if answer != DONE:
                    return
        except (ConnectionError, ValueError):
            pass  # it is gone; or its line has no end
        finally:
            self._leave(writer)

    def _leave(self, writer: asyncio.StreamWriter) -> None:
        self._connected.discard(writer)
        if not self._connected:
            self._busy.clear()
            self._alone.set()
        writer.close()
        self._wishes.pop(writer, None)
        self.settle()

    def _answer(self, who: asyncio.StreamWriter, line: bytes) -> str:
        try:
            self._want(who, parse_wish(line))
        except BadWish as error:
            logger.warning("refused: %(error)s", {"event": "wish_refused", "error": error})
            return f"refused: {error}"
        except ResolvConfError as error:
            logger.warning("%(error)s", {"event": "dns_not_changed", "error": error})
            return " ".join(str(error).split())
        return DONE

    def _want(self, who: asyncio.StreamWriter, server: IpAddress | None) -> None:
        others = {one: wish for one, wish in self._wishes.items() if one is not who}
        wishes = others if server is None else {**others, who: server}
        if len(set(wishes.values())) > MAX_OURS:
            raise ResolvConfError(
                f"{self._file.path} has name servers of {MAX_OURS} other agents: no room for more"
            )
        before, self._wishes = self._wishes, wishes
        try:
            self._write()
        except ResolvConfError:
            self._wishes = {one: wish for one, wish in before.items() if one is not who}
            raise

    def settle(self) -> bool:
        """Bring the file to what is wanted now; whether that is done. Never raises."""
        try:
            self._write()
        except ResolvConfError as error:
            logger.error("%(error)s", {"event": "dns_not_changed", "error": error})
            return False
        return True

    def _write(self) -> None:
        servers = list(dict.fromkeys(self._wishes.values()))
        if servers:
            if self._file.put(servers):
                logger.info(
                    "%(path)s: agents' name servers come first: %(servers)s",
                    {
                        "event": "resolv_conf_changed",
                        "path": self._file.path,
                        "servers": _listed(servers),
                    },
                )
        elif self._file.put_back():
            logger.info(
                "%(path)s is without agents' name servers again",
                {"event": "resolv_conf_put_back", "path": self._file.path},
            )

    async def unneeded(self) -> None:
        """Return when nobody has been connected for a while."""
        while True:
            await self._alone.wait()
            try:
                async with asyncio.timeout(IDLE_S):
                    await self._busy.wait()
            except TimeoutError:
                return

    def dismiss(self) -> bool:
        """Close all connections, and put the file back; whether that is done."""
        for writer in self._connected:
            writer.close()
        self._wishes.clear()
        return self.settle()


def _listed(servers: Iterable[IpAddress]) -> str:
    return ", ".join(map(str, servers))


async def keep(listener: socket.socket, file: ResolvConf) -> int:
    """Keep the file for those who connect, until nobody does or SIGTERM; returns the exit code."""
    keeper = Keeper(file)
    keeper.settle()  # what a killed one, or a power failure, has left
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    loop.add_signal_handler(signal.SIGINT, stopped.set)
    server = await asyncio.start_unix_server(keeper.attend, sock=listener, limit=MAX_WISH_BYTES)
    ends = [asyncio.create_task(one) for one in (stopped.wait(), keeper.unneeded())]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in ends:
            task.cancel()
        server.close()
        is_done = keeper.dismiss()
    return 0 if is_done else EXIT_FAILED


def main() -> int:
    """Keep /etc/resolv.conf, on the one socket that systemd hands over; returns the exit code."""
    configure_logging("info")
    try:
        sockets = [one for group in activated_sockets().values() for one in group]
    except ActivationError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_INPUT
    if len(sockets) != 1:
        sys.stderr.write("no socket was handed over: start zgate-resolv-conf.socket\n")
        return EXIT_BAD_INPUT
    return asyncio.run(keep(sockets[0], ResolvConf(RESOLV_CONF)))


if __name__ == "__main__":
    sys.exit(main())
