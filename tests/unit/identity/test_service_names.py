"""What a certificate's names say about services."""

import pytest
from zgate_identity.service_names import (
    agent_name,
    connector_name,
    offered_services,
    reached_services,
)


@pytest.mark.parametrize(
    ("names", "offers", "reaches"),
    [
        ([], (), None),
        (["host.example", "zgate", "pacs.zgate"], (), None),
        (["connector.pacs.zgate"], ("pacs",), None),
        (["connector.pacs.zgate", "Connector.ECHO-1.Zgate", "connector.pacs.zgate"],
         ("pacs", "echo-1"), None),
        (["connector.*.zgate"], ("*",), None),
        (["agent.pacs.zgate", "agent.wiki.zgate"], (), ("pacs", "wiki")),
        (["agent.*.zgate"], (), ("*",)),
        (["agent.pacs.zgate", "connector.echo.zgate"], ("echo",), ("pacs",)),
        # What is odd offers nothing and narrows all the same.
        (["connector.zgate", "agent.zgate"], (), ()),
        (["connector..zgate", "agent..zgate"], (), ()),
        (["connector.a.b.zgate", "agent.a.b.zgate"], (), ()),
        (["connector.a*.zgate", "agent.a*.zgate", "agent.x.zgate"], (), ("x",)),
        (["connector.-a.zgate", "agent.a_b.zgate"], (), ()),
        (["connector." + "a" * 64 + ".zgate"], (), None),
        (["xconnector.pacs.zgate", "connector.pacs.zgatex", "my.agent.pacs.zgate"], (), None),
    ],
)  # fmt: skip
def test_only_whole_labels_count(names, offers, reaches):
    assert offered_services(names) == offers
    assert reached_services(names) == reaches


def test_names_are_made_as_they_are_read():
    assert offered_services([connector_name("Pacs"), connector_name("*")]) == ("pacs", "*")
    assert reached_services([agent_name("echo-1")]) == ("echo-1",)
    for bad in ("", "a.b", "ä", "a b", "**", "a" * 64, "-a"):
        for make in (connector_name, agent_name):
            with pytest.raises(ValueError, match="is no service that a certificate can name"):
                make(bad)
