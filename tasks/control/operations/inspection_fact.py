"""Asks a host for its facts, and changes nothing there. Unknown is None, and None stops: it never looks like "empty"."""

from __future__ import annotations

from typing import Any

from pyinfra.api import FactBase, QuoteString, StringCommand

from tasks.control.inspection import DELIMITER, text
from tasks.shared.answers import last_json_object


class Inspection(FactBase[dict[str, Any] | None]):
    """Everything about one host in one command, as facts.HostFacts in JSON. `question`: facts.Question as JSON.

    {"python": None} where the host has no Python, {"python": [major, minor, micro]} where that is older than 3.9.
    """

    default = staticmethod(lambda: None)

    def command(self, question: str) -> StringCommand:
        # The program travels as text: a first run finds a host that has nothing of ours, and a fact may not write.
        # -I: a json.py in the home directory there is not imported.
        return StringCommand(
            "if command -v python3 >/dev/null; then python3 -I -",
            QuoteString(question),
            f"<<'{DELIMITER}'\n{text()}\n{DELIMITER}\nelse echo '{{\"python\": null}}'; fi",
        )

    def process(self, output: list[str]) -> dict[str, Any] | None:
        return last_json_object(output, "python")
