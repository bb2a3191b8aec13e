import re
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_bpf import layouts, loader
from zgate_bpf.layouts import LAYOUTS, Layout
from zgate_protocol.drop_reason import DropReason

HEADERS = loader.PROGRAMS / "include" / "zgate"


def test_every_struct_of_a_map_has_a_layout():
    text = (HEADERS / "policy_tables.h").read_text()
    in_c = set(re.findall(r"^struct (\w+) \{", text, re.MULTILINE)) - {"zg_address"}
    assert in_c == {layout.name for layout in LAYOUTS}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_members_are_those_of_c_in_order(layout):
    text = (HEADERS / "policy_tables.h").read_text()
    body = re.search(rf"^struct {layout.name} \{{(.*?)^\}};", text, re.MULTILINE | re.DOTALL)[1]
    members = re.findall(r"\b(\w+)(?:\[\w+\])?;", re.sub(r"/\*.*?\*/", "", body))
    assert members == [name for name, _ in layout.fields]


def test_drop_reasons_are_those_of_the_protocol():
    text = (HEADERS / "drop_reason.h").read_text()
    in_c = {name: int(number) for name, number in re.findall(r"ZG_DROP_(\w+) = (\d+)", text)}
    assert in_c.pop("REASONS") == layouts.DROP_REASONS
    kernel = {reason.name: int(reason) for reason in DropReason if reason < 32}
    assert in_c == kernel


def test_offsets_follow_the_sizes():
    layout = Layout("x", (("a", "B"), ("pad", "3x"), ("b", "I"), ("c", "Q")))
    assert list(layout.offsets()) == [("a", 0), ("pad", 1), ("b", 4), ("c", 8)]
    assert layout.size_bytes == 16


def test_no_layout_hides_padding():
    """C would put some where a member is not aligned to its size."""
    sizes = {"B": 1, "H": 2, "I": 4, "Q": 8}
    for layout in LAYOUTS:
        for (_, form), (_, offset) in zip(layout.fields, layout.offsets(), strict=True):
            assert offset % sizes.get(form[-1], 1) == 0


def test_assertions_name_every_member_and_number():
    text = layouts.assertions()
    for layout in LAYOUTS:
        assert f"sizeof(struct {layout.name}) == {layout.size_bytes}" in text
    assert "ZG_DROP_POLICY_RULE == 5u" in text
    assert "zg_flow, verdict) == 8" in text


@given(st.ip_addresses())
def test_addresses_survive(address):
    packed = layouts.pack_address(address)
    assert len(packed) == 16
    assert layouts.unpack_address(address.version, packed) == address


def test_ipv4_lies_in_front():
    assert layouts.pack_address(ip_address("10.1.2.3")) == bytes([10, 1, 2, 3]) + bytes(12)
