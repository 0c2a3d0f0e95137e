"""The lease of a rollout on this host: a process that lives as long as the rollout, so that nobody has to clean up after it.

    lease hold   --store S --id X --who W --release R --why Y   answers, then holds the lease while standard input brings words
    lease show   --store S                                      {"lease": {…} or null}
    lease unlock --store S --id X --who W                       ends the holder of lease X

The kernel frees a dead holder's lock. A holder that hears nothing for SILENCE seconds, as on a cut line, ends by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tasks.remote.common.files import (
    as_refused,
    hold_lock,
    is_locked,
    print_answer,
    read_record,
    read_text,
    remove,
    utc_now,
    write_file,
)
from tasks.remote.host.records import Records
from tasks.shared.errors import Refused

SILENCE = 30.0  # seconds; the controller sends a word every five


@dataclass(frozen=True)
class Wanted:
    """The lease that a rollout asks for: its id, who runs it, the release's id, and the command."""

    id: str
    who: str
    release: str
    why: str


def paths(store: str) -> tuple[str, str]:
    """The lock file of the lease, and the note that says whose it is."""
    return os.path.join(store, ".lease.lock"), os.path.join(store, "lease.json")


def show(store: str) -> dict[str, Any] | None:
    """The note of the lease that is held, {} where that note cannot be read, None where no lease is held."""
    lock, note = paths(store)
    return read_record(note) if is_locked(lock) else None


def describe(lease: Mapping[str, Any]) -> str:
    """A lease in a line, for people."""
    return (
        f"lease {lease.get('id')} of {lease.get('who')} for release {str(lease.get('release'))[:12]}, "
        f"since {lease.get('since')}: {lease.get('why')}"
    )


def hold(store: str, wanted: Wanted) -> int:
    """Take the lease, answer, and hold it while standard input brings words. Return the exit code."""
    lock, note = paths(store)
    try:
        with hold_lock(lock, "is held", within=1.0):
            write_file(note, json.dumps({**asdict(wanted), "since": utc_now(), "pid": os.getpid()}))
            print_answer(lambda: {"lease": wanted.id, "current": Records(store).current()}, store)
            while select.select([sys.stdin], [], [], SILENCE)[0] and os.read(0, 4096):
                pass
            remove(note)
            return 0
    except Refused:
        no = refuse_second(store)
    except OSError as error:  # a disk that is full, or read-only
        no = as_refused(error, store)
    return print_answer(lambda: {"ok": False, "error": no.error}, store)


def refuse_second(store: str) -> Refused:
    """Why this rollout gets no lease: the one that is held."""
    lock, note = paths(store)
    holder = read_record(note)
    found = describe(holder) if holder else f"no note of whose it is, and {lock} held by {read_text(lock)}"
    fix = f"tasks/unlock.py --data lease={holder['id']}" if "id" in holder else "end that process there"
    return Refused(store, "is in another rollout", "no lease", found, f"wait for it, or {fix}")


def unlock(store: str, lease_id: str, who: str) -> dict[str, Any]:
    """End the holder of this lease, and note who asked for that. Raise Refused where another lease is held."""
    lease = show(store)
    if lease is None:
        return {"unlocked": False}
    if lease.get("id") != lease_id:
        found = describe(lease) if lease else f"no note of whose it is, and {paths(store)[0]} held"
        raise Refused(store, "has another lease", lease_id, found, "tasks/status.py shows it")
    Records(store).journal("unlock", lease=lease, who=who)
    os.kill(lease["pid"], signal.SIGTERM)
    until = time.monotonic() + 10
    while show(store) is not None:
        if time.monotonic() > until:
            raise Refused(store, "is still held", "no lease", describe(lease), f"kill {lease['pid']} there")
        time.sleep(0.1)
    return {"unlocked": True, "lease": describe(lease)}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="lease")
    parser.add_argument("verb", choices=["hold", "show", "unlock"])
    parser.add_argument("--store", required=True)
    for option in ("--id", "--who", "--release", "--why"):
        parser.add_argument(option, default="")
    args = parser.parse_args(argv)
    os.umask(0o022)
    if args.verb == "hold":
        return hold(args.store, Wanted(args.id, args.who, args.release, args.why))
    if args.verb == "unlock":
        return print_answer(lambda: unlock(args.store, args.id, args.who), args.store)
    return print_answer(lambda: {"lease": show(args.store)}, args.store)
