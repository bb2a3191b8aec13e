"""TCP throughput by iperf3: one stream, one direction at a time."""

import json
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address

from zgate_lab.lab import Namespace
from zgate_lab.waiting import wait_until

from bench.errors import MeasurementFailed

PORT = 5201
START_TIMEOUT_S = 5.0
# Beyond the flow itself: connecting, the last data in long queues, the exchange of results.
EXTRA_TIME_S = 10.0


class Direction(Enum):
    """Which way the data goes, seen from the client."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class TcpResult:
    """What one flow brought to its receiver."""

    received_bytes: int
    bits_per_s: float
    retransmits: int

    @property
    def gbit(self) -> float:
        """The data that arrived, in Gbit."""
        return self.received_bytes * 8 / 1e9

    @property
    def mbit_per_s(self) -> float:
        """The rate at the receiver."""
        return self.bits_per_s / 1e6


def run_tcp(
    client: Namespace,
    server: Namespace,
    target: IPv4Address,
    direction: Direction,
    seconds: float,
    *,
    port: int = PORT,
    congestion: str = "",
) -> TcpResult:
    """Run one iperf3 flow between two hosts and wait for its end.

    `congestion`: the kernel's congestion control for it, at both ends; empty: the hosts' default.
    """
    # One server for each flow: an iperf3 server whose client vanished stays busy for long.
    listener = server.spawn(
        f"iperf3-server-{port}", "iperf3", "-s", "-1", "-p", str(port), "--forceflush"
    )
    try:
        wait_until(lambda: is_listening(server, port), START_TIMEOUT_S, "iperf3 to listen")
        result = client.run(
            *("iperf3", "-J", "-c", str(target), "-p", str(port), "-t", f"{seconds:g}"),
            *("--connect-timeout", "3000"),
            *(("-R",) if direction is Direction.DOWN else ()),
            *(("-C", congestion) if congestion else ()),
            timeout_s=seconds + EXTRA_TIME_S,
            check=False,
        )
        return parse_iperf3(result.stdout or result.stderr)
    finally:
        listener.kill()


def is_listening(server: Namespace, port: int = PORT) -> bool:
    """Tell whether a TCP socket listens on iperf3's port in the host."""
    return bool(server.run("ss", "-Hltn", f"sport = :{port}").stdout.strip())


def parse_iperf3(output: str) -> TcpResult:
    """Read iperf3's JSON report; MeasurementFailed with its own words when it has no result."""
    try:
        report = json.loads(output)
    except ValueError:
        raise MeasurementFailed(f"iperf3 printed no report: {output.strip()[-300:]}") from None
    if "error" in report:
        raise MeasurementFailed(f"iperf3: {report['error']}")
    try:
        received, sent = report["end"]["sum_received"], report["end"]["sum_sent"]
        return TcpResult(
            int(received["bytes"]), float(received["bits_per_second"]), int(sent["retransmits"])
        )
    except (KeyError, TypeError):
        raise MeasurementFailed("iperf3's report has no sums: was the flow cut off?") from None
