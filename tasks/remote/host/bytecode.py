"""Puts the tool in its place with bytecode beside its sources: modules of a zip are compiled at each call otherwise.

    bytecode --to PATH       the zip that this runs from moves to PATH, unless another run's is there

That is a third of a short call. Another Python, as in the service's image, takes the sources: bytecode says whose it is.
"""

from __future__ import annotations

import argparse
import importlib.util
import marshal
import os
import sys
import zipfile
import zlib

from tasks.remote.common.files import hold_lock, print_answer, sync_folder

UNCHECKED = b"\x01\x00\x00\x00"  # PEP 552: by the source's hash, and nobody compares it: both lie in one file


def compiled(source, target, name):
    """The zip `source` as the zip `target`, which will be called `name`, with a .pyc for each .py."""
    with zipfile.ZipFile(source) as packed, zipfile.ZipFile(target, "w") as both:
        for entry in packed.infolist():
            text = packed.read(entry)
            code = compile(text, os.path.join(name, entry.filename), "exec", dont_inherit=True)
            header = importlib.util.MAGIC_NUMBER + UNCHECKED + importlib.util.source_hash(text)
            both.writestr(entry, text)
            both.writestr(zipfile.ZipInfo(f"{entry.filename}c", entry.date_time), header + marshal.dumps(code))


def whole(path):
    """Whether the tool is there with every byte: one that was cut short, by a power cut say, is made anew."""
    try:
        with zipfile.ZipFile(path) as packed:
            return packed.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError):
        return False


def place(args):
    source, staged = sys.argv[0], f"{args.to}.new"
    with hold_lock(os.path.join(os.path.dirname(args.to), ".lock"), "is being brought", within=60):
        if not whole(args.to):  # a process may be reading a whole one: another of the same name has other offsets
            compiled(source, staged, args.to)
            with open(staged, "rb") as file:
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            os.rename(staged, args.to)
        os.unlink(source)
    sync_folder(os.path.dirname(args.to))
    return {}


def main(argv):
    parser = argparse.ArgumentParser(prog="bytecode")
    parser.add_argument("--to", required=True)
    args = parser.parse_args(argv)
    return print_answer(lambda: place(args), args.to)
