"""Changing the policy from the command line and by the file, with a kernel and packets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_support.world import POLICY, World
from zgate_lab.deployment import CommandFailed
from zgate_lab.traffic import ping
from zgate_lab.waiting import wait_until

DENY_PING = POLICY.replace("protocols: [icmp]", "protocols: [sctp]", 1)
FAILING = (
    "tests: [{client: alice, destination: 10.20.0.5, protocol: tcp, port: 1, expect: allow}]\n"
)


@pytest.fixture
def restored(world: World) -> Iterator[World]:
    """The world, with its own policy in force again afterwards."""
    yield world
    world.zgate.policy_file.write_text(POLICY)
    world.zgate.ask("policy", "reload")


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    path = tmp_path / "draft.yaml"
    path.write_text(DENY_PING)
    return path


def status(world: World) -> dict[str, Any]:
    policy: dict[str, Any] = world.zgate.gateway_status()["policy"]
    return policy


def lost(world: World) -> bool:
    """Whether alice's ping does not come back, and the kernel and the compiler agree on it."""
    office = world.internet.office.ipv4
    why = world.zgate.ask("why", "alice", str(office))
    is_lost = ping(world.alice, office, count=1).lost == 1
    assert why["agree"] and (why["kernel"]["action"] == "deny") == is_lost
    return is_lost


def test_apply_and_rollback(restored: World, draft: Path) -> None:
    zgate, before = restored.zgate, status(restored)["revision"]
    dry = zgate.ask("policy", "apply", str(draft))
    assert dry["result"] is None and dry["diff"]["revision"] == before
    (difference,) = dry["diff"]["differences"]
    assert [one["name"] for one in difference["subjects"]] == ["alice"]
    assert [(c["action"], c["destinations"][0], c["services"]) for c in difference["changes"]] == [
        ("allow", "10.20.0.0/24", ["sctp"]),
        ("allow", "fd00:20::/64", ["sctp"]),
        ("deny", "10.20.0.0/24", ["icmp"]),
        ("deny", "fd00:20::/64", ["icmpv6"]),
    ]
    assert not lost(restored)

    done = zgate.ask("policy", "apply", str(draft), "--yes")["result"]
    assert done["summary"]["revision"] == before + 1
    assert lost(restored)
    assert zgate.policy_file.read_text() == DENY_PING

    back = zgate.ask("policy", "rollback", str(before), "--yes")["result"]
    assert back["summary"]["revision"] == before + 2
    assert not lost(restored)
    assert zgate.policy_file.read_text() == POLICY
    newest = zgate.ask("policy", "history")["revisions"][:2]
    assert [(one["revision"], one["origin"], one["in_force"]) for one in newest] == [
        (before + 2, "rollback", True),
        (before + 1, "apply", False),
    ]


def test_diff_with_what_is_in_force(restored: World, draft: Path) -> None:
    with pytest.raises(CommandFailed) as failed:
        restored.zgate.ask("policy", "diff", str(draft))
    assert failed.value.status == 1
    draft.write_text(POLICY.replace("allow-office-ping", "renamed"))
    assert restored.zgate.ask("policy", "diff", str(draft))["changed"] is False


def test_a_changed_file_is_loaded_by_itself(restored: World) -> None:
    zgate, before = restored.zgate, status(restored)["revision"]
    zgate.policy_file.write_text(DENY_PING)
    wait_until(lambda: status(restored)["revision"] == before + 1, 5.0, "the file to be loaded")
    assert lost(restored)
    # A file whose own tests fail keeps the old policy, and says why.
    zgate.policy_file.write_text(POLICY + FAILING)
    wait_until(lambda: status(restored)["not_in_force_because"] is not None, 5.0, "a refusal")
    assert "tests[0]: test failed: alice" in status(restored)["not_in_force_because"]
    assert status(restored)["revision"] == before + 1
    assert zgate.wait_audit("policy_refused", revision=before + 1)
    assert lost(restored)


def test_a_text_whose_tests_fail_is_not_applied(restored: World, draft: Path) -> None:
    draft.write_text(DENY_PING + FAILING)
    before = status(restored)["revision"]
    with pytest.raises(CommandFailed) as failed:
        restored.zgate.ask("policy", "apply", str(draft), "--yes")
    assert failed.value.status == 2
    assert json.dumps("test failed")[1:-1] in failed.value.output
    assert status(restored)["revision"] == before
    assert not lost(restored)
