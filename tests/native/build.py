"""Compiles parts of the native engine into a shared library, for tests by ctypes.

    from .build import load

    library = load("crypto.c", "packet.c")
    library.zdp_cipher_key_bytes.restype = ctypes.c_size_t

``load`` takes the names of files in ``datapath/native``, every one that the code under test needs,
and as ``shim`` C code of the test's own (it may include the engine's headers): a callback, a
`sizeof`, a loop that would be slow through ctypes. What is not declared static can be called.

The library is compiled once for each content of sources, headers and flags, into
``build/native-tests``. Where ``ZGATE_SANITIZE`` is set, with AddressSanitizer and
UndefinedBehaviorSanitizer; the process then needs libasan preloaded. ``test_sanitized.py`` runs
this whole folder in such a process; ``SANITIZED`` says so to a test that wants fewer rounds there.
"""

import ctypes
import hashlib
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
NATIVE = REPOSITORY / "datapath" / "native"
BUILT = REPOSITORY / "build" / "native-tests"
SANITIZED = bool(os.environ.get("ZGATE_SANITIZE"))

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wstrict-prototypes", "-Wvla"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def load(*sources: str, shim: str = "", defines: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Compile what has changed and load it. ``defines``: as in ``ZDP_BENCH_NULL_CIPHER``."""
    return ctypes.CDLL(str(compiled(*sources, shim=shim, defines=defines)), use_errno=True)


def compiled(
    *sources: str,
    shim: str = "",
    defines: tuple[str, ...] = (),
    sanitized: bool = SANITIZED,
    executable: bool = False,
) -> Path:
    """Return the path of a shared library, or of a program whose ``main`` is in ``shim``."""
    flags = ["-std=gnu11", "-g", "-O2", *WARNINGS, *(f"-D{name}" for name in defines)]
    flags += SANITIZE if sanitized else []
    flags += [] if executable else ["-shared", "-fPIC"]
    paths = [NATIVE / name for name in sources]
    target = BUILT / f"{_digest(flags, paths, shim)}{'' if executable else '.so'}"
    if not target.exists():
        _compile(flags, paths, shim, target)
    return target


def _digest(flags: list[str], paths: list[Path], shim: str) -> str:
    digest = hashlib.sha256(repr((_compiler(), flags, shim)).encode())
    for path in [*paths, *sorted(NATIVE.glob("*.h"))]:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:24]


@cache
def _compiler() -> str:
    return subprocess.run(["gcc", "--version"], check=True, capture_output=True, text=True).stdout


def _compile(flags: list[str], paths: list[Path], shim: str, target: Path) -> None:
    """Under another name first: test processes that run at the same time share the folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / "made"
        shim_file = Path(folder) / "shim.c"
        shim_file.write_text(shim)
        inputs = [str(path) for path in paths] + ([str(shim_file)] if shim else [])
        command = ["gcc", *flags, f"-I{NATIVE}", "-o", str(made), *inputs, "-lcrypto", "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        made.replace(target)
