"""What sealing and opening 1300 bytes costs: ``python -m tests.native.bench_crypto``."""

import subprocess
from pathlib import Path

from .build import compiled

SOURCES = ("crypto.c", "crypto_ipsec_mb.c")


def main() -> None:
    program = Path(__file__).with_suffix(".c").read_text()
    subprocess.run([compiled(*SOURCES, shim=program, executable=True)], check=True)


if __name__ == "__main__":
    main()
