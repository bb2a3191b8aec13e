"""How many series there may be."""

import pytest
from zgate_gateway.metrics.top import AUTO_ALL, AUTO_TOP, PerClient, busiest


def clients(count: int) -> dict[str, int]:
    return {f"client-{n}": n for n in range(count)}


def keep(setting: PerClient, count: int) -> dict[str, int]:
    return dict(busiest(clients(count), setting, lambda size: size))


@pytest.mark.parametrize(
    ("setting", "count", "kept"),
    [
        ("auto", 0, 0),
        ("auto", AUTO_ALL, AUTO_ALL),
        ("auto", AUTO_ALL + 1, AUTO_TOP),
        ("all", 5000, 5000),
        ("none", 3, 0),
        (3, 2, 2),
        (3, 4, 3),
    ],
)
def test_how_many(setting: PerClient, count: int, kept: int) -> None:
    assert len(keep(setting, count)) == kept


def test_the_busiest_stay() -> None:
    assert keep(2, 5) == {"client-4": 4, "client-3": 3}
