"""What the bench compiles for itself, in a folder of its own that lives as long as its lab.

Nothing of it is installed: the packet engine a second time with a null cipher, and the programs of
`native/`.
"""

import os
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from bench.errors import BenchError

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "datapath" / "native"
OWN = ROOT / "bench" / "native"
COMPILE_TIMEOUT_S = 180
NULL_CIPHER_SWITCH = "ZGATE_BENCH_NULL_CIPHER"

# Python imports this by itself, before anything else: `_native` is then found in its folder.
SITECUSTOMIZE = """\
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

NAME = "zgate_datapath._native"


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != NAME:
            return None
        file = str(Path(__file__).with_name("_native.so"))
        loader = importlib.machinery.ExtensionFileLoader(name, file)
        return importlib.util.spec_from_file_location(name, file, loader=loader)


sys.meta_path.insert(0, Finder())
"""


def build_null_cipher(directory: Path) -> dict[str, str]:
    """Compile the extension with its null cipher, with the flags of the installed one (setup.py).

    Returns the environment in which a zgate process loads it and uses it.
    """
    directory.mkdir(exist_ok=True)
    flags = shlex.split(sysconfig.get_config_var("CFLAGS") or "")
    compile_c(
        directory / "_native.so",
        sorted(ENGINE.glob("*.c")),
        *flags,
        *("-std=gnu11", "-O3", "-fvisibility=hidden", "-fPIC", "-shared"),
        *("-DZDP_BENCH_NULL_CIPHER", f"-I{sysconfig.get_path('include')}"),
    )
    (directory / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return {"PYTHONPATH": str(directory), NULL_CIPHER_SWITCH: "1"}


def build_bare(directory: Path) -> Path:
    """Compile `native/bare.c`: the engine's TUN and UDP without QUIC."""
    sources = [OWN / "bare.c", *sorted(ENGINE.glob("offload_*.c"))]
    return compile_c(directory / "bare", sources, "-std=gnu11", "-O3")


def build_tun_copy(directory: Path) -> Path:
    """Compile `native/tun_copy.c`."""
    return compile_c(directory / "tun_copy", [OWN / "tun_copy.c"], "-std=gnu11", "-O2")


def build_crypto(directory: Path) -> Path:
    """Compile the engine's crypto.c as a library of its own, for ctypes."""
    sources = [ENGINE / "crypto.c", ENGINE / "crypto_ipsec_mb.c"]
    return compile_c(directory / "crypto.so", sources, "-std=gnu11", "-O3", "-fPIC", "-shared")


def compile_c(target: Path, sources: Iterable[Path], *flags: str) -> Path:
    """Run the C compiler; BenchError with its words when it fails. Done once for a target."""
    if target.exists():
        return target
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BenchError("no C compiler; install with: apt-get install gcc libc6-dev libssl-dev")
    command = [compiler, *flags, f"-I{ENGINE}", "-o", str(target), *map(str, sources)]
    done = subprocess.run(
        [*command, "-lcrypto", "-ldl"],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMPILE_TIMEOUT_S,
    )
    if done.returncode:
        raise BenchError(f"cannot compile {target.name}: {done.stderr.strip()[-500:]}")
    return target
