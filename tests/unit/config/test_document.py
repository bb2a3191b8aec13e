"""YAML to values: what plain text means, where it stands, and what is refused."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_config import ConfigError, document, parse_document, read_document


def value(text):
    return parse_document(text, "f.yaml").value


def mistake(text):
    with pytest.raises(ConfigError) as caught:
        parse_document(text, "f.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no", "no"),
        ("On", "On"),
        ("yes", "yes"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("22:30", "22:30"),
        ("2001-01-01", "2001-01-01"),
        ("10.0.0.1", "10.0.0.1"),
        (".inf", ".inf"),
        ("1.", "1."),
        ("true", True),
        ("False", False),
        ("NULL", None),
        ("~", None),
        ("", None),
        ("# nothing", None),
        ("0", 0),
        ("-12", -12),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ('"true"', "true"),
        ("'12'", "12"),
        ("|\n  12\n", "12\n"),
        ("[a, 1, [~]]", ["a", 1, [None]]),
        ("{a: {true: 1, 2: b}}", {"a": {"true": 1, "2": "b"}}),
        ("- &x {a: [1]}\n- *x", [{"a": [1]}, {"a": [1]}]),
        ("\ufeffa: 1", {"a": 1}),
    ],
)
def test_values_are_what_they_look_like(text, expected):
    assert value(text) == expected


def test_lines():
    parsed = parse_document("# c\na: 1\nb:\n  - x\n  -\n    c: 2\n    d: [3,\n    4]\n", "f.yaml")
    lines = {
        (): 2,
        ("a",): 2,
        ("b",): 3,
        ("b", 0): 4,
        ("b", 1): 6,
        ("b", 1, "d"): 7,
        ("b", 1, "d", 1): 8,
        ("b", 1, "missing"): 6,
        ("b", 7): 3,
        ("missing", "x"): 2,
        ("a", "x"): 2,
    }
    assert {path: parsed.line_of(path) for path in lines} == lines
    assert parsed.value_at(("b", 1, "d", 1)) == 4
    assert parsed.value_at(("b", 1, "x")) is None
    assert str(parsed.mistake(("b", 1, "d"), "wrong")) == "f.yaml:7: b[1].d: wrong"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3", "f.yaml:3: a: expected each key once, got it again (first in line 1)"),
        (
            "a: {b: 1, b: 2}",
            "f.yaml:1: a.b: expected each key once, got it again (first in line 1)",
        ),
        ("a: !!int 3", 'f.yaml:1: a: expected no tag, got "tag:yaml.org,2002:int"'),
        (
            "a:\n  - !!python/object/apply:os.x [ls]",
            'f.yaml:2: a[0]: expected no tag, got "tag:yaml.org,2002:python/object/apply:os.x"',
        ),
        ("a: 1\n---\nb: 2", "f.yaml:2: expected one document, got a second one"),
        (
            "a: &x {b: 1}\nc:\n  <<: *x",
            'f.yaml:3: c: expected a key, got the merge key "<<", which is not supported',
        ),
        ("a: &x [*x]", 'f.yaml:1: a[0]: expected a value anchored before, got the alias "x"'),
        ("? [a]\n: 1", "f.yaml:1: expected text as a key, got a collection"),
        ("&x a: 1\n*x : 2", "f.yaml:2: expected text as a key, got an alias"),
        ("a: 1234567890123456789", "f.yaml:1: a: expected at most 18 digits, got more"),
        ("a: 1e999", 'f.yaml:1: a: expected a number in range, got "1e999"'),
        (
            "a: 1\n\tc: 1",
            "f.yaml:2: a: expected valid YAML, "
            "got: found a tab character that violates indentation",
        ),
        (
            "a: [1, 2\n",
            "f.yaml:2: a[2]: expected valid YAML, got: did not find expected ',' or ']'",
        ),
        (
            "a: 1\nb: \x07",
            "f.yaml:2: expected printable text, got: control characters are not allowed",
        ),
        ("\ud800", "f.yaml: expected Unicode text, got: surrogates not allowed"),
        (b"a: 1\nb: \xff", "f.yaml:2: expected UTF-8 text, got: invalid start byte"),
    ],
)  # fmt: skip
def test_refused_with_the_line(text, expected):
    assert mistake(text) == expected


def test_nesting_is_bounded():
    assert value("[" * 32 + "]" * 32) is not None
    assert mistake("[" * 33 + "]" * 33).endswith("expected at most 32 levels, got more")
    assert "expected" in mistake("[" * 100_000)
    assert "expected" in mistake("{a: " * 100_000)
    assert "expected" in mistake("- " * 100_000)


def test_aliases_that_multiply_are_refused(monkeypatch):
    monkeypatch.setattr(document, "MAX_VALUES", 10_000)
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 9):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    assert "expected at most 10000 values, got more" in mistake("\n".join(lines))


def test_too_many_values_are_refused(monkeypatch):
    monkeypatch.setattr(document, "MAX_VALUES", 10)
    assert value("[1, 2, 3, 4, 5, 6, 7, 8, 9]") is not None
    assert "expected at most 10 values" in mistake("[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]")


def test_a_large_file_is_refused_before_it_is_parsed(monkeypatch, tmp_path):
    monkeypatch.setattr(document, "MAX_FILE_BYTES", 100)
    path = tmp_path / "big.yaml"
    path.write_text("#" * 101)
    with pytest.raises(ConfigError, match="expected at most 100 bytes, got more"):
        read_document(path)
    assert "expected at most 100 bytes" in mistake("#" * 101)


def test_files(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: 1\r\nb: 2\r\n")
    parsed = read_document(path)
    assert (parsed.value, parsed.line_of(("b",))) == ({"a": 1, "b": 2}, 2)
    assert parsed.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for wrong, reason in (
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / "a.yaml" / "b", "Not a directory"),
        (tmp_path / "n\0l", "embedded null byte"),
    ):
        with pytest.raises(ConfigError) as caught:
            read_document(wrong)
        assert str(caught.value).endswith(f": expected a readable file, got: {reason}")
        assert str(caught.value).isprintable()


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**17), 10**17),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=10), inner, max_size=4
        ),
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.text(st.characters(codec="ascii"), max_size=5), json_values, max_size=5))
def test_json_is_read_as_json_reads_it(made):
    for indent in (None, 1, "\t"):
        assert value(json.dumps(made, indent=indent)) == made


@given(st.text(max_size=100))
def test_any_text_gives_values_or_a_config_error(text):
    try:
        parsed = parse_document(text, "f.yaml")
    except ConfigError as error:
        assert str(error).isprintable()
    else:
        json.dumps(parsed.value)


@given(st.text(alphabet="ab:-[]{}&*!|>'\"\\#%?,~<\n\t 0\ufeff", max_size=60))
def test_any_punctuation_gives_values_or_a_config_error(text):
    test_any_text_gives_values_or_a_config_error.hypothesis.inner_test(text)
