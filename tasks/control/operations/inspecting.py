"""Asks a host what is there, and changes nothing. Unknown is None, and None stops: it never looks like "empty"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyinfra.api import FactBase, QuoteString, StringCommand

from tasks.shared.answers import last_json_object

LOOK = Path(__file__).parents[2] / "remote/inspect.py"


class Host(FactBase[dict[str, Any] | None]):
    """Everything about one host in one command: programs, disks, Docker, GPUs, stack, store (see remote/look.py)."""

    default = staticmethod(lambda: None)

    def command(self, ask: str) -> StringCommand:
        # The program travels as text: a first run finds a host that has nothing of ours, and a fact may not write.
        here = f"<<'HF_OFFLINE_LOOK'\n{LOOK.read_text(encoding='utf-8')}\nHF_OFFLINE_LOOK\n"
        return StringCommand(
            "if command -v python3 >/dev/null; then python3 -",
            QuoteString(ask),
            here + "else echo '{\"python\": null}'; fi",
        )

    def process(self, output: list[str]) -> dict[str, Any] | None:
        return last_json_object(output, "python")
