"""The host as a whole and the gateway as it runs: units, time, memory, versions, alerts."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path

from zgate_gateway.api import schemas
from zgate_gateway.problems import MAP_PREFIX

from zgate_cli.answers import Finding
from zgate_cli.doctor.host import Context
from zgate_cli.findings import fail, ok, skip, warn, zgate_version

_UNIT = "zgate-gateway.service"
_SOCKET_UNIT = "zgate-gateway.socket"
_TIME_ERROR = 5
_STA_UNSYNC = 0x40
#: ``struct timex`` of adjtimex(2) is 208 bytes on 64-bit machines: modes, offset, freq, maxerror,
#: esterror (a long each, the first padded), then the status.
_TIMEX_LONGS = 26
_STATUS_AT = 5


def check_system(context: Context) -> Iterator[Finding]:
    """The gateway first: whoever asks at night wants to know that."""
    yield from _gateway(context)
    yield _versions(context)
    yield _unit(context)
    yield _socket_unit(context)
    yield _time()
    yield _memory(context)


def _gateway(context: Context) -> Iterator[Finding]:
    title, status = "gateway", context.status
    if status is None:
        yield fail(
            "gateway", title, context.status_problem or "does not answer",
            "systemctl status zgate-gateway; journalctl -u zgate-gateway -e",
        )  # fmt: skip
        return
    if status.state is schemas.GatewayState.READY and not status.not_ready_because:
        text = f"ready, {status.sessions} sessions, pid {status.pid}"
        yield ok("gateway", title, text, sessions=status.sessions)
    else:
        why = "; ".join(status.not_ready_because) or status.state.value
        yield fail(
            "gateway", title, f"not ready: {why}", "see its log: journalctl -u zgate-gateway"
        )
    for alert in status.alerts:
        # Its text has the cure, too.
        fix = f"docs/runbooks/{runbook_of(alert.name)} says more"
        yield warn(f"alert_{alert.name}", f"alert {alert.name}", alert.text, fix)
    restarted = [one for one in status.workers if one.restarts]
    if restarted:
        text = ", ".join(f"worker {one.worker}: {one.restarts}" for one in restarted)
        yield warn(
            "workers", "workers", f"started again: {text}",
            "a worker should never end: see the log before each start, and report it",
        )  # fmt: skip
    else:
        yield ok("workers", "workers", f"{len(status.workers)}, none was started again")


def runbook_of(alert: str) -> str:
    """The page about an alert: ``disk_full`` is ZgateDiskFull.md."""
    if alert.startswith(MAP_PREFIX):
        return "ZgateKernelTableFull.md"
    return f"Zgate{alert.title().replace('_', '')}.md"


def _versions(context: Context) -> Finding:
    own, title = zgate_version(), "version"
    if context.status is not None and context.status.version != own:
        return warn(
            "version", title, f"zgatectl is {own}, the gateway runs {context.status.version}",
            "restart the gateway after an upgrade: systemctl restart zgate-gateway",
            zgatectl=own, gateway=context.status.version,
        )  # fmt: skip
    return ok("version", title, own, zgatectl=own)


def _unit(context: Context) -> Finding:
    title, host = "unit", context.host
    if not Path("/run/systemd/system").is_dir():
        return skip("unit", title, "systemd does not run here")
    wanted = "LoadState,ActiveState,SubState,UnitFileState,NRestarts,Result"
    ran = host.run("systemctl", "show", _UNIT, f"--property={wanted}")
    found = dict(line.partition("=")[::2] for line in ran.output.splitlines())
    if found.get("LoadState") != "loaded":
        return skip("unit", title, f"there is no {_UNIT}: the gateway is run otherwise")
    state = f"{found.get('ActiveState')} ({found.get('SubState')})"
    if found.get("ActiveState") != "active":
        return fail(
            "unit", title, f"{state}, {found.get('Result')}",
            f"journalctl -u {_UNIT} -e says why; then systemctl restart {_UNIT}",
        )  # fmt: skip
    if found.get("UnitFileState") not in {"enabled", "enabled-runtime", "static", "indirect"}:
        text = f"{state}, but not enabled: it does not come back after a reboot"
        return warn("unit", title, text, f"systemctl enable {_UNIT}")
    restarts = int(found.get("NRestarts") or 0)
    if restarts:
        return warn(
            "unit", title, f"{state}, restarted {restarts} times by systemd",
            f"journalctl -u {_UNIT} says what ended it", restarts=restarts,
        )  # fmt: skip
    return ok("unit", title, f"{state}, enabled")


def _socket_unit(context: Context) -> Finding:
    title = "socket unit"
    if not Path("/run/systemd/system").is_dir():
        return skip("socket_unit", title, "systemd does not run here")
    ran = context.host.run("systemctl", "is-active", _SOCKET_UNIT)
    state = ran.output.strip() or ran.error
    if state == "active":
        return ok("socket_unit", title, "systemd keeps the UDP port over restarts")
    return warn(
        "socket_unit", title, f"{state}: packets are refused while the gateway restarts",
        f"systemctl enable --now {_SOCKET_UNIT}, then restart the gateway",
    )  # fmt: skip


def _time() -> Finding:
    title = "time"
    timex = (ctypes.c_long * _TIMEX_LONGS)()
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    if state < 0:
        error = os.strerror(ctypes.get_errno())
        return skip("time_sync", title, f"the kernel does not say: {error}")
    is_wrong = state == _TIME_ERROR or timex[_STATUS_AT] & _STA_UNSYNC
    if is_wrong:
        return warn(
            "time_sync", title, "nobody keeps the clock right: certificates and rules go by it",
            "systemctl enable --now systemd-timesyncd (or chrony)",
        )  # fmt: skip
    return ok("time_sync", title, "the clock is kept right")


def _memory(context: Context) -> Finding:
    title, text = "memory", context.host.read("/proc/meminfo") or ""
    sizes = {name: int(kib) * 1024 for name, kib in re.findall(r"(\w+):\s+(\d+) kB", text)}
    total, available = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
    if not total:
        return skip("memory", title, "/proc/meminfo cannot be read")
    share = available / total
    shown = f"{available / 1e6:,.0f} of {total / 1e6:,.0f} MB available"
    values = {"available_bytes": available, "total_bytes": total}
    fix = "give the host more, or see what takes it: ps --sort -rss"
    if share < 0.03:
        return fail("memory", title, shown, fix, **values)
    if share < 0.1:
        return warn("memory", title, shown, fix, **values)
    return ok("memory", title, shown, **values)
