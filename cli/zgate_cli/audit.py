"""``zgatectl audit verify``: is this the audit log that the gateway wrote?

Needs the files and no gateway: run it where the logs are archived.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .errors import BAD_INPUT, FAILED, BadInput
from .options import Invocation, gateway_command

if TYPE_CHECKING:
    from zgate_gateway.audit_chain import Record


@click.group()
def audit() -> None:
    """Check the audit log."""


@audit.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE..."
)
@click.option(
    "--public-key", "public_keys", multiple=True, type=click.Path(path_type=Path),
    help="Trust signatures by this key only (the gateway's audit.pub); repeatable.",
)  # fmt: skip
@click.option(
    "--head", "head_file", type=click.Path(path_type=Path),
    help="A copy of the gateway's audit.head: the log must have come that far.",
)  # fmt: skip
@click.option("--sealed", is_flag=True, help="The log must end with a signed head.")
@gateway_command
def verify(
    invocation: Invocation,
    *,
    files: tuple[Path, ...],
    public_keys: tuple[Path, ...],
    head_file: Path | None,
    sealed: bool,
) -> None:
    """Verify one audit log, rotated files included, and name what was done to it.

    FILEs are taken in the order of their records, compressed by gzip or not. Exit codes: 0 nothing
    was found, 1 the log was tampered with, 2 a file cannot be read.
    """
    from zgate_gateway.audit_head import BadPublicKey, read_public_key
    from zgate_gateway.audit_verify import Trust, Unreadable, lines_of, verify_files

    try:
        keys = frozenset(read_public_key(file) for file in public_keys) or None
        position = _position(head_file, keys)
        report = verify_files(files, Trust(keys, position, sealed))
    except (BadPublicKey, Unreadable) as error:
        click.echo(f"zgatectl: {error}", err=True)
        raise SystemExit(BAD_INPUT) from None
    if invocation.as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        for line in lines_of(report, trusts_keys=keys is not None):
            click.echo(_printable(line))
    if not report.is_intact:
        raise SystemExit(FAILED)


def _position(file: Path | None, keys: frozenset[str] | None) -> Record | None:
    from zgate_gateway.audit_head import is_signed, parse_position

    if file is None:
        return None
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BadInput(
            f"{file}: {error.strerror}", "give a copy of the gateway's audit.head"
        ) from error
    position = parse_position(data)
    if position is None:
        raise BadInput(
            f"{file}: no head of an audit log", "give a copy of the gateway's audit.head"
        )
    if not is_signed(position, set(keys) if keys is not None else None):
        raise BadInput(
            f"{file}: its signature does not fit", "check --public-key, or take another copy"
        )
    return position


def _printable(text: str) -> str:
    """A file's name must not steer the terminal."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
