"""What cutting and merging cost: ``python -m tests.native.bench_offload``."""

import subprocess
from pathlib import Path

from .build import compiled
from .offload_support import SOURCES


def main() -> None:
    program = Path(__file__).with_suffix(".c").read_text()
    subprocess.run([compiled(*SOURCES, shim=program, executable=True)], check=True)


if __name__ == "__main__":
    main()
