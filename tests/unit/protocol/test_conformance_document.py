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

# Marked "LEAD:" in the document; a test that exists loses its mark and its line here.
TO_BE_WRITTEN = {
    "tests/unit/datapath/test_h3.py::test_9297_s2_1_1_h3_datagram_setting",
    "tests/unit/datapath/test_connection.py"
    "::test_9297_s2_1_bad_quarter_stream_id_closes_the_connection",
    "tests/unit/gateway/test_sessions.py"
    "::test_9297_s2_datagram_on_a_refused_request_aborts_the_stream",
    "tests/unit/datapath/test_tunnel.py::test_9221_s3_no_datagram_above_the_peers_limit",
    "tests/unit/gateway/test_sessions.py"
    "::test_9484_s4_1_a_name_that_does_not_resolve_is_refused_with_proxy_status",
    "tests/unit/datapath/test_tunnel.py"
    "::test_9484_s10_1_too_big_is_dropped_and_not_sent_on_the_stream",
    "tests/unit/datapath/test_udp.py::test_9484_s10_2_outer_packets_are_not_ect_and_carry_no_dscp",
}


def rows() -> list[list[str]]:
    """The cells of the first table, without its head."""
    lines = DOCUMENT.read_text(encoding="utf-8").split("\n## ")[0].splitlines()
    table = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def references(*, marked: bool) -> set[str]:
    found = set()
    for row in rows():
        for mark, reference in re.findall(r"(LEAD: )?`(tests/[^`]+::[^`]+)`", row[3]):
            if bool(mark) == marked:
                found.add(reference)
    return found


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


@pytest.mark.parametrize("reference", sorted(references(marked=False)))
def test_every_named_test_exists(reference: str) -> None:
    path, _, name = reference.partition("::")
    assert (ROOT / path).is_file(), f"{path} does not exist"
    assert name in functions_of(ROOT / path), f"{path} has no {name}"


def test_every_named_file_exists() -> None:
    for row in rows():
        for path in re.findall(r"`([^`]+)`", row[2]):
            assert (ROOT / path).is_file(), f"{path} does not exist"


def test_only_known_tests_are_to_be_written() -> None:
    assert references(marked=True) == TO_BE_WRITTEN


def test_every_conformance_test_is_in_the_document() -> None:
    named = references(marked=False)
    for path in sorted((ROOT / "tests/unit/protocol").glob("test_rfc*.py")):
        for name in functions_of(path):
            if name.startswith("test_"):
                assert f"{path.relative_to(ROOT)}::{name}" in named
