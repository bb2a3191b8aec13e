"""docs/rfc9484-conformance.md is complete, and everything that it names exists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "rfc9484-conformance.md"

# The rows that must be there, by section; a section with two requirements stands twice.
SECTIONS = [
    "RFC 9297 §2.1.1",
    "RFC 9297 §2.1",
    "RFC 9297 §2",
    "RFC 9297 §3.2",
    "RFC 9297 §3.2",
    "RFC 9297 §3.3",
    "RFC 9297 §3.4",
    "RFC 9297 §3.5",
    "RFC 9221 §3",
    "RFC 9484 §3",
    "RFC 9484 §4.1",
    "RFC 9484 §4.4-4.5",
    "RFC 9484 §4.6",
    "RFC 9484 §4.7.1",
    "RFC 9484 §4.7.2",
    "RFC 9484 §4.7.3",
    "RFC 9484 §4.8",
    "RFC 9484 §5-6",
    "RFC 9484 §7.2",
    "RFC 9484 §7.2",
    "RFC 9484 §7.2.1",
    "RFC 9484 §10.1",
    "RFC 9484 §10.2-10.3",
    "RFC 9484 §11",
]


def rows() -> list[list[str]]:
    """The cells of the first table, without its head."""
    lines = DOCUMENT.read_text(encoding="utf-8").split("\n## ")[0].splitlines()
    table = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def references() -> set[str]:
    return {name for row in rows() for name in re.findall(r"`(tests/[^`]+::[^`]+)`", row[3])}


@cache
def functions_of(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


def test_every_requirement_has_its_row() -> None:
    assert [row[1] for row in rows()] == SECTIONS


@pytest.mark.parametrize("row", rows(), ids=SECTIONS)
def test_no_cell_is_empty(row: list[str]) -> None:
    assert len(row) == 4
    assert all(row)
    assert "::test_" in row[3]


@pytest.mark.parametrize("reference", sorted(references()))
def test_every_named_test_exists(reference: str) -> None:
    path, _, name = reference.partition("::")
    assert (ROOT / path).is_file(), f"{path} does not exist"
    assert name in functions_of(ROOT / path), f"{path} has no {name}"


def test_every_named_file_exists() -> None:
    for row in rows():
        for path in re.findall(r"`([^`]+)`", row[2]):
            assert (ROOT / path).is_file(), f"{path} does not exist"


def test_every_conformance_test_is_in_the_document() -> None:
    named = references()
    for path in sorted((ROOT / "tests/unit/protocol").glob("test_rfc*.py")):
        for name in functions_of(path):
            if name.startswith("test_"):
                assert f"{path.relative_to(ROOT)}::{name}" in named
