"""Runs the harnesses of this folder: see README.md beside this."""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
NATIVE = REPOSITORY / "datapath" / "native"
CORPUS = HERE / "corpus"
BUILT = REPOSITORY / "build" / "fuzz-native"

FLAGS = [
    "-std=gnu11",
    "-g",
    "-O1",
    "-fno-omit-frame-pointer",
    "-fsanitize=fuzzer,address,undefined",
    "-fno-sanitize-recover=all",
]
# One input may not take longer, nor make more memory.
LIMITS = ["-timeout=10", "-rss_limit_mb=1024", "-max_len=4096"]


class FuzzError(Exception):
    """What stops a run before it begins: cause and cure."""


@dataclass(frozen=True)
class Result:
    """One harness's run. ``finding``: what it printed, None when it found nothing."""

    name: str
    executions: int
    coverage: int
    seconds: float
    finding: str | None

    def __str__(self) -> str:
        found = "nothing found" if self.finding is None else "FOUND SOMETHING"
        return (
            f"{self.name}: {self.executions:,} inputs in {self.seconds:.0f} s,"
            f" {self.coverage} edges: {found}"
        )


def harnesses() -> list[str]:
    return sorted(path.stem for path in HERE.glob("fuzz_*.c"))


def compiled(name: str) -> Path:
    """Return the program of a harness, compiled if anything that it is made of has changed."""
    source = HERE / f"{name}.c"
    listed = re.search(r"/\* sources: ([a-z0-9_. ]+) \*/", source.read_text())
    if not listed:
        raise FuzzError(f"{source}: its first line must be /* sources: FILES of datapath/native */")
    inputs = [source, *(NATIVE / part for part in listed[1].split())]
    digest = hashlib.sha256(repr(FLAGS).encode())
    for path in [*inputs, *sorted(NATIVE.glob("*.h")), *sorted(HERE.glob("*.h"))]:
        digest.update(path.name.encode() + path.read_bytes())
    program = BUILT / f"{name}-{digest.hexdigest()[:16]}"
    if not program.exists():
        _compile(inputs, program)
    return program


def _compile(inputs: list[Path], program: Path) -> None:
    if not shutil.which("clang"):
        raise FuzzError("no clang: apt-get install clang libclang-rt-14-dev")
    program.parent.mkdir(parents=True, exist_ok=True)
    made = program.with_suffix(f".{os.getpid()}")
    includes = [f"-I{NATIVE}", f"-I{HERE}"]
    command = ["clang", *FLAGS, *includes, "-o", made, *inputs, "-lcrypto", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FuzzError(f"{program.name} does not compile:\n{done.stderr}")
    made.replace(program)


def fuzz(name: str, seconds: int) -> Result:
    """Let a harness make inputs for that long, from its corpus and from what runs here found."""
    found = BUILT / "inputs" / name
    found.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={BUILT}/{name}-", *LIMITS]
    run = _run(compiled(name), [*options, "-print_final_stats=1", found, *_corpus(name)])
    return _result(name, run)


def replay(name: str, files: Sequence[Path]) -> Result:
    """Run a harness with these inputs only."""
    return _result(name, _run(compiled(name), [*LIMITS, *files]))


def keep(name: str) -> int:
    """Make the corpus anew of itself and of what runs here found; return how many files it has."""
    target, new = CORPUS / name, BUILT / "inputs" / f"{name}.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    run = _run(compiled(name), ["-merge=1", *LIMITS, new, BUILT / "inputs" / name, *_corpus(name)])
    if run.returncode:
        raise FuzzError(f"{name}: merging failed:\n{run.stderr[-2000:]}")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(new, target)
    return len(list(target.iterdir()))


def _corpus(name: str) -> list[Path]:
    return [CORPUS / name] if (CORPUS / name).is_dir() else []


def _run(program: Path, arguments: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, errors="replace", check=False
    )


def _result(name: str, run: subprocess.CompletedProcess[str]) -> Result:
    def last(pattern: str) -> int:
        return int((re.findall(pattern, run.stderr) or ["0"])[-1])

    return Result(
        name,
        executions=last(r"number_of_executed_units: (\d+)") or run.stderr.count("Running:"),
        coverage=last(r"cov: (\d+)"),
        seconds=last(r"in (\d+) second"),
        finding=run.stderr if run.returncode else None,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fuzz the native engine.")
    parser.add_argument("--seconds", type=int, default=60, help="for all harnesses together")
    parser.add_argument("--keep", action="store_true", help="make the corpus anew, do not fuzz")
    parser.add_argument("--input", type=Path, help="run this input only")
    parser.add_argument("names", nargs="*", help="harnesses; all if none is named")
    options = parser.parse_args(arguments)
    names = options.names or harnesses()
    bad = False
    for name in names:
        if options.keep:
            print(f"{name}: {keep(name)} inputs", flush=True)
            continue
        share = max(1, options.seconds // len(names))
        result = replay(name, [options.input]) if options.input else fuzz(name, share)
        print(result, flush=True)
        if result.finding is not None:
            print(result.finding[-6000:])
            bad = True
    return bad


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FuzzError as error:
        sys.exit(str(error))
