"""What was measured, as findings with what to do. Pure."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from zgate_datapath.client import (
    ClientCertificateRefused,
    ConnectTimeout,
    GatewayCertificateRefused,
    TunnelError,
)
from zgate_datapath.path_mtu import BASE_BYTES
from zgate_datapath.path_probe import PathReport

from zgate_cli.answers import Finding
from zgate_cli.findings import fail, ok, skip, warn
from zgate_cli.output import duration_text

_GOOD_RTT_S, _BAD_RTT_S = 0.15, 0.4
_GOOD_JITTER_S = 0.03
_LOSS_WARN, _LOSS_FAIL = 0.005, 0.05
_CLOCK_WARN_S, _CLOCK_FAIL_S = 30.0, 300.0
_FULL_PAYLOAD_BYTES = 1400
#: No larger one is looked for.
_SEARCHED_BYTES = 1452
#: What the outer packet takes, with an IPv4 header around it (UDP 8, IP 20).
_IPV4_UDP_BYTES = 28


@dataclass(frozen=True, slots=True)
class Reach:
    """Whether the gateway's host answers to something that is not UDP.

    :ivar tcp: what a TCP connection to the same port gave: ``open``, ``refused``, ``timeout`` or
        the error's text.
    """

    tcp: str

    @property
    def is_there(self) -> bool:
        """The host answered, one way or the other."""
        return self.tcp in {"open", "refused"}


def judge_failure(address: str, error: TunnelError, reach: Reach | None) -> Iterator[Finding]:
    """Why there was no connection: UDP first, then who refused whom."""
    title, text = "udp", str(error)
    if isinstance(error, GatewayCertificateRefused):
        yield ok("udp", title, f"{address} answers")
        yield fail(
            "gateway_certificate", "gateway's certificate", text,
            "compare ca and server_name with the gateway's certificate; an answer from somebody "
            "else's server looks like this, too",
        )  # fmt: skip
    elif isinstance(error, ClientCertificateRefused):
        yield ok("udp", title, f"{address} answers")
        yield fail(
            "admission", "own certificate", f"the gateway refuses it: {text}",
            "have it issued anew; ask whether it was revoked",
        )  # fmt: skip
    elif "nobody listens" in text or "Connection refused" in text:
        yield fail(
            "udp", title, f"{address} says that nobody listens there",
            "is the gateway running, and is this its port? A firewall that rejects looks the same",
        )  # fmt: skip
    elif isinstance(error, ConnectTimeout):
        yield _silence(address, text, reach)
    else:
        yield fail("udp", title, f"{address}: {text}", "see this device's network: ip route")


def _silence(address: str, text: str, reach: Reach | None) -> Finding:
    if "is UDP open" not in text and "no answer" not in text:
        return fail("udp", "udp", f"{address}: {text}", "see this device's network: ip route")
    if reach is not None and reach.is_there:
        return fail(
            "udp", "udp", f"no answer from {address}, and its host answers to TCP",
            "something on the way lets no UDP to this port through (a guest network, a firewall): "
            "have UDP to it allowed both ways, or try another network",
        )  # fmt: skip
    tcp = f", nor to TCP ({reach.tcp})" if reach is not None else ""
    return fail(
        "udp", "udp", f"no answer from {address}{tcp}",
        "is the address right, is the gateway's host up, is there a way to it? Try another network",
    )  # fmt: skip


def judge_path(address: str, report: PathReport, *, is_ipv6: bool) -> Iterator[Finding]:
    """A path that works: how well."""
    name = "udp_ipv6" if is_ipv6 else "udp"
    handshake_ms = report.handshake_s * 1000
    yield ok(
        name, "udp", f"{address} answers, and takes us in ({handshake_ms:.0f} ms)",
        handshake_ms=handshake_ms,
    )  # fmt: skip
    yield _mtu(report, is_ipv6=is_ipv6)
    yield from _times(report)
    yield _loss(report)


def _mtu(report: PathReport, *, is_ipv6: bool) -> Finding:
    payload, title = report.udp_payload_bytes, "mtu"
    headers = _IPV4_UDP_BYTES + (20 if is_ipv6 else 0)
    values = {"udp_payload_bytes": payload, "path_mtu_bytes": payload + headers if payload else 0}
    if not payload and report.is_mtu_final:
        return fail(
            "mtu", title, f"the path carries no UDP payload of {BASE_BYTES} bytes: no tunnel",
            "raise the MTU on the way (PPPoE, another VPN), and let ICMP errors through", **values,
        )  # fmt: skip
    if not report.is_mtu_final:
        return warn(
            "mtu", title, f"not found in time; {payload} bytes of UDP payload pass",
            "try again: probes were lost", **values,
        )  # fmt: skip
    at_least = "at least " if payload >= _SEARCHED_BYTES else ""
    text = f"path MTU {at_least}{payload + headers}, {payload} bytes of UDP payload"
    if payload < _FULL_PAYLOAD_BYTES:
        return warn(
            "mtu", title, f"{text}: less than usual",
            "nothing must be done: packets in the tunnel are smaller; is there another VPN below?",
            **values,
        )  # fmt: skip
    return ok("mtu", title, text, **values)


def _times(report: PathReport) -> Iterator[Finding]:
    rtts_s = report.rtts_s
    if not rtts_s:
        yield fail("rtt", "rtt", "no round trip was answered", "try again, or another network")
        return
    median_s = statistics.median(rtts_s)
    jitter_s = (
        statistics.fmean(abs(b - a) for a, b in itertools.pairwise(rtts_s))
        if len(rtts_s) > 1
        else 0.0
    )
    values = {
        "min_ms": min(rtts_s) * 1000, "median_ms": median_s * 1000, "max_ms": max(rtts_s) * 1000,
    }  # fmt: skip
    text = f"{median_s * 1000:.1f} ms ({min(rtts_s) * 1000:.1f} to {max(rtts_s) * 1000:.1f})"
    fix = "is this a mobile or satellite link, or a full one? A wired network is better"
    if median_s > _BAD_RTT_S:
        yield fail("rtt", "rtt", text, fix, **values)
    elif median_s > _GOOD_RTT_S:
        yield warn("rtt", "rtt", text, fix, **values)
    else:
        yield ok("rtt", "rtt", text, **values)
    text = f"{jitter_s * 1000:.1f} ms from one round trip to the next"
    if jitter_s > max(_GOOD_JITTER_S, median_s / 2):
        fix = "something on the way queues: a full uplink, or weak radio; voice will suffer"
        yield warn("jitter", "jitter", text, fix, jitter_ms=jitter_s * 1000)
    else:
        yield ok("jitter", "jitter", text, jitter_ms=jitter_s * 1000)


def _loss(report: PathReport) -> Finding:
    share = report.lost / report.sent if report.sent else 0.0
    text = f"{report.lost} of {report.sent} lost ({share:.0%})"
    values = {"sent": report.sent, "lost": report.lost, "lost_share": share}
    fix = "weak radio, a full link or a broken cable: try a wired network; --probes 150 says more"
    if share > _LOSS_FAIL:
        return fail("loss", "loss", text, fix, **values)
    if share > _LOSS_WARN:
        return warn("loss", "loss", text, fix, **values)
    return ok("loss", "loss", text, **values)


def judge_clock(reports: Sequence[PathReport]) -> Finding:
    """This device's clock against the gateway's."""
    offsets = [
        (one.gateway_time - one.own_time).total_seconds() + 0.5
        for one in reports
        if one.gateway_time is not None
    ]
    title = "clock"
    if not offsets:
        return skip("clock", title, "the gateway does not say what time it is", "upgrade it")
    # The header has whole seconds, rounded down: half a second is added, and a second is nothing.
    offset_s = min(offsets, key=abs)
    size_s = abs(offset_s)
    if size_s < 1.5:
        return ok("clock", title, "agrees with the gateway's", offset_s=offset_s)
    late = "behind" if offset_s > 0 else "ahead of"
    text = f"{duration_text(size_s)} {late} the gateway's"
    fix = "let the clock be set by NTP: timedatectl set-ntp true"
    if size_s > _CLOCK_FAIL_S:
        return fail(
            "clock", title, f"{text}: certificates seem not to hold", fix, offset_s=offset_s
        )
    if size_s > _CLOCK_WARN_S:
        return warn("clock", title, text, fix, offset_s=offset_s)
    return ok("clock", title, text, offset_s=offset_s)


def judge_certificate_life(left: timedelta, lifetime: timedelta) -> Finding:
    """How long our own certificate holds."""
    title, days = "own certificate", left / timedelta(days=1)
    text = f"valid for {duration_text(max(0.0, left.total_seconds()))} more"
    soon = min(timedelta(days=14), lifetime / 6)
    if left < soon:
        fix = "have it issued anew: zgatectl pki issue, where the authority is"
        return warn("certificate", title, text, fix, days_left=days)
    return ok("certificate", title, text, days_left=days)
