"""The one error of this package."""

from zgate_host.errors import NetError

__all__ = ["NetError"]
