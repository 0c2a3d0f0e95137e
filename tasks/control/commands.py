"""The list of all commands, made from the first line of each."""

from __future__ import annotations

import ast

from rich.console import Console

from tasks.control.tool import REPOSITORY, TASKS
from tasks.control.version import version


def commands() -> dict[str, str]:
    """{command: what it does, in one line}."""
    files = [REPOSITORY / "deploy.py", *sorted(path for path in TASKS.glob("*.py") if path.name != "__init__.py")]
    found = {}
    for path in files:
        words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = words.splitlines()[0]
        found[str(path.relative_to(REPOSITORY))] = first.partition(": py")[0]
    return found


def table() -> str:
    """The manual's table of commands."""
    return "\n".join(["| command | what it does |", "|---|---|", *(f"| `{k}` | {v} |" for k, v in commands().items())])


def show() -> None:
    """Print them, and how they are called."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"hf-offline {version()}\n\npyinfra -y INVENTORY COMMAND [--dry] [--limit HOST] [--data KEY=VALUE]\n")
    for name, words in commands().items():
        console.print(f"  {name:20} {words}")
