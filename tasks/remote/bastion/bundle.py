"""A release on a drive, where no wire crosses the gap: the connected bastion writes it, the far one takes it into its store.

    bundle write    --store S --bundle DIR --part-size BYTES --within SEC
                    (stdin: {"lock": {…}, "contents": {sha256: size}, "texts": {name: text}, "files": {name: path},
                    "about": {"who", "contents_at"}})
    bundle take     --store S --bundle DIR --within SEC   (stdin: lock)
    bundle contents --store S                             what the store holds, hashed now, for the next bundle

A bundle is a directory of plain files that FAT32 takes: no links, no modes, names of [a-z0-9._-], parts below 4 GiB.

    parts/<sha256>, or parts/<sha256>.000, .001 …   the blobs; a blob above the part size is split
    lock.json goldens.json tool.tar.gz wheels/ README.txt SHA256SUMS
    bundle.json                                     what the bundle is (manifest.py); it is written last

Other files on the drive are not read and not deleted. The answer is one JSON line on standard output.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from tasks.remote.bastion.contents import contents
from tasks.remote.bastion.take_bundle import take
from tasks.remote.bastion.write_bundle import Request, write
from tasks.remote.common.files import hold_lock, print_answer
from tasks.shared.lock import parse_lock


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line. bundle: the bundle's directory. part_size: bytes of one part at most. within: seconds for all of it."""

    verb: str
    store: str
    bundle: str
    part_size: int
    within: int


def main(argv: Sequence[str]) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(prog="bundle")
    parser.add_argument("verb", choices=["write", "take", "contents"])
    parser.add_argument("--store", required=True)
    parser.add_argument("--bundle", default="")
    parser.add_argument("--part-size", type=int, default=1 << 30)
    parser.add_argument("--within", type=int, default=14400)
    options = Options(**vars(parser.parse_args(argv)))
    os.umask(0o022)
    # An error that names no file is about the place that is written to.
    return print_answer(lambda: answer(options), options.bundle if options.verb == "write" else options.store)


def answer(options: Options) -> dict[str, Any]:
    """The answer of the verb, which is alone in this store."""
    end = time.monotonic() + options.within
    if options.verb == "contents":
        with hold_lock(os.path.join(options.store, ".lock"), "is busy", within=60):
            return dataclasses.asdict(contents(options.store))
    if options.verb == "take":
        lock = parse_lock(sys.stdin.read(), "the lock from the controller")
        with hold_lock(os.path.join(options.store, ".fetch.lock"), "is being fetched into"):
            return dataclasses.asdict(take(options.store, options.bundle, lock, end))
    request = Request(**json.load(sys.stdin))
    with hold_lock(os.path.join(options.store, ".bundle.lock"), "writes a bundle"):
        return dataclasses.asdict(write(options.store, options.bundle, options.part_size, request, end))
