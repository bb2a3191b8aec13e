"""A gateway and its clients over loopback."""

from ..loopback import engine, lab, pki  # noqa: TID252

__all__ = ["engine", "lab", "pki"]
