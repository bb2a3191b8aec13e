"""What the edge program and Python share. The loader asserts it too; this names what differs."""

import re

import pytest
from aioquic.quic.configuration import QuicConfiguration
from zgate_bpf import edge_layouts, loader
from zgate_bpf.edge_layouts import LAYOUTS, EdgeReason
from zgate_bpf.errors import BpfLoadError
from zgate_datapath import connection_ids

HEADERS = loader.PROGRAMS / "include" / "zgate"
MAPS = ("settings", "addresses", "sources", "totals", "counters", "block4", "block6")


def compiled(assertions):
    maps = dict.fromkeys(MAPS, 3)
    compiled = loader.compile_program("edge", ("zg_edge",), {}, maps=maps, assertions=assertions)
    return compiled["zg_edge"]


def test_reasons_are_those_of_c():
    text = (HEADERS / "edge_reason.h").read_text()
    in_c = {name: int(number) for name, number in re.findall(r"ZG_EDGE_(\w+) = (\d+)", text)}
    assert in_c.pop("REASONS") == edge_layouts.REASONS > max(EdgeReason)
    assert in_c.pop("FIRST_DROP") == edge_layouts.FIRST_DROP
    assert in_c == {reason.name: int(reason) for reason in EdgeReason}


def test_every_struct_has_a_layout_with_its_members():
    text = (HEADERS / "edge_tables.h").read_text()
    structs = dict(re.findall(r"^struct (\w+) \{(.*?)^\};", text, re.MULTILINE | re.DOTALL))
    assert set(structs) == {layout.name for layout in LAYOUTS}
    for layout in LAYOUTS:
        members = re.findall(
            r"\b(\w+)(?:\[\w+\])?;", re.sub(r"/\*.*?\*/", "", structs[layout.name])
        )
        assert members == [name for name, _ in layout.fields]


def test_it_compiles_and_calls_only_what_there_is():
    code = compiled(edge_layouts.assertions())
    calls = [code[at : at + 8] for at in range(0, len(code), 8) if code[at] == 0x85]
    assert calls
    # A function that is not there becomes a call of another program at -1.
    assert not [call for call in calls if call[4:] == b"\xff" * 4]


def test_number_that_differs_does_not_compile():
    with pytest.raises(BpfLoadError, match="ZG_EDGE_TOO_SHORT"):
        compiled('_Static_assert(ZG_EDGE_TOO_SHORT == 9u, "ZG_EDGE_TOO_SHORT");')


def test_versions_are_those_that_are_spoken():
    spoken = QuicConfiguration(is_client=False).supported_versions
    assert set(spoken) == {edge_layouts.VERSION_1, edge_layouts.VERSION_2}


def test_connection_ids_are_as_long_as_the_gateway_s():
    assert edge_layouts.CONNECTION_ID_BYTES == connection_ids.CONNECTION_ID_BYTES


def test_passing_is_told_by_the_number():
    assert EdgeReason.VERSION_TRICKLE.passed and not EdgeReason.BLOCKLISTED.passed
