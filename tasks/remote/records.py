"""The store's records of what is active: current, previous, the journal, the intent of a switch that is under way."""

from __future__ import annotations

import json
import os

from files import now, read


class Records:
    """Where they lie, and how they are written: one line a step, on disk before the step begins."""

    def __init__(self, store):
        self.store = store
        self.before, self.pending, self.frozen, self.confirmation, self.outcome, self.recreate = (
            os.path.join(store, "state", name)
            for name in ("before.override.yaml", "pending", "frozen", "confirmation", "outcome", "recreate")
        )

    def journal(self, step, **more):
        """One line before each step; on disk before the step begins."""
        line = json.dumps({"time": now(), "step": step, **more}, ensure_ascii=True)
        with open(os.path.join(self.store, "journal.jsonl"), "a", encoding="ascii") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def current(self):
        return (read(os.path.join(self.store, "current")) or "").strip() or None
