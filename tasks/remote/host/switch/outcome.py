"""How a switch ends: which release serves, whether the host takes requests again, and what went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# active: the new release serves, confirmed. withdrawn: the old one serves again. frozen: putting it back failed.
# awaiting: the new release works and waits for its confirmation. unknown: the program died, or could not note the end.
ACTIVE, WITHDRAWN, FROZEN, AWAITING, UNKNOWN = "active", "withdrawn", "frozen", "awaiting", "unknown"


@dataclass(frozen=True)
class Outcome:
    """state: one of the words above. readmitted: False where the operator's readmit failed, or is still to be run.
    error: why this is a failure, as the words of a Refused; None where nothing failed."""

    state: str
    readmitted: bool = True
    error: Mapping[str, str] | None = None

    def answer(self) -> dict[str, Any]:
        """The part of the program's answer that tells it."""
        answer: dict[str, Any] = {"state": self.state, "readmitted": self.readmitted}
        if self.error is not None:
            answer |= {"ok": False, "error": self.error}
        return answer
