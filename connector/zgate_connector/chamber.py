"""A private network namespace, in a child process, that belongs to one session with a gateway.

In it is a TUN, which the session's packets come from and go to, and Linux's own TCP and UDP. This
process gets the TUN and the sockets, and no more: it stays in the host's network, where the
backends are. As root the child takes a network namespace, otherwise a user namespace with a network
namespace in it. Nothing of it is visible on the host, and all of it ends with this process.

See docs/adr/0018-a-chamber-for-tcp.md.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Self

from zgate_datapath.tun import Tun

from zgate_connector.chamber_messages import Message, encode, receive

IpAddress = IPv4Address | IPv6Address

_CAP_SYS_ADMIN = 21
_ANSWER_TIMEOUT_S = 10.0


class ChamberError(Exception):
    """A chamber could not be made, or does not do what it is asked; the text names the cause."""


class Chamber:
    """One chamber; made by `open`. Call from one event loop only.

    Attributes:
        lost: done, with the reason, when the child has ended by itself: sockets and TUN still
            work, but there will be no more of them. Close it, and open another.
        notes: what could not be set and is not needed; one line each.
        has_ipv6: whether this kernel has IPv6 at all.
    """

    def __init__(self, popen: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._popen = popen
        self._socket = sock
        self._exit_fd = os.pidfd_open(popen.pid)
        self._lock = asyncio.Lock()
        self._answer: asyncio.Future[tuple[Message, list[int]]] | None = None
        self._exited = asyncio.Event()
        self._is_closing = False
        self._tun: Tun | None = None
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self.notes: list[str] = []
        self.has_ipv6 = True
        self._loop.add_reader(sock.fileno(), self._on_readable)
        self._loop.add_reader(self._exit_fd, self._on_exit)

    @classmethod
    async def open(cls, name: str, *, mtu_bytes: int, has_vnet_header: bool = False) -> Self:
        """Make a chamber with a TUN called `name` in it, up, and a default route into it.

        `has_vnet_header` is for the native engine: see `Tun`. Nothing is let in but one new flow
        a second, until `limit_new_flows`.

        Raises:
            ChamberError: cause and cure.
        """
        chamber = cls(*_start_child())
        try:
            await chamber._open(name, mtu_bytes, has_vnet_header)
        except BaseException:
            await chamber.close()
            raise
        return chamber

    async def _open(self, name: str, mtu_bytes: int, has_vnet_header: bool) -> None:
        answer, (descriptor,) = await self._ask(
            1,
            op="open",
            name=name,
            mtu_bytes=mtu_bytes,
            has_vnet_header=has_vnet_header,
            is_privileged=_has_capability(_CAP_SYS_ADMIN),
        )
        self.notes = list(answer["notes"])
        self.has_ipv6 = bool(answer["has_ipv6"])
        self._tun = Tun(descriptor, name, has_vnet_header=has_vnet_header)

    @property
    def pid(self) -> int:
        """The child's process ID."""
        return self._popen.pid

    def open_tun(self) -> Tun:
        """The chamber's TUN: always the same one, closed with the chamber."""
        assert self._tun is not None
        return self._tun

    async def limit_new_flows(self, new_flows_per_s: int, udp_idle_timeout_s: int) -> None:
        """Let in so many new flows a second for each source and destination; TCP and UDP apart.

        A UDP flow without packets for the timeout counts as new. Counters begin anew.
        """
        await self._ask(
            0, op="limit", new_flows_per_s=new_flows_per_s, udp_idle_timeout_s=udp_idle_timeout_s
        )

    async def set_mtu(self, mtu_bytes: int) -> None:
        """Change the TUN's MTU."""
        await self._ask(0, op="mtu", mtu_bytes=mtu_bytes)

    async def set_addresses(self, addresses: Iterable[IpAddress]) -> None:
        """Have these addresses, and no others."""
        await self._ask(0, op="addresses", addresses=[str(one) for one in addresses])

    async def silence(self, addresses: Iterable[IpAddress]) -> None:
        """Leave echo requests to these addresses, and no others, unanswered."""
        await self._ask(0, op="silence", addresses=[str(one) for one in addresses])

    async def listen_tcp(self, address: IpAddress, port: int) -> socket.socket:
        """A listening socket inside; the address may be set later.

        What it accepts has keepalive and no delay (TCP_NODELAY).
        """
        _, (descriptor,) = await self._ask(1, op="tcp", address=str(address), port=port)
        return _adopt(descriptor)

    async def bind_udp(self, address: IpAddress, port: int) -> socket.socket:
        """A UDP socket inside; the address may be set later."""
        _, (descriptor,) = await self._ask(1, op="udp", address=str(address), port=port)
        return _adopt(descriptor)

    async def open_raw(self, version: int) -> socket.socket:
        """A raw socket inside that sends whole IP packets."""
        _, (descriptor,) = await self._ask(1, op="raw", version=version)
        return _adopt(descriptor)

    async def counters(self) -> dict[str, int]:
        """Packets that were dropped on the way in, by reason (`chamber_rules.COUNTERS`)."""
        answer, _ = await self._ask(0, op="counters")
        return dict(answer["counters"])

    async def close(self) -> None:
        """End it: the namespace goes with the last socket. Safe to call twice."""
        self._is_closing = True
        self._stop_asking("the chamber is closed")
        if not self._exited.is_set():
            # It has nothing to put in order, and an interpreter takes its time to end.
            self._popen.kill()
            await self._exited.wait()
        if self._tun is not None:
            self._tun.close()
        self.lost.cancel()

    # Questions and answers.

    async def _ask(self, descriptors: int, **question: object) -> tuple[Message, list[int]]:
        """Ask; the answer and as many descriptors as are expected."""
        task = self._loop.create_task(self._exchange(question))
        try:
            answer, received = await asyncio.shield(task)
        except asyncio.CancelledError:
            # The next question must not get this one's answer: it is waited for all the same.
            task.add_done_callback(_drop)
            raise
        if "error" in answer or len(received) != descriptors:
            _close_all(received)
            raise ChamberError(answer.get("error", "the chamber's answer makes no sense"))
        return answer, received

    async def _exchange(self, question: Message) -> tuple[Message, list[int]]:
        async with self._lock:
            if self._socket.fileno() < 0:
                raise ChamberError("the chamber has ended")
            self._answer = self._loop.create_future()
            try:
                self._socket.send(encode(question))
                async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                    return await self._answer
            except TimeoutError:
                self._popen.kill()
                raise ChamberError(f"the chamber's process (pid {self.pid}) hangs") from None
            except OSError as error:
                raise ChamberError(f"the chamber has ended: {error.strerror}") from error
            finally:
                self._answer = None

    def _on_readable(self) -> None:
        try:
            received = receive(self._socket)
        except BlockingIOError:
            return
        except (OSError, ValueError) as error:
            self._stop_asking(f"the chamber has ended: {error}")
            return
        if received is None:
            self._stop_asking("the chamber has ended")
        elif self._answer is not None and not self._answer.done():
            self._answer.set_result(received)
        else:
            _close_all(received[1])

    def _stop_asking(self, reason: str) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ChamberError(reason))

    def _on_exit(self) -> None:
        status = self._popen.wait()
        self._loop.remove_reader(self._exit_fd)
        os.close(self._exit_fd)
        how = f"killed by signal {-status}" if status < 0 else f"status {status}"
        reason = f"the chamber's process has ended ({how})"
        self._stop_asking(reason)
        self._exited.set()
        if not self._is_closing and not self.lost.done():
            self.lost.set_result(reason)


def _start_child() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The process, which waits for questions, and our end of the way to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    command = [sys.executable, "-P", "-m", "zgate_connector.chamber_child"]
    try:
        popen = subprocess.Popen(
            [*command, str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
        )
    except OSError as error:
        ours.close()
        raise ChamberError(f"cannot start the chamber's process: {error}") from error
    finally:
        theirs.close()
    return popen, ours


def _drop(task: asyncio.Task[tuple[Message, list[int]]]) -> None:
    if not task.cancelled() and task.exception() is None:
        _close_all(task.result()[1])


def _close_all(descriptors: Iterable[int]) -> None:
    for one in descriptors:
        os.close(one)


def _adopt(descriptor: int) -> socket.socket:
    os.set_inheritable(descriptor, False)
    sock = socket.socket(fileno=descriptor)
    sock.setblocking(False)
    return sock


def _has_capability(number: int) -> bool:
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> number & 1)
