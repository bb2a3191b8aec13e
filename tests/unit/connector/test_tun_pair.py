"""Two TUNs as one cable, with socket pairs in their places."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass

import pytest
from zgate_connector.tun_pair import TunPair


@dataclass
class End:
    """A TUN, and what the kernel's side of it sends and gets."""

    name: str
    ours: socket.socket
    kernels: socket.socket
    has_vnet_header: bool = True

    @classmethod
    def make(cls, name: str) -> End:
        ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        kernels.setblocking(False)
        return cls(name, ours, kernels)

    @property
    def fd(self) -> int:
        return self.ours.fileno()

    async def received(self) -> bytes:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.kernels, 70_000), 5)


async def test_packets_go_both_ways_whole() -> None:
    one, other, gone = End.make("one"), End.make("other"), []
    pair = TunPair(one, other, gone.append)  # type: ignore[arg-type]
    packets = [bytes([number]) * size for number, size in enumerate((11, 1500, 60_000), 1)]
    for packet in packets:
        one.kernels.send(packet)
        assert await other.received() == packet
        other.kernels.send(packet)
        assert await one.received() == packet
    pair.close()
    pair.close()
    one.kernels.send(b"lost")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.get_running_loop().sock_recv(other.kernels, 10), 0.05)
    assert gone == []


async def test_a_full_queue_loses_packets_and_no_more() -> None:
    one, other = End.make("one"), End.make("other")
    pair = TunPair(one, other, lambda _: None)  # type: ignore[arg-type]
    for _ in range(2000):
        try:
            one.kernels.send(bytes(1000))
        except BlockingIOError:
            await asyncio.sleep(0)
    first = await other.received()
    assert len(first) == 1000
    pair.close()


async def test_a_device_that_is_gone_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = End.make("one"), End.make("other")
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    TunPair(one, other, told.set_result)  # type: ignore[arg-type]

    def gone(descriptor: int, size: int) -> bytes:
        raise OSError("File descriptor in bad state")

    monkeypatch.setattr(os, "read", gone)
    one.kernels.send(b"x")
    assert await asyncio.wait_for(told, 5) == "the TUN device one is gone"
