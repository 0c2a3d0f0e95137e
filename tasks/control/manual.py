"""Writes the generated parts of the manual: python3 -m tasks.control.manual

A part stands between `<!-- NAME: begin … -->` and `<!-- NAME: end -->`. A test fails where a page differs from the code.
"""

from __future__ import annotations

import re

from tasks.control import commands, settings
from tasks.control.reporting import document
from tasks.control.rules import states
from tasks.control.tool import REPOSITORY

# {page: {name of the part: what makes it}}
PARTS = {
    "docs/settings.md": {"settings": settings.table},
    "docs/troubleshooting.md": {"states": states.table},
    "docs/report.md": {"report": document.table},
    "docs/production.md": {"commands": commands.table},
}


def filled(text: str, name: str, part: str) -> str:
    """A page with this part in its place. Raises ValueError where the page has no place for it."""
    pattern = rf"(<!-- {name}: begin[^>]*-->\n).*?(\n?<!-- {name}: end -->)"
    new, count = re.subn(pattern, lambda found: f"{found[1]}{part}\n<!-- {name}: end -->", text, flags=re.S)
    if count != 1:
        raise ValueError(f"{count} places for the part {name!r}; expected one")
    return new


def pages() -> dict[str, str]:
    """{page: its text with every generated part as the code has it now}."""
    found = {}
    for page, parts in PARTS.items():
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        for name, make in parts.items():
            text = filled(text, name, make())
        found[page] = text
    return found


if __name__ == "__main__":
    for page, text in pages().items():
        (REPOSITORY / page).write_text(text, encoding="utf-8")
