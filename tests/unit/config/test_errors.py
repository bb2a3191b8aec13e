"""One line per mistake, whatever the names and values are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_config import ConfigError, Mistake, format_key_path
from zgate_config.errors import quote, show


def test_a_mistake_is_one_line_that_names_file_line_and_key():
    assert str(Mistake("a.yaml", 7, ("listen", "port"), "wrong")) == "a.yaml:7: listen.port: wrong"
    assert str(Mistake("a.yaml", 7, (), "wrong")) == "a.yaml:7: wrong"
    assert str(Mistake("a.yaml", None, (), "wrong")) == "a.yaml: wrong"
    assert str(Mistake("a\n.yaml", 1, (), "wrong")) == '"a\\n.yaml":1: wrong'


def test_an_error_shows_the_first_mistake_and_counts_the_others():
    mistakes = [Mistake("f", line, ("k",), "wrong") for line in (1, 2, 3)]
    assert str(ConfigError(mistakes[:1])) == "f:1: k: wrong"
    assert str(ConfigError(mistakes[:2])) == "f:1: k: wrong (and 1 more mistake)"
    assert str(ConfigError(mistakes)) == "f:1: k: wrong (and 2 more mistakes)"
    assert ConfigError(mistakes).lines == ("f:1: k: wrong", "f:2: k: wrong", "f:3: k: wrong")
    with pytest.raises(ValueError, match="at least one"):
        ConfigError([])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("clients", "alice", "rules", 0, "ports"), "clients.alice.rules[0].ports"),
        (("clients", "a b", "x.y"), 'clients."a b"."x.y"'),
        (("clients", "", "ü-1_"), 'clients."".ü-1_'),
        ((3,), "[3]"),
        (("a\n",), '"a\\n"'),
    ],
)
def test_key_paths(path, expected):
    assert format_key_path(path) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "nothing"),
        (True, "true"),
        (1.5, "1.5"),
        ("x", '"x"'),
        ({}, "a mapping"),
        ([], "an empty list"),
        ((1,), "a list"),
        (b"x", "a value of type bytes"),
    ],
)
def test_values_as_messages_show_them(value, expected):
    assert show(value) == expected


@given(st.text())
def test_quoted_text_is_short_and_moves_no_cursor(text):
    quoted = quote(text)
    assert quoted.isprintable()
    assert len(quoted) <= 12 * 63 + 2
    if text.isprintable() and len(text) <= 60 and not set(text) & set('"\\'):
        assert quoted == f'"{text}"'
