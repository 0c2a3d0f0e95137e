"""Times as reports have them."""

from __future__ import annotations

import time


def stamp(when: float) -> str:
    """Seconds since the epoch as UTC, ISO 8601."""
    return time.strftime("%FT%TZ", time.gmtime(when))
