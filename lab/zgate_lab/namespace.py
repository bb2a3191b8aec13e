"""Network namespaces by name: making them, running in them, opening sockets in them."""

import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from zgate_lab.errors import LabError
from zgate_lab.ownership import NETNS_DIRECTORY
from zgate_lab.waiting import SLOWNESS

Value = TypeVar("Value")

CLONE_NEWNET = 0x40000000
RUN_TIMEOUT_S = 30.0

_libc = ctypes.CDLL(None, use_errno=True)


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")


@contextlib.contextmanager
def in_namespace(name: str) -> Iterator[None]:
    """Move the calling thread into a namespace for the length of the block.

    A socket or TUN belongs for good to the namespace that it was opened in, so open it inside the
    block and use it outside. Only this thread moves; do not await inside the block, as other
    coroutines of the thread would then run in there too.
    """
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(NETNS_DIRECTORY / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _set_namespace(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _set_namespace(back)
    finally:
        os.close(back)


def call_in(name: str, function: Callable[[], Value]) -> Value:
    """Call a function in a thread of its own that lives in the namespace; return its result.

    For code that starts threads or event loops: whatever it starts stays in the namespace.
    """
    results: list[Value] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            with in_namespace(name):
                results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name=f"in {name}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def command_in(name: str, argv: Sequence[str | Path]) -> list[str]:
    """Return the command line that runs `argv` in a namespace, with the process ID unchanged.

    Not `ip netns exec`: that one also makes a mount namespace and a new /sys.
    """
    return ["nsenter", f"--net={NETNS_DIRECTORY / name}", "--", *map(str, argv)]


def run_in(
    name: str,
    argv: Sequence[str | Path],
    *,
    timeout_s: float = RUN_TIMEOUT_S,
    check: bool = True,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command in a namespace and wait for it; its outputs are in the result, as text.

    Raises LabError, with the command's error output, when `check` and it fails, and when it has
    not ended after `timeout_s` (it is killed then).
    """
    try:
        result = subprocess.run(
            command_in(name, argv),
            timeout=timeout_s * SLOWNESS,
            check=False,
            capture_output=True,
            text=True,
            input=stdin if stdin is not None else "",
        )
    except subprocess.TimeoutExpired:
        raise LabError(
            f"{argv[0]} in {name}: not finished after {timeout_s * SLOWNESS:g} s"
        ) from None
    if check and result.returncode != 0:
        words = " ".join(map(str, argv))
        raise LabError(f"in {name}: {words}: exit code {result.returncode}: {_last(result)}")
    return result


def _last(result: subprocess.CompletedProcess[str]) -> str:
    return (result.stderr.strip() or result.stdout.strip())[-800:]


def ip_batch(name: str | None, commands: Sequence[str]) -> None:
    """Give `ip` many commands at once (without the word `ip`), in a namespace or in none."""
    where = ["-n", name] if name else []
    result = subprocess.run(
        ["ip", *where, "-batch", "-"],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_TIMEOUT_S * SLOWNESS,
    )
    if result.returncode != 0:
        text = "; ".join(commands)
        raise LabError(f"ip in {name or 'the host'}: {text}: {result.stderr.strip()}")
