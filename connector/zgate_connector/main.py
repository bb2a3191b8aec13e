"""`zgate-connector`: run the connector, ask it how it is; say clearly what is wrong.

Exit codes: 0 all is well; 1 failed, or not connected; 2 the input is no good.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import click
from zgate_config import ConfigError
from zgate_config.dialling import path_setting
from zgate_config.logs import configure_logging
from zgate_host.capability import has_net_admin
from zgate_host.runtime_dir import AlreadyRunning, RuntimeDir, SeveralRunning

from zgate_connector.config import (
    SYSTEM_RUNTIME_DIR,
    ConnectorConfig,
    default_runtime_dir,
    load_config,
)

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
DEFAULT_CONFIG = Path("/etc/zgate/connector.yaml")
_file = click.Path(path_type=Path, dir_okay=False)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_path",
    type=_file,
    help=f"YAML or JSON; flags replace its values.  [default: {DEFAULT_CONFIG}]",
)
@click.option("--ca", type=_file, help="The CA that the gateway's certificate must come from.")
@click.option("--cert", "certificate", type=_file, help="This connector's certificate.")
@click.option("--key", type=_file, help="Its key.")
@click.option("--server-name", help="The name in the gateway's certificate.  [default: its host]")
@click.option("--runtime-dir", type=click.Path(path_type=Path, file_okay=False))
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--check", is_flag=True, help="Check the configuration and the files, then exit.")
@click.version_option(package_name="zgate", prog_name="zgate-connector")
@click.pass_context
def main(context: click.Context, /, config_path: Path | None, check: bool, **flags: object) -> None:
    """Offer services, or networks, that are beside this host to the clients of zgate gateways.

    Without a command it runs in the foreground, until SIGTERM. SIGHUP makes it read its
    configuration again.
    """
    config_path = config_path or DEFAULT_CONFIG
    settings = _settings(flags)
    context.obj = config_path, settings
    if context.invoked_subcommand is not None:
        return
    config = _checked(config_path, settings)
    if check:
        click.echo(f"{config_path}: ok")
        return
    configure_logging(config.log.level, config.log.format)
    end_now(_run(config, config_path, settings))


@main.command()
@click.option("--config", "own_config_path", type=_file, help="The connector's configuration.")
@click.option(
    "--runtime-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"The connector's folder.  [default: the configured one; or {SYSTEM_RUNTIME_DIR}, or the"
    " only one in there with a connector that runs]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def status(
    given: tuple[Path, dict[str, object]],
    own_config_path: Path | None,
    runtime_dir: Path | None,
    as_json: bool,
) -> None:
    """Say whether the connector is connected, and if not, why. Exit code 0 only if it is.

    It is connected if there is a session with every gateway.
    """
    from zgate_host.status_socket import StatusUnavailable

    from zgate_connector.report import print_status, print_unavailable
    from zgate_connector.status import fetch_status

    config_path, settings = own_config_path or given[0], given[1]
    if runtime_dir is None and "runtime_dir" in settings:
        runtime_dir = Path(str(settings["runtime_dir"]))
    try:
        if runtime_dir is None and (config_path != DEFAULT_CONFIG or config_path.exists()):
            runtime_dir = load_config(config_path, {}).runtime_dir
    except ConfigError as error:
        stop(EXIT_BAD_INPUT, str(error))
    directory = RuntimeDir(runtime_dir or default_runtime_dir(), "connector")
    if runtime_dir is None and not directory.running():
        directory = RuntimeDir(
            SYSTEM_RUNTIME_DIR, "connector"
        )  # a unit's, and we are somebody else
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
    settings: dict[str, object] = {
        name: path_setting(value) if isinstance(value, Path) else value
        for name, value in flags.items()
        if value is not None
    }
    if "log_level" in settings:
        settings["log"] = {"level": settings.pop("log_level")}
    return settings


def _checked(config_path: Path, settings: dict[str, object]) -> ConnectorConfig:
    """Read and check everything; if something is no good, say what and why, and end."""
    try:
        return load_checked(config_path, settings)
    except ConfigurationRefused as error:
        stop(error.exit_code, str(error))


class ConfigurationRefused(Exception):
    """The configuration, or what it names, is no good; the text says what and why."""

    def __init__(self, text: str, exit_code: int = EXIT_BAD_INPUT) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def load_checked(config_path: Path, settings: dict[str, object]) -> ConnectorConfig:
    """Read the configuration, and check the files, the engine and the rights that it needs.

    Raises:
        ConfigurationRefused: with cause and cure.
    """
    from zgate_datapath.engine import engine_name
    from zgate_identity.files import IdentityFileError
    from zgate_identity.tls_files import check_ca_file, check_client_files

    now = datetime.now(UTC)
    try:
        config = load_config(config_path, settings)
        check_ca_file(config.ca, now)
        check_client_files(config.certificate, config.key, now)
        if config.engine != "auto":  # which is never a mistake
            engine_name(config.engine)
    except (ConfigError, IdentityFileError, ValueError) as error:
        raise ConfigurationRefused(str(error)) from error
    if config.networks and not has_net_admin():
        raise ConfigurationRefused(
            f"{config_path}: networks need the capability CAP_NET_ADMIN: run as root, or grant it"
            " (in a systemd unit: AmbientCapabilities=CAP_NET_ADMIN)",
            EXIT_FAILED,
        )
    return config


def _run(config: ConnectorConfig, config_path: Path, settings: dict[str, object]) -> int:
    from zgate_datapath.event_loop import new_event_loop
    from zgate_datapath.tun import TunError

    from zgate_connector.plane import PlaneError
    from zgate_connector.service import serve

    directory = RuntimeDir(config.runtime_dir, "connector")

    def reload() -> ConnectorConfig:
        return load_checked(config_path, settings)

    try:
        with directory.locked(), asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(serve(config, directory, reload))
    except (AlreadyRunning, TunError, PlaneError) as error:
        click.echo(f"zgate-connector: {error}", err=True)
    except OSError as error:
        click.echo(f"zgate-connector: {config.runtime_dir}: {error}", err=True)
    return EXIT_FAILED


def end_now(code: int) -> NoReturn:
    """End the process, with everything already in order.

    Without the interpreter's own way out: taking all modules apart takes it longer than all that
    a connector has to do, and who stops a service waits for it.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def stop(code: int, text: str) -> NoReturn:
    """End with one line on standard error."""
    click.echo(f"zgate-connector: {text}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
