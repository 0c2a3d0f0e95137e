"""How a program's answer is found in what a shell printed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any


def last_json_object(lines: Sequence[str], key: str) -> dict[str, Any] | None:
    """The last line that is a JSON object with `key`, or None.

    A shell may print a greeting before the answer and a farewell after it. Those lines are not the answer.
    """
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            if isinstance(found := json.loads(line), dict) and key in found:
                return found
    return None
