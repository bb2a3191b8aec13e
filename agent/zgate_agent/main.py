"""`zgate-agent`: run the agent, ask it how it is; say clearly what is wrong.

Exit codes: 0 all is well; 1 failed, or not connected; 2 the input is no good.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import click
from zgate_config import ConfigError
from zgate_config.dialling import path_setting
from zgate_config.logs import configure_logging
from zgate_host.capability import has_net_admin
from zgate_host.runtime_dir import AlreadyRunning, RuntimeDir, SeveralRunning

from zgate_agent.config import (
    DEFAULT_RUNTIME_DIR,
    AgentConfig,
    Mode,
    OnDisconnect,
    load_config,
)

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
DEFAULT_CONFIG = Path("/etc/zgate/agent.yaml")
_HOW_TO_START = "name another file with --config, or give --gateway, --ca, --cert and --key"
_file = click.Path(path_type=Path, dir_okay=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="zgate", prog_name="zgate-agent")
def main() -> None:
    """Connect this device to a zgate gateway."""


@main.command()
@click.option(
    "--config",
    "config_path",
    type=_file,
    help="YAML or JSON; flags replace its values."
    f"  [default: {DEFAULT_CONFIG}, unless --gateway is given]",
)
@click.option(
    "--gateway",
    "gateways",
    multiple=True,
    metavar="HOST[:PORT]",
    help="The gateway; UDP port 443 by default.  [repeatable: in the order in which to try them]",
)
@click.option("--ca", type=_file, help="The CA that the gateway's certificate must come from.")
@click.option("--cert", "certificate", type=_file, help="This client's certificate.")
@click.option("--key", type=_file, help="Its key.")
@click.option("--server-name", help="The name in the gateway's certificate.  [default: HOST]")
@click.option("--name", "tun_name", metavar="TUN", help="Name of the TUN device.")
@click.option("--mtu", "mtu_bytes", type=int, metavar="BYTES", help="The TUN's MTU at most.")
@click.option("--mode", type=click.Choice([one.value for one in Mode]), help="What is tunnelled.")
@click.option(
    "--route",
    "routes",
    multiple=True,
    metavar="CIDR",
    help="Split tunnel: no more than this of what the gateway advertises.  [repeatable]",
)
@click.option(
    "--on-disconnect",
    type=click.Choice([one.value for one in OnDisconnect]),
    help="What happens to tunnelled traffic while there is no session.  [default: block]",
)
@click.option("--runtime-dir", type=click.Path(path_type=Path, file_okay=False))
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--check", is_flag=True, help="Check the configuration and the files, then exit.")
def run(config_path: Path | None, check: bool, **flags: object) -> None:
    """Run the agent in the foreground, until SIGTERM; SIGHUP: a new session, log.level."""
    if config_path is None and not flags["gateways"]:
        if not DEFAULT_CONFIG.exists():
            stop(EXIT_BAD_INPUT, f"there is no {DEFAULT_CONFIG}: {_HOW_TO_START}")
        config_path = DEFAULT_CONFIG
    try:
        config = load_config(config_path, _settings(flags))
        check_identity(config)
        check_engine(config)
    except ConfigError as error:
        stop(EXIT_BAD_INPUT, str(error))
    if check:
        click.echo(f"{config_path or 'command line'}: ok")
        return
    if not has_net_admin():
        stop(EXIT_FAILED, "the capability CAP_NET_ADMIN is missing: run as root")
    configure_logging(config.log.level, config.log.format)
    sys.exit(_run(config, lambda: load_config(config_path, _settings(flags))))


@main.command()
@click.option("--config", "config_path", type=_file, help="The agent's configuration.")
@click.option(
    "--runtime-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"The agent's runtime folder.  [default: the configured one; {DEFAULT_RUNTIME_DIR}, or the"
    " only one in there with an agent that runs]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(config_path: Path | None, runtime_dir: Path | None, as_json: bool) -> None:
    """Say whether the agent is connected, and if not, why. Exit code 0 only if it is."""
    from zgate_host.status_socket import StatusUnavailable

    from zgate_agent.report import print_status, print_unavailable
    from zgate_agent.status import fetch_status

    if config_path is None and DEFAULT_CONFIG.exists() and runtime_dir is None:
        config_path = DEFAULT_CONFIG
    try:
        if runtime_dir is None and config_path is not None:
            runtime_dir = load_config(config_path, {}).runtime_dir
    except ConfigError as error:
        stop(EXIT_BAD_INPUT, str(error))
    directory = RuntimeDir(runtime_dir or DEFAULT_RUNTIME_DIR, "agent")
    try:
        found = fetch_status(directory.only_running().socket_file)
    except SeveralRunning as error:
        stop(EXIT_BAD_INPUT, str(error))
    except StatusUnavailable as error:
        print_unavailable(str(error), as_json=as_json)
        sys.exit(EXIT_FAILED)
    print_status(found, as_json=as_json)
    sys.exit(0 if found.is_connected else EXIT_FAILED)


def _settings(flags: dict[str, object]) -> dict[str, object]:
    """Flags that were given, as the configuration file would have them."""
    places = {"tun_name": ("tun", "name"), "mtu_bytes": ("tun", "mtu_bytes")}
    places |= {"log_level": ("log", "level")}
    settings: dict[str, object] = {}
    for flag, value in flags.items():
        if value is None or value == ():
            continue
        if flag == "gateways":
            # In the place of those in the file, whichever way they are written there.
            assert isinstance(value, tuple)
            settings |= {"gateway": None, "gateways": list(value)}
            continue
        plain = list(value) if isinstance(value, tuple) else value
        plain = path_setting(plain) if isinstance(plain, Path) else plain
        if flag in places:
            outer, inner = places[flag]
            below = settings.setdefault(outer, {})
            assert isinstance(below, dict)
            below[inner] = plain
        else:
            settings[flag] = plain
    return settings


def check_identity(config: AgentConfig) -> None:
    """Check the three files before anything else; if one is no good, say which, why, and end."""
    from zgate_identity.files import IdentityFileError
    from zgate_identity.tls_files import check_ca_file, check_client_files

    now = datetime.now(UTC)
    try:
        check_ca_file(config.ca, now)
        check_client_files(config.certificate, config.key, now)
    except IdentityFileError as error:
        stop(EXIT_BAD_INPUT, str(error))


def check_engine(config: AgentConfig) -> None:
    """Check that the packet engine that is asked for is here; if not, say why and end."""
    from zgate_datapath.engine import engine_name

    if config.engine == "auto":
        return  # never a mistake; it says what it became when it is used
    try:
        engine_name(config.engine)
    except ValueError as error:
        stop(EXIT_BAD_INPUT, str(error))


def _run(config: AgentConfig, load: Callable[[], AgentConfig]) -> int:
    from zgate_datapath.event_loop import new_event_loop
    from zgate_datapath.tun import TunError

    from zgate_agent.rtnl import RoutingError
    from zgate_agent.service import serve

    directory = RuntimeDir(config.runtime_dir, "agent")
    try:
        with directory.locked(), asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(serve(config, directory, load))
    except (AlreadyRunning, TunError, RoutingError) as error:
        click.echo(f"zgate-agent: {error}", err=True)
    except OSError as error:
        click.echo(f"zgate-agent: {config.runtime_dir}: {error}", err=True)
    return EXIT_FAILED


def stop(code: int, text: str) -> NoReturn:
    """End with one line on standard error."""
    click.echo(f"zgate-agent: {text}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
