"""What instructions depend on, as one name: two compilations of one name give the same.

In it goes everything that the compiler reads or is: our whole tree of programs, the text with its
assertions, the flags, the kernel interface headers that can be reached from there, bcc and LLVM,
the machine and its kernel (bcc asks it what it can do). To look at more than is used costs a
compilation too many after an upgrade; to look at less would load a program that nobody wrote.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from zgate_bpf.compiler import PROGRAMS, Source, header_folders

_FORM = "1"
"""Another one where this module, or `zgate_bpf.linking`, changes what a name stands for."""

_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"\n]+)[>"]', re.MULTILINE)
_LIBRARIES = ("libbcc.so*", "libLLVM*.so*", "libclang*.so*")
_LIBRARY_FOLDERS = ("/usr/lib/{machine}-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")


def program_key(source: Source) -> str:
    """The name (SHA-256, hexadecimal) of what compiling this gives.

    Raises:
        OSError: the sources cannot be read.
    """
    digest = hashlib.sha256()
    for part in _parts(source):
        # With its length, or two parts could be told apart in two ways.
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _parts(source: Source) -> Iterator[bytes]:
    text = source.text.encode()
    yield from (_FORM.encode(), source.name.encode(), text)
    yield from _texts("function", source.functions)
    # Where the tree lies does not matter; what is in it follows.
    yield from _texts("flag", [flag.replace(str(PROGRAMS), "programs") for flag in source.flags])
    yield from _texts("machine", (platform.machine(), platform.release()))
    yield from _texts("environment", _environment())
    yield from _texts("compiler", _compiler())
    tree = sorted(file for file in PROGRAMS.rglob("*") if file.is_file())
    contents = [file.read_bytes() for file in tree]
    for file, content in zip(tree, contents, strict=True):
        yield from (str(file.relative_to(PROGRAMS)).encode(), content)
    for file, content in sorted(_reached_headers([text, *contents]).items()):
        yield from (str(file).encode(), content)


def _texts(what: str, values: Iterable[str]) -> Iterator[bytes]:
    for value in values:
        yield f"{what} {value}".encode()


def _environment() -> list[str]:
    """The variables that bcc listens to, but for the one that is always set by us."""
    return sorted(
        f"{name}={value}"
        for name, value in os.environ.items()
        if name == "ARCH" or (name.startswith("BCC_") and name != "BCC_KERNEL_SOURCE")
    )


def _compiler() -> Iterator[str]:
    """bcc and LLVM, found without loading them: by the state of their files."""
    found = importlib.util.find_spec("bcc")
    folder = Path(found.origin).parent if found is not None and found.origin else None
    files = [] if folder is None else sorted(folder.glob("*.py"))
    for pattern in _LIBRARY_FOLDERS:
        libraries = Path(pattern.format(machine=platform.machine()))
        files += sorted({file for name in _LIBRARIES for file in libraries.glob(name)})
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # a link that leads nowhere, or just removed
            state = file.stat()
            yield f"{file.resolve()} {state.st_size} {state.st_mtime_ns}"


def _reached_headers(texts: Iterable[bytes]) -> dict[Path, bytes]:
    """The system's headers that these texts include, and those that they include, and so on.

    Conditions around an inclusion are not looked at.
    """
    folders = header_folders()
    reached: dict[Path, bytes] = {}
    waiting = [(folders, text) for text in texts]
    while waiting:
        places, text = waiting.pop()
        for name in {found.decode(errors="replace") for found in _INCLUDE.findall(text)}:
            for file in (place / name for place in places):
                if file not in reached and file.is_file():
                    reached[file] = file.read_bytes()
                    # What stands in quotation marks is looked for beside the file first.
                    waiting.append(([file.parent, *folders], reached[file]))
    return reached
