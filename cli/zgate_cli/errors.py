"""How zgatectl ends when something is wrong: one line on stderr, and a code that says what."""

from __future__ import annotations

from typing import IO, Any, ClassVar

import click

_MAX_NAME_CHARS = 64  # of a Common Name (X.520)
FAILED, BAD_INPUT, VERDICTS_DIFFER, NOT_REACHABLE = 1, 2, 3, 4


class CommandError(click.ClickException):
    """The gateway was asked, and it could not be done. Has a cause and a cure."""

    exit_code: ClassVar[int] = FAILED

    def __init__(self, cause: str, cure: str) -> None:
        super().__init__(f"{cause}; {cure}")

    def show(self, file: IO[Any] | None = None) -> None:
        """Write the error as one line."""
        line = " ".join(self.format_message().split())
        click.echo(f"zgatectl: {line}", file=file, err=file is None)


class BadInput(CommandError):
    """What was asked for makes no sense to the gateway."""

    exit_code: ClassVar[int] = BAD_INPUT


def check_client_name(name: str) -> None:
    """Raise :class:`BadInput` for what can be nobody's name."""
    if not 0 < len(name) <= _MAX_NAME_CHARS or not name.isprintable():
        raise BadInput(
            f"CLIENT is a name of 1 to {_MAX_NAME_CHARS} printable characters",
            "zgatectl clients lists those that the gateway knows",
        )


class VerdictsDiffer(CommandError):
    """The kernel's verdict is not the compiler's."""

    exit_code: ClassVar[int] = VERDICTS_DIFFER


class NotReachable(CommandError):
    """No gateway answers on the socket."""

    exit_code: ClassVar[int] = NOT_REACHABLE
