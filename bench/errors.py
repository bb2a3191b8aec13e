"""What can go wrong in the bench; the text names cause and cure."""


class BenchError(Exception):
    """The bench cannot run; one line with the cause and, where known, the cure."""


class MeasurementFailed(BenchError):
    """One measurement gave no number: the peer's, not the whole bench's failure."""
