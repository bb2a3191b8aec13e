"""What goes into a support archive: this list, and nothing else."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

import yaml
from zgate_gateway.api import schemas

from zgate_cli.bundle.redact import Redactor
from zgate_cli.client import GatewayClient
from zgate_cli.doctor.command import examine
from zgate_cli.doctor.host import Context
from zgate_cli.errors import CommandError
from zgate_cli.findings import report_of, zgate_version

_UNIT = "zgate-gateway"
_PROC_FILES = ("meminfo", "loadavg", "net/snmp", "net/dev", "net/softnet_stat", "pressure/cpu")
_SYSCTLS = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.conf.all.rp_filter",
            "net.core.rmem_max", "net.core.wmem_max", "net.core.bpf_jit_enable",
            "net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_max",
            "kernel.unprivileged_bpf_disabled")  # fmt: skip


class Missing(Exception):
    """There is nothing to put in; the text says why."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file of the archive, and how its text is made.

    :ivar origin: the command or file, for the manifest.
    """

    path: str
    origin: str
    make: Callable[[], str]


@dataclass(slots=True)
class Material:
    """What the sources are made from."""

    context: Context
    redactor: Redactor
    log_lines: int


def sources_of(material: Material) -> Iterator[Source]:
    """All of them, in the order of the archive."""
    yield from _from_gateway(material)
    yield from _from_files(material)
    yield from _from_host(material)


# The gateway.


def _from_gateway(material: Material) -> Iterator[Source]:
    context = material.context

    def status() -> str:
        return _known_status(context).model_dump_json(indent=2)

    def sessions() -> str:
        return json.dumps(_count_sessions(context), indent=2)

    def metrics() -> str:
        try:
            with GatewayClient(context.socket_path) as gateway:
                return gateway.metrics()
        except CommandError as error:
            raise Missing(error.message) from error

    def doctor() -> str:
        return report_of(examine(context)).model_dump_json(indent=2)

    yield Source("status.json", "GET /v1/status", status)
    yield Source("sessions.json", "GET /v1/sessions, counted", sessions)
    yield Source("metrics.txt", "GET /metrics", metrics)
    yield Source("doctor.json", "zgatectl doctor", doctor)


def _known_status(context: Context) -> schemas.Status:
    if context.status is None:
        raise Missing(context.status_problem)
    return context.status


def _count_sessions(context: Context) -> dict[str, object]:
    """How many there are, and how they do; not who they are."""
    status = _known_status(context)
    try:
        with GatewayClient(context.socket_path) as gateway:
            query = schemas.SessionQuery(sort=schemas.SessionSort.DROPS, limit=1000)
            found = gateway.sessions(query).sessions
    except CommandError as error:
        raise Missing(error.message) from error
    rtts_ms = sorted(one.rtt_ms for one in found if one.rtt_ms is not None)
    return {
        "total": status.sessions,
        "looked_at": len(found),
        "by_worker": {str(one.worker): one.sessions for one in status.workers},
        "rtt_ms_median": rtts_ms[len(rtts_ms) // 2] if rtts_ms else None,
        "with_drops": sum(one.counters.dropped_packets > 0 for one in found),
        "mtu_bytes": sorted({one.mtu_bytes for one in found}),
    }


# Files.


def _from_files(material: Material) -> Iterator[Source]:
    context = material.context
    yield Source("gateway.yaml", str(context.config_path), lambda: _configuration(material))
    policy = context.settings.policy_file
    yield Source("policy.yaml", str(policy or "no file"), lambda: _read(context, policy))
    state = context.settings.state_dir
    yield Source("state-dir.txt", f"ls -la {state}", lambda: _run(context, "ls", "-la", str(state)))


def _configuration(material: Material) -> str:
    """Masked by its keys first: a text cannot tell what is a value of what."""
    text = _read(material.context, material.context.config_path)
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Missing(f"it is no YAML: {' '.join(str(error).split())[:200]}") from error
    return yaml.safe_dump(material.redactor.document(document), sort_keys=False)


def _read(context: Context, path: Path | None) -> str:
    text = context.host.read(path) if path is not None else None
    if text is None:
        raise Missing("it cannot be read" if path is not None else "there is none")
    return text + "\n"


# The host.


def _from_host(material: Material) -> Iterator[Source]:
    context = material.context
    tun = context.settings.tun.name
    commands: dict[str, tuple[str, ...]] = {
        "uname.txt": ("uname", "-a"),
        "df.txt": ("df", "-hT"),
        "inodes.txt": ("df", "-i"),
        "ip-addr.txt": ("ip", "-s", "addr"),
        "ip-route.txt": ("ip", "route", "show", "table", "all"),
        "ip-rule.txt": ("ip", "rule"),
        "nft.txt": ("nft", "list", "ruleset"),
        "tc-qdisc.txt": ("tc", "-s", "qdisc"),
        "tc-ingress.txt": ("tc", "-s", "filter", "show", "dev", tun, "ingress"),
        "tc-egress.txt": ("tc", "-s", "filter", "show", "dev", tun, "egress"),
        "sockets.txt": ("ss", "-s"),
        "unit.txt": ("systemctl", "show", _UNIT, "--no-pager"),
        "units.txt": ("systemctl", "list-units", "zgate*", "--all", "--no-pager"),
        "journal.txt": (
            "journalctl", "-u", f"{_UNIT}*", "-n", str(material.log_lines), "--no-pager", "-o",
            "short-iso-precise",
        ),
    }  # fmt: skip
    for path, argv in commands.items():
        yield Source(path, " ".join(argv), lambda argv=argv: _run(context, *argv))  # type: ignore[misc]
    yield Source("proc.txt", "/proc", lambda: _proc(context))
    yield Source("sysctl.txt", "sysctl", lambda: _run(context, "sysctl", "--ignore", *_SYSCTLS))
    yield Source("bpf.txt", "/proc/PID/fdinfo of the gateway", lambda: _bpf(context))
    yield Source("versions.json", "installed packages", _versions)


def _run(context: Context, *argv: str) -> str:
    ran = context.host.run(*argv)
    if not ran.is_ok and not ran.output:
        raise Missing(ran.error or f"exit status {ran.status}")
    return ran.output


def _proc(context: Context) -> str:
    parts = []
    for name in _PROC_FILES:
        text = context.host.read(f"/proc/{name}")
        parts.append(f"== {name}\n{text if text is not None else 'not there'}\n")
    return "\n".join(parts)


def _bpf(context: Context) -> str:
    """The programs and tables that the gateway holds, as the kernel describes their descriptors."""
    pid = _known_status(context).pid
    parts = []
    for info in sorted(Path(f"/proc/{pid}/fdinfo").glob("*"), key=lambda one: int(one.name)):
        text = context.host.read(info) or ""
        if "prog_type" in text or "map_type" in text:
            parts.append(f"== fd {info.name}\n{text}\n")
    if not parts:
        raise Missing(f"nothing is to be seen of process {pid}: run it as root, on the gateway")
    return "\n".join(parts)


def _versions() -> str:
    packages = {one.metadata["Name"]: one.version for one in distributions()}
    versions = {
        "zgate": zgate_version(),
        "python": sys.version,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "system": _os_name(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }
    return json.dumps(versions, indent=2)


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "?")
    except OSError:
        return "?"
