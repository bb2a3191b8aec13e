import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_host.sysctls import Change, SysctlState

keys = st.lists(
    st.text(st.characters(exclude_characters="/"), min_size=1).filter(lambda part: part != ".."),
    min_size=1,
).map("/".join)
changes = st.builds(Change, key=keys, before=st.text(), after=st.text())
states = st.builds(
    SysctlState,
    boot_id=st.text(),
    namespace=st.integers(0, 1 << 63),
    changes=st.lists(changes).map(tuple),
)


@given(states)
def test_a_state_file_is_read_as_it_was_written(state: SysctlState) -> None:
    assert SysctlState.from_json(state.to_json()) == state


def test_a_state_file_cut_anywhere_is_refused() -> None:
    state = SysctlState("boot", 42, (Change("ipv4/ip_forward", "0", "1"),))
    text = state.to_json()
    for end in range(len(text)):
        with pytest.raises(ValueError):
            SysctlState.from_json(text[:end])


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["boot_id", "namespace", "changes"]), inner)
        ),
    )
)
def test_any_other_json_is_refused_or_read(document: object) -> None:
    try:
        SysctlState.from_json(json.dumps(document))
    except ValueError:
        return


@pytest.mark.parametrize("key", ["/etc/passwd", "../kernel/core_pattern", "ipv4/../../x", ""])
def test_a_state_file_cannot_lead_out_of_the_network_sysctls(key: str) -> None:
    text = SysctlState("boot", 1, (Change(key, "a", "b"),)).to_json()
    with pytest.raises(ValueError, match="not a sysctl change"):
        SysctlState.from_json(text)
