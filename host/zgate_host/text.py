"""Numbers as people read them."""

from __future__ import annotations

from datetime import timedelta


def size_text(size_bytes: float) -> str:
    """Bytes with a unit: ``999 B``, ``1.5 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def span_text(span: timedelta) -> str:
    """A time that has passed: ``7 s``, ``2 min 5 s``, ``3 h 20 min``."""
    seconds = max(0, int(span.total_seconds()))
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
