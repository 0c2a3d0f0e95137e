"""The version of this tool, so that two operators on different commits see it in reports and leases."""

from __future__ import annotations

import subprocess
from functools import cache

from tasks import VERSION
from tasks.control.tool import REPOSITORY

# `git archive` writes the commit here (.gitattributes). A clone asks git.
COMMIT = "$Format:%h$"


@cache
def version() -> str:
    """The version and the commit, as `0.1.0 (1a2b3c4)`; `+changes` where files differ from that commit."""
    return f"{VERSION} ({commit()})"


def commit() -> str:
    if not COMMIT.startswith("$Format"):
        return COMMIT
    words = ["git", "describe", "--always", "--dirty=+changes", "--exclude=*"]
    try:
        done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "no git"
    return done.stdout.strip() or "no commit"
