"""The one error of this package."""


class NetError(Exception):
    """The kernel's network could not be set up; the text names cause and cure, in one line."""
