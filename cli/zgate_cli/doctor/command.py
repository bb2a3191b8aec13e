"""``zgatectl doctor``: the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
from zgate_config import ConfigError
from zgate_gateway.config import DEFAULT_PATH, GatewayConfig, load_config

from zgate_cli.answers import Finding
from zgate_cli.client import GatewayClient
from zgate_cli.doctor.files import check_files
from zgate_cli.doctor.host import Context, Host
from zgate_cli.doctor.kernel import check_kernel
from zgate_cli.doctor.network import check_network
from zgate_cli.doctor.system import check_system
from zgate_cli.errors import CommandError
from zgate_cli.findings import report_of, show, skip
from zgate_cli.options import Invocation, gateway_command
from zgate_cli.output import progress
from zgate_cli.unit_files import as_unit, gateway_credentials

GROUPS: tuple[tuple[str, Callable[[Context], Iterator[Finding]]], ...] = (
    ("the gateway", check_system),
    ("the kernel", check_kernel),
    ("the network", check_network),
    ("files", check_files),
)


@click.command()
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), default=DEFAULT_PATH,
    show_default=True, help="The gateway's configuration.",
)  # fmt: skip
@click.option("--strict", is_flag=True, help="Exit code 1 for warnings, too.")
@gateway_command
def doctor(invocation: Invocation, *, config_path: Path, strict: bool) -> None:
    """Check this host and its gateway: kernel, network, firewall, certificates, disk, time.

    Works whether the gateway runs or not, and changes nothing. Each line that is not ok says what
    to do. Run it as root: others see less. Exit code 0 if nothing has failed, 1 if something has.
    """
    context = make_context(invocation, config_path)
    show(invocation, report_of(examine(context)), is_strict=strict)


def examine(context: Context) -> list[Finding]:
    """Make all checks; one that has a fault itself is told, and stops no other."""
    findings: list[Finding] = []
    with progress(len(GROUPS), "looking at") as step:
        for title, check in GROUPS:
            step(title)
            try:
                findings += check(context)
            except Exception as error:
                # At night half of the answers are better than none.
                text = f"the checks of {title} ended early: {type(error).__name__}: {error}"
                findings.append(skip("internal", "doctor", text, "report it: it is a bug"))
    return findings


def make_context(invocation: Invocation, config_path: Path) -> Context:
    """Load the configuration and ask the gateway; neither has to work."""
    context = Context(Host(), datetime.now(UTC), config_path, invocation.socket_path)
    try:
        with as_unit(credentials=gateway_credentials()):
            is_default = config_path == DEFAULT_PATH and not config_path.exists()
            context.config = GatewayConfig() if is_default else load_config(config_path)
    except ConfigError as error:
        context.config_problem = str(error)
    try:
        with GatewayClient(invocation.socket_path) as gateway:
            context.status = gateway.status()
    except CommandError as error:
        context.status_problem = error.message
    return context
