"""Reads files and runs commands: the answer is None where that fails, and nothing here raises."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from tasks.remote.common.files import read_text

PATIENCE = 20  # seconds for one command


def run(*command: str) -> str | None:
    """The standard output of a command, stripped. None where it is missing, fails, or takes longer than PATIENCE."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def read(path: str) -> str | None:
    """The text of a file. None where it is missing or cannot be read."""
    try:
        text: str | None = read_text(path)
    except OSError:
        return None
    return text


def parse(text: str | None) -> Any:
    """The JSON value in `text`. None where there is none: power cuts and people leave such files."""
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None


def parse_object(text: str | None) -> dict[str, Any] | None:
    """The JSON object in `text`. None where it is something else."""
    found = parse(text)
    return found if isinstance(found, dict) else None


def read_object(path: str) -> dict[str, Any] | None:
    """The JSON object in a file. None where the file is missing, cannot be read, or holds something else."""
    return parse_object(read(path))


def file_sizes(directory: str) -> dict[str, int] | None:
    """{name: bytes} of the regular files of a directory; {} where it is missing, None where it cannot be read."""
    try:
        with os.scandir(directory) as entries:
            return {e.name: e.stat(follow_symlinks=False).st_size for e in entries if e.is_file(follow_symlinks=False)}
    except FileNotFoundError:
        return {}
    except OSError:
        return None
