"""The tool in its place: bytecode beside the sources, and either of them is enough."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

from tasks.control.tool import Tool


def changed(source: Path, target: Path, change) -> Path:
    """A zip whose members went through change(name, data)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            new.writestr(entry, change(entry.filename, old.read(entry)))
    return target


def refusal(path: Path) -> str:
    """What a call of it says that asks for nothing."""
    return subprocess.run([sys.executable, path], capture_output=True, text=True).stderr


def test_calls_take_the_bytecode(host, tmp_path):
    broken = changed(host.tool, tmp_path / "b.pyz", lambda name, data: b"not Python" if name.endswith(".py") else data)
    assert "usage: " in refusal(broken)


def test_another_python_takes_the_sources(host, tmp_path):
    magic = len(importlib.util.MAGIC_NUMBER)

    def foreign(name: str, data: bytes) -> bytes:
        return b"\x00" * magic + data[magic:] if name.endswith(".pyc") else data

    assert "usage: " in refusal(changed(host.tool, tmp_path / "f.pyz", foreign))
    neither = changed(tmp_path / "f.pyz", tmp_path / "n.pyz", lambda n, d: b"not Python" if n.endswith(".py") else d)
    assert "usage: " not in refusal(neither)


def test_a_tool_that_is_there_is_never_written_again(host, tmp_path):
    before, arrived = host.tool.stat(), tmp_path / "again.pyz"
    arrived.write_bytes(Tool().data)
    words = [sys.executable, arrived, "bytecode", "--to", host.tool]
    assert subprocess.run(words, capture_output=True).returncode == 0
    after = host.tool.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns) and not arrived.exists()
