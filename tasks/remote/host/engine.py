"""The program `engine`: it loads a release's image into the container engine, and runs the smoke test.

    engine load       --store S --within SEC   (stdin: lock)
    engine bring      --store S --release ID --project P --project-directory D --file F [--file F2] --within SEC
                      (stdin: lock)   delivery `online`: the service hf-model loads the volume; then every byte is hashed
    engine candidate  --store S --release ID --within SEC   (stdin: {name: text})   what is to be tested; answers its folder
    engine smoke      --store S --release ID --project P --project-directory D --file F [--file F2] --within SEC
    engine embeddings --store S --release ID

What a smoke test takes (override, goldens) and gives (smoke.json, embeddings.json) stays in state/<id>/candidate/ until a
test passes. A rollback goes by what the release was proven with before, and that stays until then. One JSON line on
standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from tasks.remote.common.files import hold_lock, print_answer
from tasks.remote.host.image import load
from tasks.remote.host.one_off import OneOff
from tasks.remote.host.smoke_test import candidate, embeddings, smoke
from tasks.remote.host.volume import bring
from tasks.shared.lock import Lock, parse_lock


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="engine")
    parser.add_argument("verb", choices=["load", "bring", "candidate", "smoke", "embeddings"])
    parser.add_argument("--store", required=True)
    for option in ("--release", "--project", "--project-directory"):
        parser.add_argument(option, default="")
    parser.add_argument("--file", action="append", default=[])
    parser.add_argument("--within", type=int, default=3600)
    args = parser.parse_args(argv)
    os.umask(0o022)
    return print_answer(lambda: run(args), args.store)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The answer of the verb that was asked for."""
    where = OneOff(args.release, args.project, args.project_directory, args.file, args.within)
    if args.verb == "candidate":
        return candidate(args.store, args.release, json.load(sys.stdin), args.within)
    if args.verb == "smoke":
        return smoke(args.store, where)
    if args.verb == "bring":
        return bring(args.store, where, read_lock())
    if args.verb == "embeddings":
        return embeddings(args.store, args.release)
    with hold_lock(os.path.join(args.store, ".lock"), "is busy", within=60):
        return load(args.store, read_lock(), args.within)


def read_lock() -> Lock:
    """The lock on standard input."""
    return parse_lock(sys.stdin.read(), "the lock from the controller")
