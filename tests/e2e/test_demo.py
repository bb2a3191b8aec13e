"""`make demo` without a terminal: again and again, and whatever happened to the one before."""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from zgate_lab.waiting import wait_until

DEMO = [sys.executable, "-m", "zgate_lab.demo"]
DEMO_TIMEOUT_S = 120
PROOFS = (
    "alice holds 10.100.0.2",
    "alice pings 10.20.0.5 and fd00:20::5",
    "over HTTPS, by IPv4 and by IPv6",
    "dropped by the BPF program: rule deny-office",
    "no rule, dropped by default",
    "kernel counters: alice",
    "masquerade: the office's log shows only 10.9.0.1 and fd00:9::1",
    "1000 pings, 0 lost",
    "behind NATs that let nothing in, offer pacs: 10.101.0.1",
    "alice asks http://pacs.zgate.internal/ and hospital",
    "does not exist (NXDOMAIN)",
    " killed, given up after ",
    "all end with status 0",
    "the host's own links, routes and nftables are untouched",
)

# On a busy machine one demo takes half a minute, and a test runs up to two.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def start(output: Path) -> subprocess.Popen[bytes]:
    """What `make demo </dev/null` runs."""
    with output.open("wb") as file:
        return subprocess.Popen(
            DEMO,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def check(status: int, text: str) -> None:
    """Every line proved, and nothing else."""
    assert status == 0, text
    assert "✘" not in text
    for proof in PROOFS:
        assert proof in text, text


def run_at_a_terminal() -> tuple[int, str]:
    """The demo at a terminal, until it stays up; then a Ctrl-C. Its status and what it showed."""
    ours, its = os.openpty()
    demo = subprocess.Popen(DEMO, stdin=its, stdout=its, stderr=its, start_new_session=True)
    os.close(its)
    shown = b""
    interrupted = False
    try:
        while demo.poll() is None or select.select([ours], [], [], 0)[0]:
            if select.select([ours], [], [], DEMO_TIMEOUT_S)[0]:
                shown += os.read(ours, 65536)
            if not interrupted and b"Ctrl-C ends it" in shown:
                interrupted = True
                demo.send_signal(signal.SIGINT)
    except OSError as error:
        assert error.errno == errno.EIO, "the terminal's other end has closed"
    finally:
        os.close(ours)
    return demo.wait(DEMO_TIMEOUT_S), shown.decode(errors="replace")


def prefix_of(output: Path) -> str:
    """What the names of this demo's namespaces begin with."""
    run = re.search(r"/run/zgate-lab/([0-9a-f]+)/", output.read_text())
    assert run is not None, output.read_text()
    return f"zg-{run[1]}-"


def namespaces(prefix: str) -> list[Path]:
    return list(Path("/run/netns").glob(f"{prefix}*"))


def wait_for_line(demo: subprocess.Popen[bytes], output: Path, line: str) -> None:
    wait_until(
        lambda: line in output.read_text() or demo.poll() is not None, DEMO_TIMEOUT_S, repr(line)
    )
    assert demo.poll() is None, output.read_text()


def test_it_runs_after_one_that_was_killed(tmp_path: Path) -> None:
    output = tmp_path / "killed.txt"
    demo = start(output)
    try:
        wait_for_line(demo, output, "alice holds")
        prefix = prefix_of(output)
        # Asked while it runs: whoever makes the next lab on this host cleans up after it.
        assert namespaces(prefix)
    finally:
        demo.kill()
        demo.wait()
    output = tmp_path / "next.txt"
    check(start(output).wait(DEMO_TIMEOUT_S), output.read_text())
    assert namespaces(prefix) == [], "the next one cleans up"


def test_ctrl_c_at_a_terminal_ends_what_stays_up() -> None:
    status, shown = run_at_a_terminal()
    check(status, shown)
    assert "The lab stays up. In another terminal:" in shown


def test_sigterm_in_the_middle_cleans_up(tmp_path: Path) -> None:
    output = tmp_path / "stopped.txt"
    demo = start(output)
    try:
        wait_for_line(demo, output, "zgate-gateway serves")
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(DEMO_TIMEOUT_S) == 1
    finally:
        demo.kill()
        demo.wait()
    assert namespaces(prefix_of(output)) == []
    assert "interrupted" in output.read_text()
    assert "routes and nftables are untouched" in output.read_text()
