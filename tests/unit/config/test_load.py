"""A document to a model: types are not bent, and every mistake is a line of its own."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import AfterValidator, Field, model_validator
from zgate_config import (
    ConfigError,
    StrictModel,
    expected,
    load_yaml,
    misfit,
    parse_document,
    validate,
)
from zgate_config.types import IpNetwork, LocalPath


class Colour(StrEnum):
    RED = "red"


def _even(value: int) -> int:
    if value % 2:
        raise expected("an even number")
    return value


class Inner(StrictModel):
    network: IpNetwork
    name: str = "n"
    size: Annotated[int, Field(ge=1, le=9)] | None = None


class Pair(StrictModel):
    low: int = 0
    high: int = 10

    @model_validator(mode="after")
    def _ordered(self):
        if self.low > self.high:
            raise misfit("low", f"at most {self.high}")
        return self


class Model(StrictModel):
    flag: bool = True
    count: int = 1
    even: Annotated[int, AfterValidator(_even)] = 2
    ratio: float = 1.0
    colour: Colour = Colour.RED
    mode: Literal["a", "b"] = "a"
    folder: LocalPath = Path("/default")
    plain: Path = Path("/x")
    names: tuple[str, ...] = ()
    inner: dict[str, Inner] = Field(default_factory=dict)
    items: tuple[Inner, ...] = ()
    maybe: Inner | None = None
    pair: Pair = Pair()
    some: Annotated[tuple[int, ...], Field(min_length=1, max_length=3)] = (1,)
    derived: str = Field(default_factory=lambda data: f"{data['count']}x")

    @model_validator(mode="after")
    def _fits(self):
        if self.pair.high > 100:
            raise misfit("pair.high", "at most 100", "far too much")
        return self


def load(text):
    return validate(parse_document(text, "f.yaml"), Model)


def mistakes(text):
    with pytest.raises(ConfigError) as caught:
        load(text)
    return list(caught.value.lines)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("flag: yes", 'f.yaml:1: flag: expected true or false, got "yes"'),
        ("flag: 1", "f.yaml:1: flag: expected true or false, got 1"),
        ("count: '1'", 'f.yaml:1: count: expected a whole number, got "1"'),
        ("count: 1.5", "f.yaml:1: count: expected a whole number, got 1.5"),
        ("count: true", "f.yaml:1: count: expected a whole number, got true"),
        ("count:", "f.yaml:1: count: expected a whole number, got nothing"),
        ("even: 3", "f.yaml:1: even: expected an even number, got 3"),
        ("ratio: x", 'f.yaml:1: ratio: expected a number, got "x"'),
        ("colour: blue", "f.yaml:1: colour: expected 'red', got \"blue\""),
        ("mode: c", "f.yaml:1: mode: expected 'a' or 'b', got \"c\""),
        ("plain: 5", "f.yaml:1: plain: expected text, got 5 (put it in quotes)"),
        ("folder: ''", 'f.yaml:1: folder: expected a path, got ""'),
        ("names: a", 'f.yaml:1: names: expected a list, got "a"'),
        ("names: [a,\n 5]", "f.yaml:2: names[1]: expected text, got 5 (put it in quotes)"),
        ("inner: []", "f.yaml:1: inner: expected a mapping, got an empty list"),
        ("items: [x]", 'f.yaml:1: items[0]: expected a mapping, got "x"'),
        (
            "inner:\n  a b: {name: x}",
            'f.yaml:2: inner."a b".network: expected a value, got nothing (this key is required)',
        ),
        (
            "maybe: {network: '::/0', size: 0}",
            "f.yaml:1: maybe.size: expected at least 1, got 0",
        ),
        ("maybe: {network: '::/0', size: 10}", "f.yaml:1: maybe.size: expected at most 9, got 10"),
        ("pair:\n  high: 1\n  low: 2", "f.yaml:3: pair.low: expected at most 1, got 2"),
        ("pair: {high: 101}", "f.yaml:1: pair.high: expected at most 100, got far too much"),
        (
            "some: []",
            "f.yaml:1: some: expected a list with entries (at least 1), got an empty list",
        ),
        ("some: [1,2,3,4]", "f.yaml:1: some: expected a list of at most 3 entries, got a list"),
        ("some: [x]", 'f.yaml:1: some[0]: expected a whole number, got "x"'),
        (
            "items:\n- network: '::/0'\n  naem: x",
            "f.yaml:3: items[0].naem: expected one of network, name, size; "
            'got the unknown key "naem" (did you mean name?)',
        ),
        (
            "maybe: {network: '::/0', zzz: 1}",
            "f.yaml:1: maybe.zzz: expected one of network, name, size; got the unknown key \"zzz\"",
        ),
        ("inner: {a: {network: '::/0', zzz: 1}}",
         "f.yaml:1: inner.a.zzz: expected one of network, name, size; got the unknown key \"zzz\""),
        ("[]", "f.yaml:1: expected a mapping, got an empty list"),
        ("text", 'f.yaml:1: expected a mapping, got "text"'),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(text, line):
    assert mistakes(text) == [line]


def test_mistakes_come_in_the_order_of_the_file():
    found = mistakes("names: 1\nflag: 2\ncount: x\n")
    assert [line.split(":")[1] for line in found] == ["1", "2", "3"]


def test_a_default_made_of_a_wrong_value_is_no_mistake_of_its_own():
    assert mistakes("count: x") == ['f.yaml:1: count: expected a whole number, got "x"']
    assert load("count: 4").derived == "4x"


def test_an_empty_document_is_an_empty_mapping():
    assert load("# nothing but this\n") == Model()


def test_relative_paths_start_at_the_folder_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "f.yaml").write_text("folder: sub/x\nplain: y")
    loaded = load_yaml(tmp_path / "f.yaml", Model)
    assert (loaded.folder, loaded.plain) == (tmp_path / "sub/x", Path("y"))
    monkeypatch.chdir(tmp_path)
    assert load_yaml(Path("f.yaml"), Model).folder == tmp_path / "sub/x"
    (tmp_path / "f.yaml").write_text("folder: /abs")
    assert load_yaml(Path("f.yaml"), Model).folder == Path("/abs")


def test_nothing_changes_after_it_is_loaded():
    with pytest.raises(ValueError, match="frozen"):
        load("").count = 3
