"""``zgatectl completion`` and the completion of client names."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

from .options import invocation_of

_VARIABLE = "_ZGATECTL_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a completion script for SHELL.

    For bash: zgatectl completion bash > /etc/bash_completion.d/zgatectl
    """
    kind = get_completion_class(shell)
    assert kind is not None
    root = context.find_root().command
    click.echo(kind(root, {}, "zgatectl", _VARIABLE).source())


def complete_connector(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the names of the connectors that are there; none if they cannot be asked for."""
    from .client import GatewayClient
    from .errors import CommandError

    try:
        with GatewayClient(invocation_of(context).socket_path) as gateway:
            known = gateway.connectors().connectors
    except CommandError:
        return []
    return [CompletionItem(one.name) for one in known if one.name.startswith(incomplete)]


def complete_client(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the names that the gateway knows; none if it cannot be asked."""
    from .client import GatewayClient
    from .errors import CommandError

    try:
        with GatewayClient(invocation_of(context).socket_path) as gateway:
            known = gateway.clients().clients
    except CommandError:
        return []
    return [CompletionItem(one.name) for one in known if one.name.startswith(incomplete)]
