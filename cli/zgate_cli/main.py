"""``zgatectl``: look into a gateway and steer it, through its Unix socket.

This module imports click and nothing else of weight; a command's module is imported when it runs,
so that ``zgatectl --help`` and shell completion are quick.

Exit codes: 0 done, 1 failed, 2 bad input, 3 the kernel and the policy disagree, 4 the gateway
cannot be reached.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from .options import with_socket_and_json

#: Name of a command: (where it is, what it does).
_COMMANDS = {
    "status": ("zgate_cli.status:status", "The gateway at a glance."),
    "top": ("zgate_cli.top.command:top", "The gateway live, on the whole screen."),
    "sessions": ("zgate_cli.sessions:sessions", "The sessions that are up."),
    "clients": ("zgate_cli.clients:clients", "Every client that the gateway knows."),
    "services": ("zgate_cli.services:services", "Private services, and who offers them."),
    "connectors": ("zgate_cli.connectors:connectors", "Who offers what, and how they do."),
    "drain": ("zgate_cli.connectors:drain", "Give a connector no new flows."),
    "policy": ("zgate_cli.policy:policy", "Show, check and reload the policy."),
    "flows": ("zgate_cli.flows:flows", "Open flows and denials, now or as they happen."),
    "log-level": ("zgate_cli.log_level:log_level", "How much the gateway logs, for a while."),
    "kick": ("zgate_cli.sessions:kick", "Close a client's sessions."),
    "ping": ("zgate_cli.ping:ping", "Is a client there, and how far away?"),
    "why": ("zgate_cli.why:why", "Would this packet pass, and which rule says so?"),
    "doctor": ("zgate_cli.doctor.command:doctor", "Is this host fit, and the gateway well?"),
    "netcheck": (
        "zgate_cli.netcheck.command:netcheck",
        "On an agent's device: what is on the way to the gateway?",
    ),
    "bundle": ("zgate_cli.bundle.command:bundle", "A support archive, without secrets."),
    "audit": ("zgate_cli.audit:audit", "Is the audit log what the gateway wrote?"),
    "pki": ("zgate_cli.pki:pki", "The certificate authority: issue, revoke, list."),
    "completion": ("zgate_cli.completion:completion", "Print a shell completion script."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for by name."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names in the order of the help text."""
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@with_socket_and_json
@click.version_option(package_name="zgate", prog_name="zgatectl")
def cli(**_options: Any) -> None:
    """Look into a zgate gateway and steer it.

    Exit codes: 0 done, 1 failed, 2 bad input, 3 the kernel and the policy disagree, 4 the gateway
    cannot be reached.
    """


def main() -> None:
    """Run zgatectl."""
    cli(prog_name="zgatectl")


if __name__ == "__main__":
    main()
