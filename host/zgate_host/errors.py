"""The one error of those who set up the host's network."""


class NetError(Exception):
    """The kernel's network could not be set up; the text names cause and cure, in one line."""
