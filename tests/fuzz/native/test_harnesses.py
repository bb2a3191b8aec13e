"""Every harness for some seconds, its corpus first. `make fuzz-datapath` runs them for longer."""

import shutil
from pathlib import Path

import pytest

from . import run

pytestmark = pytest.mark.skipif(not shutil.which("clang"), reason="libFuzzer needs clang")

HARMLESS = """/* sources: frames.c */
#include "frames.h"
#include "fuzz.h"
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct zdp_frames frames;
    return zdp_parse_frames(data, size, &frames) > ZDP_FRAMES_OTHER;
}
"""
OVERREAD = HARMLESS.replace("data, size, &frames)", "data, size + 1, &frames)")
WRONG = HARMLESS.replace("return", "check(size < 3); return")


@pytest.mark.slow
@pytest.mark.parametrize("name", run.harnesses())
def test_finds_nothing(name: str) -> None:
    result = run.fuzz(name, seconds=4)
    assert result.finding is None, result.finding[-6000:]
    assert result.executions > 1000, result


@pytest.mark.parametrize("name", run.harnesses())
def test_corpus_finds_nothing(name: str) -> None:
    """Whatever time is left for fuzzing: what was once worth keeping is always run."""
    inputs = sorted((run.CORPUS / name).glob("*"))
    assert inputs, f"none yet: run.py {name}, then run.py --keep {name}"
    result = run.replay(name, inputs)
    assert result.finding is None, result.finding[-6000:]
    assert result.executions == len(inputs)


@pytest.mark.parametrize(
    ("source", "said"),
    ((HARMLESS, None), (OVERREAD, "AddressSanitizer"), (WRONG, "not so: size < 3")),
)
def test_what_is_wrong_is_found(
    source: str, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fuzz_it.c").write_text(source)
    shutil.copy(run.HERE / "fuzz.h", tmp_path)
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "BUILT", tmp_path / "built")
    assert run.harnesses() == ["fuzz_it"]
    result = run.fuzz("fuzz_it", seconds=2)
    if said is None:
        assert result.finding is None
    else:
        assert said in result.finding
        assert "FOUND" in str(result)
        crash = next((tmp_path / "built").glob("fuzz_it-crash-*"))
        assert said in run.replay("fuzz_it", [crash]).finding
        assert run.main(["--seconds", "2"])


def test_a_harness_without_sources_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fuzz_it.c").write_text("int x;")
    monkeypatch.setattr(run, "HERE", tmp_path)
    with pytest.raises(run.FuzzError, match="its first line must be"):
        run.compiled("fuzz_it")
