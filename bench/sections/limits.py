"""The physical limits on a packet's way: two TUNs alone, the AEAD alone."""

import ctypes
import time
from collections.abc import Callable
from ipaddress import IPv4Interface
from pathlib import Path

from zgate_lab.ownership import NETNS_DIRECTORY

from bench.build import build_crypto, build_tun_copy
from bench.hosts import Hosts
from bench.load.tcp import Direction, run_tcp
from bench.sections.section import Record, Section

DEVICE = "copy0"
COPY_CLIENT = IPv4Interface("10.40.0.1/24")
COPY_SERVER = IPv4Interface("10.40.0.2/24")
START_TIMEOUT_S = 10.0

PACKET_BYTES = 1300
BATCH = 64
BATCHES = 500
TAG_BYTES = 16
HEADER_BYTES = 13
AES_128_GCM = 0
BACKENDS = ("openssl", "ipsec-mb")


def measure(record: Record) -> None:
    """Each once: they do not depend on anybody else's turn."""
    with Hosts.open() as hosts:
        program = build_tun_copy(hosts.directory("tun-copy"))
        for key, more in (("tun_copy_vnet", ("vnet",)), ("tun_copy_plain", ())):
            record.show(f"two TUNs, {key}")
            rate = _copy(hosts, program, record.settings.tcp_seconds, *more)
            record.put(f"{key}_mbit_per_s", rate)
        record.show("AES-128-GCM")
        library = Aead(build_crypto(hosts.directory("crypto")))
        for backend in BACKENDS:
            if not library.choose(backend):
                record.note(f"{backend}: not installed here")
                continue
            seal_ns, open_ns = library.measure()
            name = backend.replace("-", "_")
            record.put(f"aes_128_gcm_seal_{PACKET_BYTES}_{name}_ns", seal_ns)
            record.put(f"aes_128_gcm_open_{PACKET_BYTES}_{name}_ns", open_ns)


def _copy(hosts: Hosts, program: Path, seconds: float, *more: str) -> float:
    ends = [str(NETNS_DIRECTORY / one.name) for one in (hosts.client, hosts.server)]
    process = hosts.gateway.spawn(f"tun-copy{len(more)}", program, *ends, DEVICE, *more)
    try:
        process.wait_for_output("^ready", START_TIMEOUT_S)
        for namespace, address in ((hosts.client, COPY_CLIENT), (hosts.server, COPY_SERVER)):
            namespace.ip(f"addr add {address} dev {DEVICE}", f"link set {DEVICE} up")
        flow = run_tcp(hosts.client, hosts.server, COPY_SERVER.ip, Direction.UP, seconds)
        return flow.mbit_per_s
    finally:
        process.kill()


class _Job(ctypes.Structure):
    """struct zdp_aead_job of crypto.h."""

    _fields_ = (
        ("packet_number", ctypes.c_uint64),
        ("header", ctypes.c_void_p),
        ("header_bytes", ctypes.c_size_t),
        ("text", ctypes.c_void_p),
        ("text_bytes", ctypes.c_size_t),
        ("out", ctypes.c_void_p),
        ("ok", ctypes.c_bool),
    )


class Aead:
    """The engine's crypto.c, alone."""

    def __init__(self, file: Path):
        self._library = ctypes.CDLL(str(file))
        self._library.zdp_key_new.restype = ctypes.c_void_p
        self._library.zdp_crypto_choose.restype = ctypes.c_bool

    def choose(self, backend: str) -> bool:
        """Take this library from now on; False when it is not there."""
        return bool(self._library.zdp_crypto_choose(backend.encode()))

    def measure(self) -> tuple[float, float]:
        """Nanoseconds to seal and to open a packet, in batches as the engine makes them."""
        key = ctypes.c_void_p(
            self._library.zdp_key_new(AES_128_GCM, bytes(16), bytes(12), bytes(16))
        )
        stride = PACKET_BYTES + TAG_BYTES
        plain = ctypes.create_string_buffer(BATCH * stride)
        sealed = ctypes.create_string_buffer(BATCH * stride)
        header = ctypes.create_string_buffer(HEADER_BYTES)
        seals, opens = (_Job * BATCH)(), (_Job * BATCH)()
        for jobs, source, bytes_in, target in (
            (seals, plain, PACKET_BYTES, sealed),
            (opens, sealed, stride, plain),
        ):
            for number, job in enumerate(jobs):
                job.packet_number = number
                job.header, job.header_bytes = ctypes.addressof(header), HEADER_BYTES
                job.text = ctypes.addressof(source) + number * stride
                job.text_bytes = bytes_in
                job.out = ctypes.addressof(target) + number * stride
        seal_ns = self._time(self._library.zdp_seal_batch, key, seals)
        open_ns = self._time(self._library.zdp_open_batch, key, opens)
        assert all(job.ok for job in opens)
        self._library.zdp_key_free(key)
        return seal_ns, open_ns

    @staticmethod
    def _time(
        function: Callable[..., object], key: ctypes.c_void_p, jobs: ctypes.Array[_Job]
    ) -> float:
        count = ctypes.c_size_t(BATCH)
        start_ns = time.perf_counter_ns()
        for _ in range(BATCHES):
            function(key, jobs, count)
        return (time.perf_counter_ns() - start_ns) / BATCHES / BATCH


LIMITS = Section("limits", "physical limits", measure)
