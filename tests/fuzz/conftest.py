"""A gateway and its clients over loopback."""

from ..loopback import lab, pki  # noqa: TID252

__all__ = ["lab", "pki"]
