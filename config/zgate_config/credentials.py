"""Secrets that a service manager hands to a service (systemd.exec(5), LoadCredential=).

A configuration names one as ``credential:NAME``, where it wants the path of a key, a certificate
or another file. The service sees a copy that was made when it started, in a folder that only it
can read; the file itself may be readable for root alone.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_PREFIX = "credential:"
_DIRECTORY_VARIABLE = "CREDENTIALS_DIRECTORY"
#: What systemd allows and a shell does not need quotes for.
_NAME = re.compile(r"(?!\.{1,2}\Z)[\w.@+-]{1,255}\Z", re.ASCII)
#: Our units hand over whole folders (``LoadCredential=zgate:FOLDER``), and systemd then puts this
#: before each file's name.
_FOLDER_ID = "zgate_"
_MAX_SHOWN = 8


class CredentialError(ValueError):
    """There is no such credential; the text is what was expected, and what to do."""


def credential(name: str) -> Path:
    """Return where the credential of this name is.

    Raises:
        CredentialError: it is not there.
    """
    if not _NAME.match(name):
        raise CredentialError("a credential's name of letters, digits and . _ @ + -")
    folder = os.environ.get(_DIRECTORY_VARIABLE)
    if not folder:
        raise CredentialError(
            f"a path, or a service that systemd gives credentials (LoadCredential={name}:FILE):"
            f" this process has no {_DIRECTORY_VARIABLE}; to check a configuration by hand,"
            " set it to the folder of the files"
        )
    paths = Path(folder) / name, Path(folder) / (_FOLDER_ID + name)
    for path in paths:
        if path.exists():
            return path
    raise CredentialError(
        f"a credential that the unit hands over (LoadCredential={name}:FILE);"
        f" there {_found(Path(folder))}"
    )


def _found(folder: Path) -> str:
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        return f"are none: {folder}: {error.strerror}"
    more = ", ..." if len(names) > _MAX_SHOWN else ""
    return f"are {', '.join(names[:_MAX_SHOWN])}{more}" if names else "are none"


def is_credential(value: str) -> bool:
    """Whether this is ``credential:NAME``, and no path."""
    return value.startswith(_PREFIX)


def resolve_credential(value: object) -> object:
    """Replace ``credential:NAME`` by that credential's path, as text; leave all else alone.

    Raises:
        CredentialError: it is not there.
    """
    if isinstance(value, str) and is_credential(value):
        return str(credential(value.removeprefix(_PREFIX)))
    return value
