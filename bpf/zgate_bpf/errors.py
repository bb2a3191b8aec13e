"""What can go wrong between Python and the kernel's programs."""

from __future__ import annotations


class BpfError(RuntimeError):
    """The kernel's side of things is not as it must be."""


class BpfLoadError(BpfError):
    """A program did not compile or the kernel did not take it; the text names cause and cure."""


class CapacityError(BpfError):
    """Something does not fit. Nothing was changed.

    :ivar what: the table that is too small.
    :ivar needed: entries that it would have to hold.
    :ivar capacity: entries that it can hold.
    """

    def __init__(self, what: str, needed: int, capacity: int) -> None:
        super().__init__(f"{what}: {needed} needed, {capacity} fit")
        self.what = what
        self.needed = needed
        self.capacity = capacity


class GenerationError(BpfError):
    """A generation of tables is not in the state for this, or does not read back as written."""
