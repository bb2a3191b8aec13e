"""A gateway and its clients over loopback."""

from ...loopback import lab, pki

__all__ = ["lab", "pki"]
