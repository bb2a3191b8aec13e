"""BPF programs, and a typed Python view of each of their maps."""

from zgate_bpf.limits import UNLIMITED, ClientLimits

__all__ = ["UNLIMITED", "ClientLimits"]
