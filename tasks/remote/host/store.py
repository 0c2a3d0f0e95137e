"""The program `store`, on the bastion and on each host: admits pushed blobs, builds releases, hashes them again.

    store ready  --store S --user U   (stdin: lock)   removes what an interrupted push left; answers what is missing
    store admit  --store S --user U   (stdin: lock)   incoming/ -> blobs/ -> releases/<id>, whole or not at all
    store verify --store S [--sample PERCENT]   (stdin: lock)   hashes every blob of the release again, or a random sample
                                                                that is PERCENT of its bytes

One JSON line on standard output. The exit code is 0 for yes and 1 for no. Every write is staged, checked and renamed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from tasks.remote.common.files import hold_lock, print_answer
from tasks.remote.host.admit import admit, ready
from tasks.remote.host.verify import verify
from tasks.shared.lock import parse_lock
from tasks.shared.signatures import SIGNERS


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="store")
    parser.add_argument("verb", choices=["ready", "admit", "verify"])
    parser.add_argument("--store", required=True)
    parser.add_argument("--user", default="")
    parser.add_argument("--sample", type=int, default=100)
    parser.add_argument("--signers", default=SIGNERS)
    args = parser.parse_args(argv)
    os.umask(0o022)
    return print_answer(lambda: run(args), args.store)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The answer of the verb that was asked for. One program at a time works on a store."""
    with hold_lock(os.path.join(args.store, ".lock"), "is busy", within=60):
        lock = parse_lock(sys.stdin.read(), "the lock from the controller")
        if args.verb == "verify":
            return verify(args.store, lock, args.sample)
        if args.verb == "admit":
            return admit(args.store, lock, args.user, args.signers)
        return ready(args.store, lock, args.user)
