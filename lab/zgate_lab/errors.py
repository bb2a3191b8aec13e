"""What can go wrong in the lab; the text names cause and cure."""


class LabError(Exception):
    """The lab could not be built, or something in it was used wrongly."""


class LabTimeout(LabError):
    """A condition was waited for and did not become true in time."""


class ProcessExited(LabError):
    """A process ended while it was still needed; the text holds the end of its log."""
