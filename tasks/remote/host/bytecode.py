"""Puts the tool in its place, with bytecode beside its sources: without it, Python compiles the modules of a zip at each call.

    bytecode --to PATH       moves the zip that this program runs from to PATH, unless that one is there and whole

Compiling takes a third of the time of a short call. Bytecode says which Python made it. Another Python, such as the one in
the service's image, takes the sources.
"""

from __future__ import annotations

import argparse
import importlib.util
import marshal
import os
import sys
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

from tasks.remote.common.files import hold_lock, print_answer, sync_folder

UNCHECKED = b"\x01\x00\x00\x00"  # PEP 552: valid by the source's hash, which Python does not compare


def add_bytecode(source: str, target: str, name: str) -> None:
    """Write the zip `target`, which will be called `name`: the zip `source`, with a .pyc for each .py."""
    with zipfile.ZipFile(source) as packed, zipfile.ZipFile(target, "w") as both:
        for entry in packed.infolist():
            text = packed.read(entry)
            code = compile(text, os.path.join(name, entry.filename), "exec", dont_inherit=True)
            header = importlib.util.MAGIC_NUMBER + UNCHECKED + importlib.util.source_hash(text)
            both.writestr(entry, text)
            both.writestr(zipfile.ZipInfo(f"{entry.filename}c", entry.date_time), header + marshal.dumps(code))


def is_whole(path: str) -> bool:
    """Whether the tool is there and every checksum in it is right. A power cut can leave a part of it."""
    try:
        with zipfile.ZipFile(path) as packed:
            return packed.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError):
        return False


def place(to: str) -> dict[str, Any]:
    """Move the zip that this program runs from to the path `to`, with bytecode. A whole one that is there stays.

    A running process may be reading that one, and in another file of the same name the modules stand at other offsets.
    """
    source, staged = sys.argv[0], f"{to}.new"
    with hold_lock(os.path.join(os.path.dirname(to), ".lock"), "is being brought", within=60):
        if not is_whole(to):
            add_bytecode(source, staged, to)
            with open(staged, "rb") as file:
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            os.rename(staged, to)
        os.unlink(source)
    sync_folder(os.path.dirname(to))
    return {}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bytecode")
    parser.add_argument("--to", required=True)
    args = parser.parse_args(argv)
    return print_answer(lambda: place(args.to), args.to)
