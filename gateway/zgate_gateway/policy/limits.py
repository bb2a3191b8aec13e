"""What a client may do per second: from the policy file's words to the kernel's."""

from __future__ import annotations

from collections.abc import Iterable

from zgate_bpf.limits import UNLIMITED, ClientLimits

from zgate_gateway.policy.model import LimitsModel


def limits_of(model: LimitsModel | None) -> ClientLimits:
    """Return what the file says."""
    if model is None:
        return UNLIMITED
    return ClientLimits(model.bandwidth_mbit, model.new_flows_per_s)


def first_said(said: Iterable[ClientLimits]) -> ClientLimits:
    """Return each limit as the first says it that says it."""
    bandwidth_mbit = new_flows_per_s = None
    for limits in said:
        if bandwidth_mbit is None:
            bandwidth_mbit = limits.bandwidth_mbit
        if new_flows_per_s is None:
            new_flows_per_s = limits.new_flows_per_s
    return ClientLimits(bandwidth_mbit, new_flows_per_s)
