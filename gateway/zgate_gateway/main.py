"""`zgate-gateway`: read the configuration, run the daemon, say clearly what is wrong."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import click
from zgate_config.logs import configure_logging
from zgate_host import systemd
from zgate_host.capability import has_net_admin

from zgate_gateway.config import DEFAULT_PATH, GatewayConfig, load_config

_PAUSE_S = 1.0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"YAML or JSON [default: {DEFAULT_PATH} if it is there, else built-in defaults]",
)
@click.option("--check", is_flag=True, help="Check the configuration and the policy, then exit.")
@click.version_option(package_name="zgate", prog_name="zgate-gateway")
def main(config_path: Path | None, check: bool) -> None:
    """Run the zgate gateway in the foreground."""
    from zgate_config import ConfigError
    from zgate_identity.files import IdentityError

    try:
        config = load_config(config_path)
        if check:
            _check(config)
    except (ConfigError, IdentityError, ValueError) as error:
        _stop(EXIT_BAD_INPUT, str(error), is_start=not check)
    if check:
        read = DEFAULT_PATH if config_path is None and DEFAULT_PATH.exists() else config_path
        click.echo(f"{read or 'built-in defaults'}: ok")
        return
    if not has_net_admin():
        _stop(
            EXIT_FAILED,
            "CAP_NET_ADMIN is missing: run as root, or as the zgate-gateway systemd unit does",
        )
    configure_logging(config.log.level, config.log.format)
    _run(config, lambda: load_config(config_path))


def _check(config: GatewayConfig) -> None:
    """What a start would find wrong, without root and without making anything.

    Raises ConfigError, IdentityError, ValueError.
    """
    from zgate_datapath.engine import engine_name
    from zgate_identity.reload import ReloadingClientVerifier
    from zgate_identity.tls_files import check_server_files

    from zgate_gateway.edge_blocklist import read_blocklist
    from zgate_gateway.policy.policy_set import PolicySet
    from zgate_gateway.policy.service_names import ServicePools
    from zgate_gateway.policy_keeper import APPLIED_FILE_NAME

    policy_file = config.policy_file or config.state_dir / APPLIED_FILE_NAME
    if config.policy_file is not None or policy_file.exists():
        PolicySet.load(policy_file, pools=ServicePools(config.services.ipv4, config.services.ipv6))
    if config.edge.blocklist_file is not None:
        read_blocklist(config.edge.blocklist_file)
    engine_name(config.engine)
    if config.pki is not None:
        now = datetime.now(UTC)
        check_server_files(config.pki.certificate, config.pki.key, now)
        ReloadingClientVerifier(config.pki.ca, config.pki.crl, now)


def _run(config: GatewayConfig, read_again: Callable[[], GatewayConfig]) -> NoReturn:
    from zgate_config import ConfigError

    from zgate_gateway.head_start import HeadStart
    from zgate_gateway.port import UdpPort

    try:
        # First of all: what is handed over by the environment is not for child processes.
        port = UdpPort(config.listen, config.worker_count)
    except ConfigError as error:
        _stop(EXIT_BAD_INPUT, str(error))
    head_start = HeadStart(config)
    from zgate_gateway.daemon import Gateway, StartError

    try:
        status = asyncio.run(Gateway(config, port, head_start, read_again).run())
    except StartError as error:
        _stop(EXIT_BAD_INPUT if error.is_bad_input else EXIT_FAILED, str(error))
    _end_now(status)


def _end_now(status: int) -> NoReturn:
    """End the process, with everything already in order.

    Without the interpreter's own way out: it takes all modules apart, and at a restart everybody's
    packets wait for that.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _stop(code: int, text: str, *, is_start: bool = True) -> NoReturn:
    click.echo(f"zgate-gateway: {text}", err=True)
    if is_start and systemd.is_watched():
        # With the port in systemd's hands, the next packet starts us again, whatever the unit says
        # of restarts: what cannot be helped so soon must not fill the log, or a core.
        systemd.notify(status=f"did not start: {text}")
        time.sleep(_PAUSE_S)
    sys.exit(code)
