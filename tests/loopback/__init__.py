"""A gateway's UDP side and its clients over loopback, in one event loop and without root.

Real: sockets, QUIC, TLS, certificates, HTTP/3, CONNECT-IP, the session table, the forwarder.
Fake: what needs the kernel (TUN, policy tables, raw sockets) and the store (address pools).
"""

from .certificates import HOST, Identity, Pki
from .clients import Client, Peer
from .fixtures import Lab, engine, lab, pki, python_engine
from .gateway import Gateway
from .kernel import (
    FakeIcmp,
    FakeKernel,
    FakeLease,
    FakePool,
    FakeSteering,
    FakeTun,
)
from .packets import (
    GATEWAY_V4,
    GATEWAY_V6,
    OFFICE_V4,
    OFFICE_V6,
    POOLS,
    ROUTES,
    icmp_type_and_code,
    sized_packet,
    udp_packet,
)
from .supervisor import Near, Record
from .waiting import WAIT_S, eventually

__all__ = [
    "GATEWAY_V4",
    "GATEWAY_V6",
    "HOST",
    "OFFICE_V4",
    "OFFICE_V6",
    "POOLS",
    "ROUTES",
    "WAIT_S",
    "Client",
    "FakeIcmp",
    "FakeKernel",
    "FakeLease",
    "FakePool",
    "FakeSteering",
    "FakeTun",
    "Gateway",
    "Identity",
    "Lab",
    "Near",
    "Peer",
    "Pki",
    "Record",
    "engine",
    "eventually",
    "icmp_type_and_code",
    "lab",
    "pki",
    "python_engine",
    "sized_packet",
    "udp_packet",
]
