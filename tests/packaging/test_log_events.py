"""Every line that is logged has an event and fields, and docs/logs.md lists them all."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("log_events", ROOT / "tools/log_events.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_page_lists_what_the_source_says(tool: ModuleType) -> None:
    page = (ROOT / "docs/logs.md").read_text()
    listed = page.split(tool.BEGIN)[1].split(tool.END)[0]
    assert listed == tool.table(), "run: python tools/log_events.py"


def test_names(tool: ModuleType) -> None:
    reserved = {"ts", "level", "event", "message", "logger", "exception"}
    for (_, name), event in tool.collect().items():
        for word in (name, *event.fields):
            assert word.isidentifier() and word == word.lower()
        assert not reserved & event.fields, name


@pytest.mark.parametrize(
    "call",
    [
        'logger.info("text")',
        'logger.info("%s", 1)',
        'logger.info("text", {"a": 1})',
        'logger.info("text", {"a": 1, "event": "x"})',
        'logger.info("%(b)s", {"event": "x", "a": 1})',
        'logger.log(10, "text")',
        "logger.error(text, {'event': 'x'})",
    ],
)
def test_another_form_is_found(tool: ModuleType, call: str, tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(call)
    (found,) = tool.calls(module)
    with pytest.raises(tool.BadCall):
        tool.parse(found)


def test_the_form(tool: ModuleType) -> None:
    call = ast.parse(
        'logger.exception("a %(b).1f", {"event": "x", "b": 1.0, "c": 2})', mode="eval"
    ).body
    assert tool.parse(call) == ("x", "error", {"b", "c"}, "a %(b).1f")
