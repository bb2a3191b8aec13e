"""``zgatectl netcheck``: the command line."""

from __future__ import annotations

from pathlib import Path

import click
from zgate_agent.config import DEFAULT_RUNTIME_DIR, AgentConfig, load_config
from zgate_agent.main import DEFAULT_CONFIG
from zgate_agent.status import AgentStatus, fetch_status
from zgate_config import ConfigError
from zgate_config.dialling import path_setting
from zgate_host.runtime_dir import RuntimeDir
from zgate_host.status_socket import StatusUnavailable

from zgate_cli.durations import Seconds
from zgate_cli.errors import BadInput
from zgate_cli.findings import report_of, show
from zgate_cli.netcheck.probe import STEPS, Work, check_everything
from zgate_cli.options import Invocation, gateway_command
from zgate_cli.output import progress
from zgate_cli.unit_files import agent_folders, as_unit, only_agent

_file = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option(
    "--config", "config_path", type=_file,
    help=f"The agent's.  [default: {DEFAULT_CONFIG}, or the only one of /etc/zgate/agents]",
)  # fmt: skip
@click.option(
    "--gateway", "gateways", metavar="HOST[:PORT]", multiple=True,
    help="Instead of the configured one; repeatable: a second address shows what a NAT does.",
)  # fmt: skip
@click.option("--ca", type=_file, help="The CA that the gateway's certificate must come from.")
@click.option("--cert", "certificate", type=_file, help="This client's certificate.")
@click.option("--key", type=_file, help="Its key.")
@click.option("--server-name", help="The name in the gateway's certificate.  [default: HOST]")
@click.option(
    "--probes", type=click.IntRange(1, 150), default=20, show_default=True,
    help="Round trips to each address, 20 in a second.",
)  # fmt: skip
@click.option(
    "--timeout", "timeout_s", type=Seconds(0.5, 60), default=5.0, show_default=True,
    metavar="SECONDS", help="How long an address may take to answer.",
)  # fmt: skip
@click.option("--strict", is_flag=True, help="Exit code 1 for warnings, too.")
@gateway_command
def netcheck(
    invocation: Invocation,
    *,
    config_path: Path | None,
    gateways: tuple[str, ...],
    ca: Path | None,
    certificate: Path | None,
    key: Path | None,
    server_name: str | None,
    probes: int,
    timeout_s: float,
    strict: bool,
) -> None:
    """Check what is between this device and its gateway. Run it where the agent runs.

    Is UDP open, the path's MTU, round trip, jitter and loss, the kind of NAT, the clock, the
    certificate's days, names of services; each with a verdict, and what to do. It dials the
    gateway by itself, beside the agent, and needs no session: it works when nothing else does.
    Exit code 0 if nothing has failed, 1 if something has, 2 if the configuration is no good.
    """
    flags: dict[str, object] = {
        "ca": ca, "certificate": certificate, "key": key, "server_name": server_name,
    }  # fmt: skip
    if config_path is None:
        config_path = DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else only_agent()
    if config_path is None and not (gateways and ca and certificate and key):
        raise BadInput(
            f"which agent? There is no {DEFAULT_CONFIG}, and none or several in /etc/zgate/agents",
            "name its file with --config, or give --gateway, --ca, --cert and --key",
        )
    credentials, runtime = agent_folders(config_path or DEFAULT_CONFIG)
    with as_unit(credentials=credentials, runtime=runtime):
        config = _load(config_path, gateways, flags)
    status, problem = _agent_status(config)
    with progress(STEPS, "looking at") as step:
        work = Work(config, probes, timeout_s, status, problem, step)
        findings = check_everything(work)
    show(invocation, report_of(findings), is_strict=strict)


def _load(path: Path | None, gateways: tuple[str, ...], flags: dict[str, object]) -> AgentConfig:
    settings = {
        name: path_setting(value) if isinstance(value, Path) else value
        for name, value in flags.items()
        if value is not None
    }
    try:
        if not gateways:
            return load_config(path, settings)
        # Whichever way the file names its gateway, this takes its place.
        config = load_config(path, settings) if path is not None else None
        if config is None:
            return load_config(None, {**settings, "gateways": list(gateways)})
        named = load_config(
            None,
            {
                "gateways": list(gateways),
                **{one: str(getattr(config, one)) for one in ("ca", "certificate", "key")},
            },
        )
        update = {
            "given_gateways": named.given_gateways, "given_gateway": None,
            "intermediate_server": None,
        }  # fmt: skip
        return config.model_copy(update=update)
    except ConfigError as error:
        raise BadInput(str(error), "see docs/operations.md, and zgate-agent run --check") from error


def _agent_status(config: AgentConfig) -> tuple[AgentStatus | None, str]:
    folder = config.runtime_dir or DEFAULT_RUNTIME_DIR
    try:
        return fetch_status(RuntimeDir(folder, "agent").socket_file), ""
    except StatusUnavailable as error:
        return None, str(error)
