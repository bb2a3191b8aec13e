"""This folder once more, with AddressSanitizer and UndefinedBehaviorSanitizer in the C code.

And the tests of the extension module, which is more than the sum of what is tested here: it is
compiled as an installation does it, but for the sanitizers.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .build import REPOSITORY, SANITIZE, SANITIZED, compiled

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


EXTENSION_TESTS = (
    "test_event_loop.py",
    "test_local_paths.py",
    "test_native.py",
    "test_native_engine*.py",
)
# Both ends are ours and native, or there is only one.
ENGINES = "native-native or event_loop or test_native.py"
# What a process says at its end, beside the exit code of its own.
FINDINGS = re.compile(r"AddressSanitizer|UndefinedBehaviorSanitizer|runtime error:|Fatal Python")


@pytest.fixture(scope="module")
def sanitized_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with zgate_datapath, whose extension has sanitizers inside."""
    folder = tmp_path_factory.mktemp("sanitized")
    package = folder / "zgate_datapath"
    shutil.copytree(
        REPOSITORY / "datapath" / "zgate_datapath",
        package,
        ignore=shutil.ignore_patterns("__pycache__", "*.so"),
    )
    flags = " ".join([*SANITIZE, "-g"])
    command = [sys.executable, "setup.py", "--quiet", "build_ext"]
    subprocess.run(
        [*command, "--build-lib", str(folder), "--build-temp", str(folder / "objects")],
        cwd=REPOSITORY,
        env={**os.environ, "CFLAGS": flags, "LDFLAGS": flags},
        capture_output=True,
        check=True,
        timeout=300,
    )
    assert list(package.glob("_native*.so"))
    return folder


def with_sanitizers(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env={**sanitized_environment(), "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_extensions_tests_with_sanitizers(sanitized_package: Path) -> None:
    """Memory is what is watched. The code is several times slower: a test that waits for time may
    fail here, and is judged where it runs as it is."""
    loaded = with_sanitizers(
        sanitized_package, "-c", "import zgate_datapath._native as n; print(n.__file__)"
    )
    assert loaded.stdout.startswith(str(sanitized_package)), loaded.stderr
    folder = REPOSITORY / "tests" / "unit" / "datapath"
    tests = [str(path) for name in EXTENSION_TESTS for path in folder.glob(name)]
    run = with_sanitizers(
        sanitized_package,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=line",
        "-k",
        ENGINES,
        *tests,
    )
    output = (run.stdout + run.stderr)[-8000:]
    assert run.returncode in (0, 1), output
    assert not FINDINGS.search(output), output
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None and int(passed[1]) > 50, output
