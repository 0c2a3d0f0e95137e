"""The command line of a run: which inventory, which of our commands, and how a message names the command to run next."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

# One of our commands in a message, where no inventory stands before it yet.
OURS = re.compile(r"(?<!\.py )(?<!INVENTORY )(?<![\w/.-])(deploy\.py|tasks/\w+\.py)\b")


@dataclass(frozen=True)
class CommandLine:
    """`words`: what the operator typed behind `pyinfra`."""

    words: tuple[str, ...]

    @property
    def commands(self) -> list[str]:
        """What this run is asked to do, of our own: deploy.py, tasks/….py."""
        scripts = [os.path.relpath(word) for word in self.words if word.endswith(".py")]
        return [word for word in scripts if word == "deploy.py" or word.startswith("tasks/")]

    @property
    def inventory(self) -> str:
        """The inventory as it was typed, or "INVENTORY"."""
        named = (w for w in self.words if w.endswith(".py") and os.path.relpath(w) not in self.commands)
        return next(named, "INVENTORY")

    @property
    def dry(self) -> bool:
        return "--dry" in self.words

    @property
    def has_limit(self) -> bool:
        """Whether a --limit or an --exclude stands there."""
        return any(word.startswith(("--limit", "--exclude")) for word in self.words)

    def limits(self) -> list[tuple[str, str]]:
        """[(option, value)] of each --limit and --exclude."""
        found = []
        for here, after in zip(self.words, [*self.words[1:], ""], strict=True):
            option, equals, value = here.partition("=")
            if option in ("--limit", "--exclude"):
                found.append((option, value if equals else after))
        return found

    def text(self) -> str:
        """The command for a report, without secrets."""
        return shlex.join(["pyinfra", *redacted(self.words)])

    def again(self) -> str:
        """The command that goes on from here: the same, not dry, and without questions."""
        words = [word for word in redacted(self.words) if word not in ("-y", "--yes", "--dry")]
        return shlex.join(["pyinfra", "-y", *words])

    def complete(self, text: str) -> str:
        """A message whose `Next:` can be pasted: messages are made where nobody knows the inventory's name."""
        before, marker, fix = text.partition("Next: ")
        return before + marker + OURS.sub(rf"pyinfra -y {self.inventory} \1", fix)


def redacted(words: Sequence[str]) -> list[str]:
    """The words without the passwords, tokens and secrets that pyinfra takes on its command line."""
    found, hide = [], False
    for word in words:
        option, equals, _ = word.partition("=")
        secret = re.fullmatch(r"--(ssh-)?(key-)?password", option)
        data = re.match(r"(--data=)?\w*(password|token|secret)\w*=", word, re.IGNORECASE)
        if hide:
            found.append("…")
        elif data:
            found.append(f"{data[0]}…")
        elif secret and equals:
            found.append(f"{option}=…")
        else:
            found.append(word)
        hide = bool(secret) and not equals
    return found


def printable(text: str) -> str:
    """The text without what a terminal would obey: the words may come from a host."""
    return "".join(c if c.isprintable() else "?" for c in text)


def shown_hosts(names: Sequence[str]) -> str:
    """Host names in few words: `gpu-01 … gpu-40 (40 hosts)` from four on."""
    if len(names) < 4:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]} ({len(names)} hosts)"
