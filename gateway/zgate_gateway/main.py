"""`zgate-gateway`: read the configuration, run the daemon, say clearly what is wrong."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import click
from zgate_config.logs import configure_logging

from zgate_gateway.config import DEFAULT_PATH, GatewayConfig, load_config

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
def main(config_path: Path | None, check: bool) -> None:
    """Run the zgate gateway in the foreground."""
    from zgate_config import ConfigError

    from zgate_gateway.edge_blocklist import read_blocklist
    from zgate_gateway.policy.policy_set import PolicySet
    from zgate_gateway.policy.service_names import ServicePools
    from zgate_gateway.policy_keeper import APPLIED_FILE_NAME

    try:
        config = load_config(config_path)
        policy_file = config.policy_file or config.state_dir / APPLIED_FILE_NAME
        if check and (config.policy_file is not None or policy_file.exists()):
            pools = ServicePools(config.services.ipv4, config.services.ipv6)
            PolicySet.load(policy_file, pools=pools)
        if check and config.edge.blocklist_file is not None:
            read_blocklist(config.edge.blocklist_file)
    except ConfigError as error:
        _stop(EXIT_BAD_INPUT, str(error))
    if check:
        click.echo(f"{config_path or 'built-in defaults'}: ok")
        return
    if os.geteuid() != 0 and not _has_net_admin():
        _stop(
            EXIT_FAILED,
            "CAP_NET_ADMIN is missing: run as root, or as the zgate-gateway systemd unit does",
        )
    configure_logging(config.log.level)
    sys.exit(_run(config))


def _run(config: GatewayConfig) -> int:
    from zgate_gateway.daemon import Gateway, StartError

    try:
        return asyncio.run(Gateway(config).run())
    except StartError as error:
        click.echo(f"zgate-gateway: {error}", err=True)
        return EXIT_BAD_INPUT if error.is_bad_input else EXIT_FAILED


def _stop(code: int, text: str) -> None:
    click.echo(f"zgate-gateway: {text}", err=True)
    sys.exit(code)


def _has_net_admin() -> bool:
    cap_net_admin = 12
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> cap_net_admin & 1)
    return False
