"""This folder once more, with AddressSanitizer and UndefinedBehaviorSanitizer in the C code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .build import SANITIZED, compiled

pytestmark = pytest.mark.skipif(SANITIZED, reason="it is being run")

OVERREAD = "int zdp_test_overread(const unsigned char *at, int bytes) { return at[bytes]; }"


def sanitized_environment() -> dict[str, str]:
    libasan = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    return {
        **os.environ,
        "ZGATE_SANITIZE": "1",
        "LD_PRELOAD": str(Path(libasan).resolve()),
        # What ctypes passes must be malloc's, or an access beside it goes unseen. The interpreter
        # does not free all at its end: leaks are the fuzzers' to find.
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_other_tests_of_this_folder_with_sanitizers() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, str(Path(__file__).parent)],
        env=sanitized_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]


def test_an_access_beside_a_buffer_is_found() -> None:
    """Without this, the test above could pass because nothing is watched."""
    path = compiled(shim=OVERREAD, sanitized=True)
    program = (
        "import ctypes, sys; bytes_ = int(sys.argv[2]);"
        "buffer = (ctypes.c_ubyte * 100)();"
        "print(ctypes.CDLL(sys.argv[1]).zdp_test_overread(buffer, bytes_))"
    )
    for offset, good in ((99, True), (100, False)):
        run = subprocess.run(
            [sys.executable, "-c", program, str(path), str(offset)],
            env=sanitized_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (run.returncode == 0) is good, run.stderr
        assert ("heap-buffer-overflow" in run.stderr) is not good
