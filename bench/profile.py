"""Where a process's time goes: perf's samples with their call chains, sorted into steps.

perf samples the processor clock, so it works in virtual machines without counters. Time in a
system call belongs to the call, whatever the kernel does in it (softirq included); time in user
space to the file of the engine that the function stands in.
"""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.build import ENGINE
from bench.errors import BenchError

FREQUENCY_HZ = 1999
END_TIMEOUT_S = 30
PACKAGE = "linux-perf"

_FRAME = re.compile(r"^\s*[0-9a-f]+ (?P<symbol>.*?)(?:\+0x[0-9a-f]+)? \((?P<object>.*)\)$")
_ATTRIBUTE = r"(?:__attribute__\(\(.*?\)\)\) )?"
_DEFINITION = re.compile(rf"^{_ATTRIBUTE}[a-z][\w\s*]*?\b\**(\w+)\([^;]*$", re.MULTILINE)

# The first that is found in a chain, by the beginning of a kernel function's name.
_SYSTEM_CALLS = (
    ("UDP receive", ("__x64_sys_recvmmsg", "__sys_recvmmsg", "__x64_sys_recv")),
    ("UDP send", ("__x64_sys_send", "__sys_sendmmsg", "__sys_sendto")),
    ("TUN write", ("__x64_sys_write", "do_writev", "ksys_write")),
    ("TUN read", ("__x64_sys_read", "ksys_read", "do_readv")),
    ("event loop", ("__x64_sys_epoll", "do_epoll")),
)
# What a packet meets behind a write, nearest to the leaf first.
_BEHIND_A_WRITE = (
    ("policy (BPF)", ("bpf_prog_", "cls_bpf", "tcf_", "tcx_run", "sch_handle")),
    ("conntrack, nftables", ("nf_", "nft_", "ipv4_conntrack", "__nf_", "ipv6_conntrack")),
    ("routing, link", ("veth_", "ip_forward", "ip_rcv", "ip_output", "__dev_queue_xmit",
                       "process_backlog", "ip6_", "tcp_v4_rcv", "__netif_receive")),
)  # fmt: skip
_LINK = (("link, checksums", ("__dev_queue_xmit", "veth_", "skb_segment", "__skb_gso_segment")),)


@dataclass(frozen=True, slots=True)
class Frame:
    """One function of a call chain."""

    symbol: str
    object: str  # the file that it is in; "[kernel.kallsyms]" and the like for the kernel

    @property
    def is_kernel(self) -> bool:
        """Whether the kernel was running."""
        return (self.object.startswith("[") and self.object != "[vdso]") or (
            self.symbol.startswith("bpf_prog_")
        )


def check_perf() -> None:
    """BenchError without perf."""
    if shutil.which("perf") is None:
        raise BenchError(
            f"no perf; install with: apt-get install --no-install-recommends {PACKAGE}"
        )


class Recording:
    """perf beside processes, from the making of this object until `stop`."""

    def __init__(self, pids: Iterable[int], file: Path):
        self._file = file
        what = ("-q", "-g", "-e", "cpu-clock", "-F", str(FREQUENCY_HZ))
        self._popen = subprocess.Popen(
            ["perf", "record", *what, "-p", ",".join(map(str, pids)), "-o", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def stop(self) -> Counter[str]:
        """End it; the samples by step."""
        self._popen.terminate()
        _, said = self._popen.communicate(timeout=END_TIMEOUT_S)
        if not self._file.exists():
            raise BenchError(f"perf recorded nothing: {said.strip()[-300:]}")
        done = subprocess.run(
            ["perf", "script", "-i", str(self._file), "-F", "ip,sym,dso"],
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * END_TIMEOUT_S,
        )
        self._file.unlink()
        return Counter(step_of(chain) for chain in parse_script(done.stdout.splitlines()))

    def cancel(self) -> None:
        """End it, whatever it has; nothing if it has ended."""
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.communicate()
        self._file.unlink(missing_ok=True)


def parse_script(lines: Iterable[str]) -> Iterator[list[Frame]]:
    """The call chains that `perf script -F ip,sym,dso` prints, the innermost function first."""
    chain: list[Frame] = []
    for line in lines:
        found = _FRAME.match(line)
        if found:
            chain.append(Frame(found["symbol"], found["object"]))
        elif chain:
            yield chain
            chain = []
    if chain:
        yield chain


def step_of(chain: list[Frame]) -> str:
    """What a sample belongs to."""
    leaf = chain[0]
    if leaf.is_kernel:
        return _kernel_step([frame.symbol for frame in chain])
    name = Path(leaf.object).name
    if name.startswith(("libcrypto", "libIPSec_MB")):
        return "AEAD, header protection"
    if name.startswith(("_native", "bare")):
        # The compiler's clones: take_read.part.0 and the like.
        return f"engine: {engine_files().get(leaf.symbol.partition('.')[0], 'other')}"
    if name.startswith("libc.") or name == "[vdso]":
        return "libc: copies, clock"
    return "Python, aioquic"


def _kernel_step(symbols: list[str]) -> str:
    for step, names in _SYSTEM_CALLS:
        if _first(symbols, ((step, names),)):
            finer = {"TUN write": _BEHIND_A_WRITE, "UDP send": _LINK}.get(step, ())
            behind = _first(symbols, finer)
            return f"{step}: {behind}" if behind else step
    return "kernel: other"


def _first(symbols: list[str], kinds: Iterable[tuple[str, tuple[str, ...]]]) -> str:
    """The kind of the innermost function that has one."""
    kinds = tuple(kinds)
    for symbol in symbols:
        for kind, names in kinds:
            if symbol.startswith(names):
                return kind
    return ""


@cache
def engine_files() -> dict[str, str]:
    """The engine's file by function, from the definitions that begin a line."""
    return {
        name: path.name
        for path in sorted(ENGINE.glob("*.c"))
        for name in _DEFINITION.findall(path.read_text())
    }
