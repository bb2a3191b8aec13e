import json

import pytest

from bench.errors import MeasurementFailed
from bench.load.tcp import parse_iperf3

REPORT = {
    "end": {
        "sum_sent": {"bytes": 1_300_000, "bits_per_second": 1.04e7, "retransmits": 7},
        "sum_received": {"bytes": 1_250_000, "bits_per_second": 1.0e7},
    }
}


def test_counts_what_the_receiver_got() -> None:
    result = parse_iperf3(json.dumps(REPORT))
    assert result.received_bytes == 1_250_000
    assert result.bits_per_s == 1.0e7
    assert result.retransmits == 7
    assert result.gbit == pytest.approx(0.01)


def test_iperf3s_own_error_is_passed_on() -> None:
    with pytest.raises(MeasurementFailed, match="unable to connect"):
        parse_iperf3('{"start": {}, "error": "unable to connect to server"}')


@pytest.mark.parametrize("output", ["", "iperf3: no", "{}", '{"end": {}}', '{"end": null}'])
def test_no_report(output: str) -> None:
    with pytest.raises(MeasurementFailed, match="iperf3"):
        parse_iperf3(output)


def test_a_cut_off_report() -> None:
    text = json.dumps(REPORT)
    for length in range(len(text)):
        with pytest.raises(MeasurementFailed):
            parse_iperf3(text[:length])
