"""One clear error: where, what, expected and found, and the next command to run. Never a traceback for the operator."""

from __future__ import annotations

from collections.abc import Mapping


class Refused(Exception):
    """A refusal that a person can act on.

    `error` holds the same words by name: {"where", "what", "expected", "found", "next"}. A remote program prints it as JSON.
    """

    def __init__(self, where: str, what: str, expected: str = "", found: str = "", next: str = ""):
        self.error = {"where": where, "what": what, "expected": expected, "found": found, "next": next}
        super().__init__(describe(self.error))


def describe(error: Mapping[str, str]) -> str:
    """The error as one line for people: `where: what; expected …, found …. Next: …`."""
    text = f"{error.get('where', '')}: {error.get('what', '')}"
    if error.get("expected"):
        text += f"; expected {error['expected']}"
    if error.get("found"):
        text += f", found {error['found']}"
    if error.get("next"):
        text += f". Next: {error['next']}"
    # The words may come from a container or a Hub and have many lines. Nothing in them may steer a terminal.
    lines = "; ".join(filter(None, map(str.strip, text.splitlines())))
    return "".join(c if c.isprintable() else "?" for c in lines)
