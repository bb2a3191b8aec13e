from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import H3Error, MalformedCapsule, MalformedMessage, PacketError


def test_codes_are_those_of_the_rfcs() -> None:
    codes = {0x33: "DATAGRAM_ERROR", 0x10E: "MESSAGE_ERROR", 0x107: "EXCESSIVE_LOAD"}
    codes |= {0x105: "FRAME_UNEXPECTED", 0x109: "SETTINGS_ERROR", 0x102: "INTERNAL_ERROR"}
    assert {code: H3Error(code).name for code in codes} == codes


def test_a_malformed_capsule_is_a_malformed_message() -> None:
    assert MalformedCapsule("why").error_code is H3Error.MESSAGE_ERROR
    assert MalformedMessage("why").error_code is H3Error.MESSAGE_ERROR
    assert MalformedMessage("why").reason == str(MalformedMessage("why")) == "why"


def test_a_packet_error_carries_its_reason() -> None:
    assert PacketError(DropReason.TOO_BIG).reason is DropReason.TOO_BIG
