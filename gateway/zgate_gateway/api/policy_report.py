"""What a check of a policy found, in the API's words: for ``zgatectl policy check`` and the daemon.

It needs no gateway, no root and no kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from zgate_config import ConfigError

from zgate_gateway.policy.check import check_policy
from zgate_gateway.policy.policy_set import PolicySet

from .schemas import PolicyCheck, PolicyFinding, Severity


def check_file(path: Path) -> PolicyCheck:
    """Check a policy file. A file that cannot be read is a finding, not an exception."""
    return _check(lambda: PolicySet.load(path), str(path))


def check_text(text: str, name: str) -> PolicyCheck:
    """Check the contents of a policy file called ``name``."""
    return _check(lambda: PolicySet.parse(text, name), name)


def warnings_of(policy_set: PolicySet, name: str) -> list[PolicyFinding]:
    """Return what is odd in a policy that can be loaded, in the order of the file."""
    return [
        PolicyFinding(
            severity=Severity.WARNING,
            text=f"{name}:{found.line}: {found.path}: {found.text}",
            line=found.line,
        )
        for found in check_policy(policy_set)
    ]


def _check(load: Callable[[], PolicySet], name: str) -> PolicyCheck:
    try:
        policy_set = load()
    except ConfigError as error:
        return PolicyCheck(
            valid=False,
            findings=[
                PolicyFinding(severity=Severity.ERROR, text=str(mistake), line=mistake.line)
                for mistake in error.mistakes
            ],
        )
    return PolicyCheck(
        valid=True,
        findings=warnings_of(policy_set, name),
        clients=policy_set.client_count,
        groups=policy_set.group_count,
        rules=policy_set.rule_count,
    )
