from zgate_protocol.drop_reason import DropReason


def test_only_none_is_false() -> None:
    assert [reason for reason in DropReason if not reason] == [DropReason.NONE]


def test_values_index_an_array_of_64() -> None:
    assert all(0 <= reason < 64 for reason in DropReason)


def test_userspace_has_its_own_half() -> None:
    assert DropReason.NOT_A_DESTINATION < 32 <= DropReason.BAD_VERSION


def test_published_numbers_do_not_move() -> None:
    """Dashboards and the BPF header know these numbers."""
    published = {1: "NO_CLIENT", 5: "POLICY_RULE", 7: "UNSOLICITED", 12: "NOT_IP"}
    published |= {14: "RATE_LIMITED", 15: "NEW_FLOW_LIMITED", 16: "NO_BACKEND"}
    published |= {34: "SOURCE_NOT_ASSIGNED", 38: "TOO_BIG", 48: "LINK_LOCAL_PEER"}
    assert {number: DropReason(number).name for number in published} == published
